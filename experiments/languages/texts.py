"""``python -m experiments.languages.texts RUN``: what the small models of a run of preset ``languages`` write."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from projkern.language.sampling import printable, write
from projkern.language.trained import LanguageRun
from projkern.models.sampling import Draws
from projkern.utils import command
from projkern.utils.files import read_object

from .page import PAGE, TEXTS, store

PROMPTS = {"de": "Die ", "fr": "Les ", "es": "La ", "el": "Για ", "vi": "Các "}
"""What each text begins with, by language."""
TEMPERATURE, TOKENS = 0.5, 120


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.languages.texts", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the trained run")
    return parser


def work(options: argparse.Namespace) -> str:
    path = store(TEXTS, texts_of(LanguageRun.open(options.run)))
    return f"Wrote {path} and its texts in {PAGE} and README.md."


def texts_of(run: LanguageRun) -> dict[str, Any]:
    """The run's losses, and the first text that each of its models for a task writes, by task and model."""
    models = [model for model in run.models() if model.takes_task]
    draws = Draws(temperature=TEMPERATURE)
    texts = {
        task: {
            str(model.name): prompt
            + printable(write(model.standalone(run.t_of(task)), run.tokenizer, draws, prompt, TOKENS).texts[0])
            for model in models
        }
        for task, prompt in PROMPTS.items()
    }
    summary = read_object(run.path / "summary.json", "the summary of a run")
    return summary | {"temperature": TEMPERATURE, "prompts": PROMPTS, "texts": texts}


def main(argv: list[str] | None = None) -> int:
    return command.run(parser(), argv, work)


if __name__ == "__main__":
    sys.exit(main())
