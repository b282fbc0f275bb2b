"""Trainings that one process and several must agree on; ``rank_cases.py OUT`` stores what each rank has.

    OUT/of-SIZE/CASE-RANK.pt    {"losses": by step, "gradients": of the first step, "weights": after the last step}

Four ranks stop after ``STEPS_OF_FOUR`` steps of the same training.

Of a compression each rank has the gradients of its own part, all have the small model's weights, and "sent" is what a
step has a rank send, in bytes.

All is in float64, so that what differs is a fault and not rounding.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import decoders
import numpy as np
import torch
from ranks import fork
from torch import Tensor

from benchmarks.sharing import sent_bytes
from projkern.compression.config import CompressConfig
from projkern.compression.start import choose, make_projected
from projkern.compression.training import compression_job
from projkern.data.text import Windows
from projkern.models.huggingface.axes import Sizes
from projkern.models.names import SOURCE, Kind, ModelName
from projkern.training import distributed
from projkern.training.data import open_data, run_palette
from projkern.training.loop import Job, train
from projkern.training.metrics import Metrics, read_metrics
from projkern.training.presets import DEBUG
from projkern.training.stages import make_stage
from projkern.training.steps import stage_job
from projkern.utils.command import Interrupted

CONFIG = DEBUG.replace(scales=(Fraction(1, 4),), batch_size=8, steps=8, log_every=1, checkpoint_every=50)
CONFIG = CONFIG.replace(operator_lr=1e-3)  # at a larger one the general generator makes 1e-16 into 1e-3 in 50 steps
STEPS_OF_FOUR = 8
CASES: dict[str, dict[str, Any]] = {
    "the default": {"steps": 50},
    "general": {"generator": "general", "n_layer": 1, "n_embd": 16},
    "modular": {"generator": "modular"},
    "joint": {"scales": (Fraction(1, 2), Fraction(1, 4)), "joint": True},
    "source_batch": {"source_batch": 4, "distill": 0.0},
    "several examples of a task": {"examples_per_task": 2},
    "no loss of the source": {"w_src": 0.0, "distill": 0.0},
}

COMPRESSION = CompressConfig().replace(
    length=12, batch_size=8, held_out=8, tokens=8 * 96, log_every=1, checkpoint_every=50, calibration=16
)
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "compression": {"tokens": 50 * 96},
    "compression in groups": {"method": "group", "optimizer": "adamw", "distill": 0.0},
    "pruning": {"method": "prune"},
}


class Float64:
    """A stream of data whose t is in float64."""

    def __init__(self, data: Any) -> None:
        self._data, self.examples_per_task = data, data.examples_per_task

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        tokens, t = self._data.batch(step)
        return tokens, t.double()


def train_in(folder: Path, job: Job) -> None:
    """Train to the end; of four ranks, the first steps."""
    last = STEPS_OF_FOUR if distributed.current().size == 4 else None
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(Interrupted):
        train(job, folder / "checkpoint", Metrics(folder), lambda step: step == last)


def run_case(changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The losses, gradients and weights of a case, in this process, its log and checkpoints in a new folder."""
    config, cpu, ranks = CONFIG.replace(**changes), torch.device("cpu"), distributed.current()
    data: Any = Float64(open_data(config, "train", cpu, run_palette(config.data)))
    source = make_stage(SOURCE, config, cpu).module
    name = ModelName(Kind.JOINT) if config.schedule.joint else ModelName(Kind.PROJECTED, Fraction(1, 4))

    stage = make_stage(name, config, cpu, source)
    stage.module.double()
    job = stage_job(stage, data, config.schedule, config.run, torch.float32, "images")
    tokens, t = (ranks.share(rows, data.examples_per_task) for rows in data.batch(stage.first_batch))
    losses = stage.losses(tokens, t)
    torch.stack([stage.loss_weights[label] * loss for label, loss in losses.items()]).sum().backward()
    ranks.average_gradients(stage.module.parameters())
    gradients = {label: p.grad.clone() for label, p in stage.module.named_parameters() if p.grad is not None}
    stage.module.zero_grad()

    train_in(folder, job)
    logged = [line["losses"] for line in read_metrics(folder / "metrics.jsonl")] if ranks.is_main else None
    return {"losses": logged, "gradients": gradients, "weights": stage.module.state_dict()}


def run_compression(changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same of a compression."""
    config, ranks = COMPRESSION.replace(**changes), distributed.current()
    source = decoders.decoder("starcoder2").double()  # the norms of others compute in float32
    sizes = Sizes(decoders.HIDDEN // 2, decoders.INTERMEDIATE // 2, decoders.LAYERS)
    tokens = np.random.default_rng(0).integers(0, decoders.VOCABULARY, 1200)
    windows = Windows(tokens, config.text.length, config.tuning.batch_size, config.text.held_out, seed=0)
    kept, inputs = choose(source, windows, config, sizes, ranks)
    projected = make_projected(source, kept, config, sizes, inputs, ranks)
    gradients: dict[str, Tensor] = {}
    take = projected.backward

    def keep_the_first(after: Any) -> None:
        if not gradients:
            take()
            gradients.update((name, p.grad.clone()) for name, p in projected.named_parameters() if p.grad is not None)
        take(after)

    projected.backward = keep_the_first  # type: ignore[method-assign]
    train_in(folder, compression_job(projected, source, windows, config, torch.float32))
    before = sent_bytes()
    projected.materialise()
    projected.average_gradients()
    time.sleep(0.2)  # until the kernel has sent what it was given
    sent = sent_bytes() - before
    logged = [line["losses"] for line in read_metrics(folder / "metrics.jsonl")] if ranks.is_main else None
    return {"losses": logged, "gradients": gradients, "weights": dict(projected.small.named_parameters()), "sent": sent}


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{name: partial(run_case, changes) for name, changes in CASES.items()},
    **{name: partial(run_compression, changes) for name, changes in COMPRESSIONS.items()},
}
OF_SIZE = {1: list(RUNS), 2: list(RUNS), 4: ["the default", "several examples of a task", "compression"]}
"""The cases that so many ranks train."""


def run_all(out: Path, size: int) -> None:
    with distributed.processes("cpu") as ranks:
        for name in OF_SIZE[size]:
            torch.save(RUNS[name](out / name), out / f"{name}-{ranks.rank}.pt")
        ranks.finish()


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    for size in OF_SIZE:
        out = folder / f"of-{size}"
        out.mkdir()
        if codes := [code for code in fork(size, partial(run_all, out, size)) if code]:
            return codes[0]
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
