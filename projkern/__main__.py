"""``projkern VERB``: the commands of this package under one name."""

import runpy
import sys

VERBS = ("tokenize", "train", "project", "compress", "sample", "evaluate", "explore", "reproduce", "env")


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names, as ``python -m projkern.VERB`` does; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in VERBS:
        print(f"usage: projkern {{{','.join(VERBS)}}} ...\n\nprojkern VERB --help tells more.")
        return 0 if arguments in (["--help"], ["-h"]) else 2
    verb, *rest = arguments
    own_argv = sys.argv
    sys.argv = [f"projkern {verb}", *rest]
    try:
        runpy.run_module(f"projkern.{verb}", run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.argv = own_argv
    return 0


if __name__ == "__main__":
    sys.exit(main())
