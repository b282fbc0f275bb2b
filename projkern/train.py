"""``python -m projkern.train``: train a source, its baselines and projected models, and compare them."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from .language.config import LanguageConfig
from .language.presets import PRESETS as LANGUAGE_PRESETS
from .training.presets import PRESETS, QUICK
from .utils import command
from .utils.files import SETTINGS
from .utils.settings import add_options, given_options

EXAMPLES = """
examples:
  python -m projkern.train                                  a small run: a table and a picture in minutes
  python -m projkern.train --scales 1/2 1/4 --joint         two sizes from one source
  python -m projkern.train --mnist DIR --out runs/mnist     MNIST's digits
  python -m projkern.train --out runs/mnist --resume        go on with an interrupted run
  python -m projkern.train --data tokens --out runs/photos  real images, as projkern.tokenize wrote them
  python -m projkern.train --source runs/mnist --scales 1/8   other sizes from the source of another run
  python -m projkern.train --tasks texts --out runs/texts   a language model for each task: texts/NAME.txt
  python -m projkern.train --tasks texts --source MODEL     the same from a pretrained model, such as a Llama
  python -m projkern.train --tasks texts --t source         models for tasks never seen, from a sample of their text
"""


def parser() -> argparse.ArgumentParser:
    """The command line: one option for each setting."""
    every = PRESETS | LANGUAGE_PRESETS
    presets = "presets:\n" + "".join(f"  {name:<11}{what}\n" for name, (what, _) in every.items())
    parser = command.parser(
        "train", "Train a source, its baselines and projected models, and compare them.", presets + EXAMPLES
    )
    parser.add_argument(
        "--preset",
        choices=every,
        help="settings to start from (default: quick, whose values are shown here; with --tasks languages)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: a new one under runs/)")
    command.add_state(
        parser, "continue the run in --out with its own settings", "delete the run in --out and start again"
    )
    parser.add_argument(
        "--tasks",
        metavar="PATH",
        help="train on tasks of text: a folder with a text file, plain or .gz, or a folder of them for each task; or a "
        "file of JSON lines with task and text. Options of images alone are left out then",
    )
    add_options(parser, QUICK)
    add_options(parser, LanguageConfig(), "with --tasks")
    return parser


def train(options: argparse.Namespace) -> str:
    """Train what the options ask for; returns the table of losses, and where the files are."""
    from .language.folder import is_language_run

    if options.resume:
        command.require_folder("--out", options.out)
    is_language = is_language_run(options.out) if options.resume else options.tasks is not None
    return _train_language(options) if is_language else _train_images(options)


def _train_images(options: argparse.Namespace) -> str:
    from .training.folder import resumed_config
    from .training.presets import new_config
    from .training.report import table
    from .training.run import run

    _refuse(options, LanguageConfig(), QUICK, "given with --tasks only")
    changes = given_options(options, QUICK)
    config = resumed_config(options.out, changes) if options.resume else new_config(options.preset or "quick", changes)
    summary = run(options.out, config, resume=options.resume, overwrite=options.overwrite)
    out = options.out
    return f"\n{table(summary)}\n\nWrote {out}/report.md, {out}/samples.png and {out}/summary.json."


def _train_language(options: argparse.Namespace) -> str:
    from .language.folder import resumed_config
    from .language.presets import new_config
    from .language.report import table
    from .language.run import run

    _refuse(options, QUICK, LanguageConfig(), "left out with --tasks")
    changes = given_options(options, LanguageConfig())
    changes = {name: value for name, value in changes.items() if value is not None}
    if options.resume:
        config = resumed_config(options.out, changes)
    else:
        config = new_config(options.preset or "languages", changes)
    summary = run(options.out, config, resume=options.resume, overwrite=options.overwrite)
    out = options.out
    return f"\n{table(summary)}\n\nWrote {out}/report.md and {out}/summary.json."


def _refuse(options: argparse.Namespace, others: Any, own: Any, requirement: str) -> None:
    """Raise InputError where an option was given that only runs of the other kind have."""
    from .utils.errors import InputError

    foreign = given_options(options, others).keys() - given_options(options, own).keys()
    if options.tasks is None:
        foreign -= {"tasks"}
    if foreign:
        name = min(foreign)
        raise InputError(f"--{name.replace('_', '-')} must be {requirement}; it was {getattr(options, name)}")


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
    presets = PRESETS if options.tasks is None else LANGUAGE_PRESETS
    if options.preset is not None and options.preset not in presets:
        known, where = ", ".join(presets), "with" if options.tasks is not None else "without"
        parser.error(f"--preset must be one of {known} {where} --tasks; it was {options.preset}")
    options.out = options.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return command.run(parser(), argv, train, when_stopped, check)


if __name__ == "__main__":
    sys.exit(main())
