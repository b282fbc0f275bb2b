"""``python -m experiments.languages.seconds``: what a step of each model costs, measured in turns on one thread."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from statistics import median
from typing import Any

import torch
import transformers
from tqdm import tqdm

from projkern.language.presets import LANGUAGES
from projkern.language.stages import TaskSpace, make_stage, new_source
from projkern.language.vectors import of_names
from projkern.models.names import SOURCE, Kind, ModelName
from projkern.training.steps import forward_backward_step, make_optimizer
from projkern.utils import command
from projkern.utils.device import describe, keep_freed_memory
from projkern.utils.version import __version__

from .arms import EVERY, FIRST, NORMS, SCALE, SOURCE_STEPS, STEPS, TASKS
from .page import PAGE, SECONDS, store

PROJECTED, CONDITIONAL = ModelName(Kind.PROJECTED, SCALE), ModelName(Kind.CONDITIONAL, SCALE)
MODELS: dict[str, tuple[ModelName, dict[str, Any]]] = {
    "M_1": (SOURCE, {}),
    "P_1/4": (PROJECTED, {}),
    "M~_1/4, every": (CONDITIONAL, EVERY),
    "M~_1/4, norms": (CONDITIONAL, NORMS),
    "M~_1/4, first": (CONDITIONAL, FIRST),
}
WARM_UP = 2


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.languages.seconds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="steps of each model (default: %(default)s)")
    return parser


def work(options: argparse.Namespace) -> str:
    torch.set_num_threads(1)
    keep_freed_memory()
    source = new_source(LANGUAGES, transformers.ByT5Tokenizer(extra_ids=0))
    space, cpu = TaskSpace.of(of_names(TASKS)), torch.device("cpu")
    steps = []
    for name, changes in MODELS.values():
        config = LANGUAGES.replace(**changes)
        stage = make_stage(name, config, space, source, cpu)
        steps.append((stage, make_optimizer(stage, config.schedule)))
    schedule, length = LANGUAGES.schedule, LANGUAGES.tasks.length
    each = LANGUAGES.tasks.examples_per_task
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in tqdm(range(WARM_UP + options.rounds), unit=" rounds"):
        tokens = torch.randint(source.config.vocab_size, (schedule.batch_size, length))
        t = torch.eye(TASKS)[torch.randperm(TASKS)[: schedule.batch_size // each]].repeat_interleave(each, 0)
        for (stage, optimizer), times in zip(steps, seconds):
            began = time.process_time()
            forward_backward_step(stage, tokens, t, optimizer, torch.float32, schedule.clip)
            times.append(time.process_time() - began)
    of_step = {model: median(times[WARM_UP:]) for model, times in zip(MODELS, seconds)}
    of_projected = SOURCE_STEPS * of_step["M_1"] + STEPS * of_step["P_1/4"]
    stored = {
        "seconds": of_step,
        "steps_in_the_time_of_P": {m: round(of_projected / of_step[m], -2) for m in MODELS if m.startswith("M~")},
        "device": describe(cpu),
        "versions": {"projkern": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    return f"Wrote {store(SECONDS, stored)} and its table in {PAGE}."


def main(argv: list[str] | None = None) -> int:
    return command.run(parser(), argv, work)


if __name__ == "__main__":
    sys.exit(main())
