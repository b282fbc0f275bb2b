"""``python -m experiments.languages.step_cost MODEL``: what generating costs of a training step.

A step of 4 tasks of 2048 tokens each, in its parts: t to the small weights of all tasks, their backward, the small
models forward and backward, the source forward and backward. The last two are measured on one task's tokens.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projkern.models import TransformersOperator
from projkern.models.huggingface.causal import PretrainedFolder
from projkern.models.huggingface.operator import predict
from projkern.training.losses import nats_per_token
from projkern.training.stages import count
from projkern.utils import command
from projkern.utils.device import describe
from projkern.utils.version import __version__

from .page import PAGE, STEP_COST, store

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASKS, TOKENS, WINDOWS, TASK_DIM = 4, 2048, 4, 16
GROUPS, RANK, WARM_UP = (2, 4), 32, 32


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.languages.step_cost", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the source")
    parser.add_argument("--rounds", type=int, default=3, help="of the generation (default: %(default)s)")
    return parser


def work(options: argparse.Namespace) -> str:
    torch.set_num_threads(1)
    source = PretrainedFolder.open(options.model).load(torch.device("cpu"), torch.float32).requires_grad_(True)
    tokens = torch.randint(source.config.vocab_size, (WINDOWS, TOKENS // WINDOWS))
    of_source = TASKS * _processor_seconds(partial(_step, source), tokens)
    rows = []
    for group in GROUPS:
        operator = TransformersOperator(source, 1 / group, TASK_DIM, RANK, vectors_of_t=True)
        t = torch.randn(TASKS, TASK_DIM)
        forward, backward = [], []
        for _ in range(options.rounds + 1):
            began = time.process_time()
            weights = operator.weights(t)
            made = time.process_time()
            names = [name for stack in operator.grouping.stacks for name in stack.names]
            leaves = [row[name] for row in weights for name in names]
            gradients = [torch.ones_like(leaf) for leaf in leaves]
            done = time.process_time()
            torch.autograd.backward(leaves, gradients)
            forward.append(made - began)
            backward.append(time.process_time() - done)
        small = operator.generate(t[0]).requires_grad_(True)
        of_small = TASKS * _processor_seconds(partial(_step, small), tokens)
        rows.append(
            {
                "group": group,
                "rank": RANK,
                "parameters": count(small),
                "seconds": {
                    "generation and projection": median(forward[1:]),
                    "their backward": median(backward[1:]),
                    "small models": of_small,
                    "source": of_source,
                },
                "device": describe(torch.device("cpu")),
                "versions": {"projkern": __version__, "torch": torch.__version__, "python": platform.python_version()},
            }
        )
        print(rows[-1], flush=True)
    stored: dict[str, Any] = {"model": options.model.name, "tasks": TASKS, "tokens": TOKENS, "rows": rows}
    return f"Wrote {store(STEP_COST, stored)} and its table in {PAGE}."


def _step(model: PreTrainedModel, tokens: Tensor) -> None:
    """Forward and backward of one task's tokens."""
    nats_per_token(predict(model, tokens), tokens).backward()


def _processor_seconds(step: Callable[[Tensor], object], tokens: Tensor) -> float:
    step(tokens[:1, :WARM_UP])
    began = time.process_time()
    step(tokens)
    return time.process_time() - began


def main(argv: list[str] | None = None) -> int:
    return command.run(parser(), argv, work)


if __name__ == "__main__":
    sys.exit(main())
