"""``python -m projkern.train``: train a source, its baselines and projected models, and compare them."""

import argparse
import sys
import time
from pathlib import Path

from .training.folder import SETTINGS, resumed_config
from .training.presets import PRESETS, QUICK, new_config
from .utils import command
from .utils.settings import add_options, given_options

EXAMPLES = """
examples:
  python -m projkern.train                                  a small run: a table and a picture in minutes
  python -m projkern.train --scales 1/2 1/4 --joint         two sizes from one source
  python -m projkern.train --mnist DIR --out runs/mnist     MNIST's digits
  python -m projkern.train --out runs/mnist --resume        go on with an interrupted run
  python -m projkern.train --data tokens --out runs/photos  real images, as projkern.tokenize wrote them
  python -m projkern.train --source runs/mnist --scales 1/8   other sizes from the source of another run
"""


def parser() -> argparse.ArgumentParser:
    """The command line: one option for each setting."""
    presets = "presets:\n" + "".join(f"  {name:<8}{what}\n" for name, (what, _) in PRESETS.items())
    parser = command.parser(
        "train", "Train a source, its baselines and projected models, and compare them.", presets + EXAMPLES
    )
    parser.add_argument(
        "--preset", choices=PRESETS, help="settings to start from (default: quick, whose values are shown here)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: a new one under runs/)")
    command.add_state(
        parser, "continue the run in --out with its own settings", "delete the run in --out and start again"
    )
    add_options(parser, QUICK)
    return parser


def train(options: argparse.Namespace) -> str:
    """Train what the options ask for; returns the table of losses, and where the files are."""
    from .training.report import table
    from .training.run import run

    changes = given_options(options, QUICK)
    config = resumed_config(options.out, changes) if options.resume else new_config(options.preset or "quick", changes)
    summary = run(options.out, config, resume=options.resume, overwrite=options.overwrite)
    out = options.out
    return f"\n{table(summary)}\n\nWrote {out}/report.md, {out}/samples.png and {out}/summary.json."


def when_stopped(options: argparse.Namespace) -> str:
    if not (options.out / SETTINGS).exists():
        return "Nothing was begun"
    return f"To go on: python -m projkern.train --out {options.out} --resume"


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Complete the options, or end with status 2 where they contradict each other."""
    if options.resume and options.out is None:
        parser.error("--resume needs --out, the folder of the run to continue")
    if options.resume and options.preset is not None:
        parser.error(f"--preset must be left out with --resume: a run keeps its settings; it was {options.preset}")
    options.out = options.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, train, when_stopped, check)


if __name__ == "__main__":
    sys.exit(main())
