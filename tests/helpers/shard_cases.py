"""Sharded trainings, and the same by one process that has all: ``python shard_cases.py OUT``.

This process imports everything once; each rank is a fork of it. Unless it says otherwise, a case is in float64.

    OUT/CASE-SIZE.pt    {"losses": by step, "gradients": of the last step, clipped, "weights": after it, "whole": the
                         most layers at once}, of SIZE ranks; of size 0, one process without ``--shard``
    OUT/stopped/        the default case, when two ranks have stopped in its middle; all sizes go on from there
    OUT/run-SIZE/       a run of the command, with ``--shard`` unless SIZE is 0
    OUT/FAULT/          a training of two ranks of which something goes wrong on one
    OUT/statuses.json   of the ranks, by job; what they print is in OUT/JOB.log
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import gc
import json
import os
import shutil
import signal
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which shards use, as all below that is imported before the forks
from ranks import fork
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import projkern.train
from projkern.models.names import SOURCE, Kind, ModelName
from projkern.training import distributed
from projkern.training.config import TrainConfig
from projkern.training.data import open_data, run_palette
from projkern.training.loop import Job, train
from projkern.training.metrics import Metrics, read_metrics
from projkern.training.presets import DEBUG
from projkern.training.sharded import parts_of, sharded_job, whole_stage
from projkern.training.stages import make_stage
from projkern.training.steps import stage_job
from projkern.utils import command
from projkern.utils.command import Interrupted
from projkern.utils.device import Machine

CPU = torch.device("cpu")
STEPS, STOPPED_AT = 4, 2
CONFIG = DEBUG.replace(n_layer=3, scales=(Fraction(1, 4),), batch_size=8, steps=STEPS, source_steps=STEPS, log_every=1)
CASES: dict[str, dict[str, Any]] = {
    "the source": {},
    "the default": {},
    "joint": {"scales": (Fraction(1, 2), Fraction(1, 4)), "joint": True, "examples_per_task": 2, "tied": True},
    "no loss of the source": {"w_src": 0.0, "distill": 0.0},
    "a source that only teaches": {"w_src": 0.0},
    "bfloat16": {"dtype": "bfloat16"},
}
OF_SIZE = {0: tuple(CASES), 1: ("the default", "no loss of the source"), 2: tuple(CASES), 4: ("the default",)}
FAULTS = ("full disk", "killed")


class Data:
    """A stream of data whose t is of the case's type."""

    def __init__(self, config: TrainConfig, dtype: torch.dtype) -> None:
        self._data: Any = open_data(config, "train", CPU, run_palette(config.data))
        self.examples_per_task, self._dtype = self._data.examples_per_task, dtype

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        with default_dtype(torch.float32):
            tokens, t = self._data.batch(step)
        return tokens, t.to(self._dtype)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


class WholeLayers(TorchDispatchMode):
    """Counts, at every operation of forward and backward, the layers whose matrices are whole in this memory."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self._layers, self._matrices = layers, {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for layer in self._layers:
            for matrix in layer.weights.values():
                if not isinstance(matrix, DTensor):
                    self._matrices[id(matrix)] = layer, matrix
        whole = {layer for layer, matrix in self._matrices.values() if matrix.untyped_storage().size()}
        self.most = max(self.most, len(whole))
        return func(*args, **(kwargs or {}))


def make_job(case: str, size: int) -> tuple[Job, nn.Module]:
    """A case's training, and the module that has its weights in the end; of size 0 without shards."""
    config = CONFIG.replace(**CASES[case])
    dtype = torch.float32 if case == "bfloat16" else torch.float64
    machine = Machine(CPU, getattr(torch, config.run.dtype if case == "bfloat16" else "float32"), "")
    data: Any = Data(config, dtype)
    name = ModelName(Kind.JOINT) if config.schedule.joint else ModelName(Kind.PROJECTED, Fraction(1, 4))
    with default_dtype(dtype):
        if size == 0:
            stage = make_stage(SOURCE, config, CPU)
            stage = stage if case == "the source" else make_stage(name, config, CPU, stage.module)
            return stage_job(stage, data, config.schedule, config.run, machine.dtype, "images"), stage.module
        stage = whole_stage(SOURCE, config, None)
        stage = stage if case == "the source" else whole_stage(name, config, stage.module)
        return sharded_job(stage, config, machine, data), stage.module


