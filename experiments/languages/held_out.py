"""``python -m experiments.languages.held_out``: models for languages that training left out, from a sample of text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from projkern.language.presets import LANGUAGES
from projkern.language.run import run
from projkern.utils import command
from projkern.utils.files import SETTINGS

from .page import HELD_OUT, PAGE, store

LEFT_OUT = ("ca", "da", "ko", "pt")
"""Three with a near relative among those that are trained, and one without."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.languages.held_out", description=__doc__)
    parser.add_argument("--tasks", type=Path, required=True, help="folder of the tasks' texts")
    parser.add_argument("--out", type=Path, default=Path("runs/held-out"), help="of the run (default: %(default)s)")
    return parser


def work(options: argparse.Namespace) -> str:
    config = LANGUAGES.replace(tasks=str(options.tasks.resolve()), t="source", held_out_tasks=LEFT_OUT, eval_windows=32)
    summary = run(options.out, config, resume=(options.out / SETTINGS).exists())
    return f"Wrote {store(HELD_OUT, summary)} and its table in {PAGE}."


def main(argv: list[str] | None = None) -> int:
    return command.run(parser(), argv, work)


if __name__ == "__main__":
    sys.exit(main())
