"""How fast many tasks are projected: ``python -m benchmarks.projecting OUT.json``.

Loops over tasks, in models a second, each ending in the same tensors under GPT-2's names:

    dense    one task at a time, W_s = P W Q with P and Q written out as matrices (their zeros are kept, only p and q
             change), all layers of an operator in one batched product, the cheaper of the two products first
    bmm ...  a chunk of tasks and all layers of an operator at once, in the forms of ``providers.py`` that are fastest
    fused    a chunk of tasks in one call, as ``python -m projkern.project`` makes them
    whole    that command's loop: fused, written, read back and compared, renamed
    disk     what the command writes, written again as plain bytes to as many files and put onto the disk

All but the last two are found to agree; all are timed in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import projkern as pk
from projkern.data.synthmnist import TASK_DIM
from projkern.data.tasks import random_tasks
from projkern.export.checked import CheckedWriter, state_dicts
from projkern.export.tasks import project_tasks
from projkern.models.huggingface import gpt2
from projkern.models.layout import LINEARS
from projkern.models.operator import TaskWeights, generate_weights
from projkern.training.presets import PRESETS
from projkern.utils.device import keep_freed_memory

from .compare import write_result
from .machine import Machine, machine_of
from .providers import BASELINES

ORIGIN: dict[str, Any] = {"run": "none", "scale": "", "step": 0, "digest": ""}
GROUPED = ("bmm and dot", "bmm and sum", "bmm by hand", "bmm, strided")
CELLS = (("quick", Fraction(1, 4)), ("paper", Fraction(1, 4)), ("paper", Fraction(1, 8)))


def make_operator(preset: str, scale: Fraction) -> pk.ProjectionOperator:
    """An operator of a preset's shape; random, because the time does not depend on the numbers."""
    config = PRESETS[preset][1]
    torch.manual_seed(0)
    shape = {name: getattr(config.model, name) for name in ("n_embd", "n_layer", "n_head")}
    source = pk.GPT(pk.GPTConfig(vocab_size=config.data.vocab_size, n_positions=config.data.positions, **shape))
    operator = pk.ProjectionOperator(source, scale, TASK_DIM, config.operator.rank)
    for parameter in operator.generator.parameters():  # a fresh operator ignores t
        torch.nn.init.normal_(parameter, std=0.3)
    return operator.eval()