def run_case(case: str, size: int, out: Path, stop_at: int | None = None) -> None:
    """Train a case to its end, or to a step, in all processes; goes on where its folder ends."""
    job, whole = make_job(case, size)
    ranks, gradients = distributed.current(), {}
    is_counted = size > 1 and case == "the default"
    counter = WholeLayers(job.module.layers) if is_counted else contextlib.nullcontext()

    def keep_gradients(*_: object) -> None:
        for name, p in job.module.named_parameters():
            gradients[name] = ranks.whole(torch.zeros_like(p) if p.grad is None else p.grad).clone().detach()

    def update(step: int) -> tuple[dict[str, Tensor], Tensor]:
        if step < STEPS - 1:
            return job.update(step)
        job.optimizers[0].register_step_pre_hook(keep_gradients)
        with counter:
            return job.update(step)

    folder = out / f"{case}-{size}"
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(Interrupted):
        train(dataclasses.replace(job, update=update), folder, Metrics(folder), lambda step: step == stop_at)
    if stop_at is None and ranks.is_main:
        weights = {name: w.clone() for name, w in parts_of(whole).items()}
        if size == 0:  # by the names that layer pairs have
            whole.load_state_dict(gradients)
            gradients = parts_of(whole)
        losses = [line["losses"] for line in read_metrics(folder / "metrics.jsonl")]
        result = {"losses": losses, "gradients": gradients, "weights": weights, "whole": getattr(counter, "most", None)}
        torch.save(result, out / f"{case}-{size}.pt")


def all_cases(size: int, out: Path) -> int:
    """Every case of so many ranks; the default one from where two of them have stopped."""
    with distributed.processes("cpu") as ranks:
        for case in OF_SIZE[size]:
            if case == "the default" and size == 2:
                run_case(case, size, out, STOPPED_AT)
                for copy in ("stopped", f"{case}-1", f"{case}-4") if ranks.is_main else ():
                    shutil.copytree(out / f"{case}-2", out / copy)
            run_case(case, size, out)
        ranks.finish()
    return 0


def whole_run(size: int, out: Path) -> int:
    """A run of the command, of three trainings."""
    options = ["--preset", "debug", "--scales", "1/4", "--no-unconditional", *("--shard" for _ in range(size > 0))]
    return projkern.train.main([*options, "--source-steps", "6", "--steps", "6", "--out", str(out / f"run-{size}")])


def faulty(fault: str, out: Path) -> int:
    """A training of which something goes wrong on rank 1 after a checkpoint."""

    def work(options: argparse.Namespace) -> str:
        with distributed.processes("cpu") as ranks:
            job, _ = make_job("the source", ranks.size)

            def update(step: int) -> tuple[dict[str, Tensor], Tensor]:
                if step == 2 and ranks.rank == 1:
                    go_wrong(fault)
                return job.update(step)

            folder = out / fault
            folder.mkdir(exist_ok=True)
            train(dataclasses.replace(job, update=update, checkpoint_every=2), folder, Metrics(folder))
        return "finished"

    return command.run(argparse.ArgumentParser("faulty"), [], work)


def go_wrong(fault: str) -> None:
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    FileSystem.create_stream = refuse


def main(out: Path) -> None:
    Data(CONFIG, torch.float32)  # reads the digits, for all forks
    gc.freeze()
    statuses: dict[str, list[int | None]] = {}
    for size in (2, 4):
        statuses[f"cases-{size}"] = fork(size, partial(all_cases, size, out), out / f"cases-{size}.log")
    statuses["run-2"] = fork(2, partial(whole_run, 2, out), out / "run-2.log")
    for fault in FAULTS:
        statuses[fault] = fork(2, partial(faulty, fault, out), out / f"{fault}.log")
    (out / "statuses.json").write_text(json.dumps(statuses))
    for size in (0, 1):
        all_cases(size, out)
    whole_run(0, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
