"""``python -m projkern.reproduce``: the experiments of a checkout (experiments/README.md), under the package's name."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command of ``experiments``; returns its exit status, 1 where there is no checkout."""
    checkout = Path(__file__).parent.parent
    if find_spec("experiments") is None and (checkout / "experiments").is_dir():
        sys.path.append(str(checkout))
    if find_spec("experiments") is None:
        print("projkern.reproduce: error: the experiments need a checkout of the repository", file=sys.stderr)
        return 1
    from experiments.command import main as reproduce

    return reproduce(argv)


if __name__ == "__main__":
    sys.exit(main())