def factors_of(operator: pk.ProjectionOperator, t: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each linear operator its name, p (U, L N) and q (U, L M), for t (U, task_dim)."""
    layers, shapes = operator.config.n_layer, operator.source.config.linear_shapes()
    p, q = operator.generator.factors(t)
    p_parts = p.split([layers * shapes[name][0] for name in LINEARS], 1)
    q_parts = q.split([layers * shapes[name][1] for name in LINEARS], 1)
    yield from zip(LINEARS, p_parts, q_parts)


class Dense:
    """The naive loop: dense P @ W @ Q, a task at a time."""

    def __init__(self, operator: pk.ProjectionOperator) -> None:
        self.operator, self.group = operator, operator.group
        layers, shapes = operator.config.n_layer, operator.source.config.linear_shapes()
        self.p = {k: torch.zeros(layers, rows // self.group, rows) for k, (rows, _) in shapes.items()}
        self.q = {k: torch.zeros(layers, cols, cols // self.group) for k, (_, cols) in shapes.items()}
        self.shared = gpt2.table_tensors(operator.tables)
        self.names = gpt2.linear_names(layers)

    @torch.no_grad()
    def __call__(self, t: Tensor) -> dict[str, Tensor]:
        """t (task_dim,) -> the model's tensors under GPT-2's names."""
        operator, g, layers = self.operator, self.group, self.operator.config.n_layer
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for name, (p,), (q,) in factors_of(operator, t[None]):
            rows, cols = operator.source.config.linear_shapes()[name]
            P, Q, W = self.p[name], self.q[name], operator.source.weights[name]
            P.unflatten(2, (-1, g)).diagonal(dim1=1, dim2=2).copy_(p.view(layers, -1, g).mT)
            Q.unflatten(1, (-1, g)).diagonal(dim1=1, dim2=3).copy_(q.view(layers, -1, g).mT)
            product = (P @ W) @ Q if rows <= cols else P @ (W @ Q)
            bias = (p.view(layers, rows) * operator.source.biases[name]).view(layers, -1, g).sum(2)
            weights += product.mT.contiguous().unbind(0)
            biases += (bias + operator.biases[name]).unbind(0)
        tensors = dict(self.shared)
        for name, weight, bias in zip(self.names, weights, biases):
            tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return tensors


@torch.no_grad()
def grouped(form: str, operator: pk.ProjectionOperator, t: Tensor) -> list[dict[str, Tensor]]:
    """t (U, task_dim) -> the tensors of U models, by a form in torch."""
    source, g, layers = operator.source, operator.group, operator.config.n_layer
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for name, *factors in factors_of(operator, t):
        p, q = (factor.unflatten(1, (layers, -1)).transpose(0, 1).contiguous() for factor in factors)
        weights += BASELINES[form](source.weights[name], p, q, g).unbind(0)
        biases += (p * source.biases[name][:, None]).unflatten(2, (-1, g)).sum(3).unbind(0)
    return list(state_dicts(operator, TaskWeights(weights, biases)))


@torch.no_grad()
def fused(operator: pk.ProjectionOperator, t: Tensor) -> list[dict[str, Tensor]]:
    """t (U, task_dim) -> the tensors of U models."""
    (generated,) = generate_weights([operator], t)
    return list(state_dicts(operator, generated))


def check(operator: pk.ProjectionOperator, dense: Dense, t: Tensor) -> float:
    """The largest difference beside a tensor's largest number; raises AssertionError if it is more than rounding."""
    worst = 0.0
    expected_models = list(map(dense, t))
    loops = [fused(operator, t), *(grouped(form, operator, t) for form in GROUPED)]
    for expected, actual in ((e, a) for models in loops for e, a in zip(expected_models, models)):
        if actual.keys() != expected.keys():
            raise AssertionError("the two loops make other tensors")
        for name, tensor in expected.items():
            error = (actual[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-6)
            worst = max(worst, error.item())
    if not worst <= 1e-4:
        raise AssertionError(f"the two loops differ by {worst:.1e} of the largest number")
    return worst


def write_again(folder: Path, out: Path) -> float:
    """Seconds to write the bytes of the files in a folder's folders to new ones, and put them onto the disk."""
    contents = [(path.relative_to(folder), path.read_bytes()) for path in folder.glob("*/*")]
    start = time.perf_counter()
    for path, content in contents:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(content)
    os.sync()
    return time.perf_counter() - start


def measure(preset: str, scale: Fraction, machine: Machine, rounds: int) -> dict[str, Any]:
    """Seconds a model of each loop, by round."""
    operator = make_operator(preset, scale)
    chunk, dense = CheckedWriter(operator, ORIGIN, None, with_onnx=False).chunk, Dense(operator)
    t = random_tasks(chunk)
    few, whole = min(chunk, 8), min(chunk, 64)
    error = check(operator, dense, t[:2])
    samples: dict[str, list[float]] = {name: [] for name in ("dense", *GROUPED, "fused", "whole", "disk")}
    for k in range(rounds + 1):  # the first warms up
        elapsed = {
            "dense": machine.wall(lambda: [dense(row) for row in t[:few]]) / few,
            "fused": machine.wall(lambda: fused(operator, t)) / chunk,
        }
        for form in GROUPED:
            elapsed[form] = machine.wall(lambda form=form: grouped(form, operator, t)) / chunk
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            project_tasks(operator, t[:whole], Path(folder) / "out", origin=ORIGIN)
            elapsed["whole"] = (time.perf_counter() - start) / whole
            elapsed["disk"] = write_again(Path(folder) / "out", Path(folder) / "again") / whole
        for name, seconds in elapsed.items():
            samples[name] += [seconds] * (k > 0)
    config = operator.source.config
    return {
        "preset": preset,
        "scale": str(scale),
        "layers": config.n_layer,
        "width": config.n_embd,
        "chunk": chunk,
        "relative_error": error,
        "seconds": samples,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.projecting", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    keep_freed_memory()
    machine = machine_of("cpu")
    result: dict[str, Any] = {"machine": machine.describe(), "cells": []}
    for preset, scale in CELLS:
        cell = measure(preset, scale, machine, options.rounds)
        result["cells"].append(cell)
        write_result(options.out, result)
        rates = {name: 1 / statistics.median(seconds) for name, seconds in cell["seconds"].items()}
        shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        print(f"{preset}, s = {scale}: {shown} models a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
