"""``projkern VERB``: the commands of this package under one name."""

from __future__ import annotations

import sys

from . import env, train

VERBS = {"train": train.main, "env": env.main}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in VERBS:
        return VERBS[arguments[0]](arguments[1:])
    print(f"usage: projkern {{{','.join(VERBS)}}} ...\n\nprojkern VERB --help tells more.")
    return 0 if arguments in (["--help"], ["-h"]) else 2


if __name__ == "__main__":
    sys.exit(main())
