"""``python -m projkern.reproduce``: the experiments of a checkout (experiments/README.md), which are not installed."""

import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command of ``experiments``; returns its exit status, 1 where there is no checkout."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "experiments" / "command.py").is_file():
        print("projkern.reproduce: error: a checkout of the repository is needed, and this is none", file=sys.stderr)
        return 1
    if sys.path[0] != str(checkout):  # first, as another package may be called "experiments" too
        sys.path.insert(0, str(checkout))
    from experiments.command import main as reproduce

    return reproduce(argv)


if __name__ == "__main__":
    sys.exit(main())
