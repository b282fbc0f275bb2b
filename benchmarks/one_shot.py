"""From a task identifier to a small model that is ready to run: ``python -m benchmarks.one_shot OUT.json``.

The paper's source (24 layers, d = 512) with weights in bfloat16, s = 1/8, one t. Four ways to have the small
model's weights, each a little more than the one before:

    project    p and q are there; W_s of all linear operators
    generate   t is there; p, q, W_s and the biases of all linear operators (what a training step does, for one task)
    model      t is there; operator.generate(t), a whole GPT of its own

``device`` are the seconds that the device works, ``ready`` those from the call until it is done. On a card each is also
measured as a CUDA graph, which is replayed. Sources are rotated so that no cache serves their weights.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import projkern as pk
from projkern.data.synthmnist import TASK_DIM
from projkern.models.layout import LINEARS
from projkern.models.operator import generate_weights

from .compare import write_result
from .machine import Card, Machine, machine_of
from .providers import backends


def operators(machine: Machine, layers: int, width: int, group: int) -> list[pk.ProjectionOperator]:
    """Operators on sources of their own, as many as no cache holds; weights in bfloat16, all else in float32."""
    bytes_of_one = 12 * width**2 * layers * 2
    result = []
    for seed in range(max(1, min(8, math.ceil(machine.cache_bytes / bytes_of_one)))):
        torch.manual_seed(seed)
        with machine.device:
            source = pk.GPT(pk.GPTConfig(vocab_size=512, n_positions=1024, n_embd=width, n_layer=layers, n_head=8))
            operator = pk.ProjectionOperator(source, scale=1 / group, task_dim=TASK_DIM)
        source.weights.to(torch.bfloat16)
        for parameter in operator.generator.parameters():  # a fresh operator ignores t
            torch.nn.init.normal_(parameter, std=0.3)
        result.append(operator)
    return result


def ways(operator: pk.ProjectionOperator, t: Tensor) -> dict[str, Callable[[], Any]]:
    """The three ways to a small model's weights."""
    stacks = [operator.source.weights[name] for name in LINEARS]
    p, q = operator.generator.factors(t[None])
    return {
        "project": lambda: pk.project_layers(stacks, p, q, operator.group),
        "generate": lambda: generate_weights([operator], t[None]),
        "model": lambda: operator.generate(t),
    }


def check(operator: pk.ProjectionOperator, t: Tensor) -> float:
    """The relative error of the weights beside plain torch's; raises AssertionError if it is more than rounding."""
    actual = torch.cat([w.flatten().float() for w in operator.generate(t).weights.values()])
    with pk.use_backend("reference"):
        expected = torch.cat([w.flatten().float() for w in operator.generate(t).weights.values()])
    error = float((actual - expected).norm() / expected.norm())
    if not error <= 4e-3:
        raise AssertionError(f"the weights' relative error is {error:.1e}")
    return error


@torch.no_grad()
def measure(machine: Machine, backend: str, layers: int, width: int, group: int, rounds: int) -> dict[str, Any]:
    """Raw seconds of each way, "device" and "ready", by way."""
    t = torch.rand(TASK_DIM, device=machine.device)
    samples: dict[str, dict[str, list[float]]] = {}
    with pk.use_backend(backend):
        rotated = operators(machine, layers, width, group)
        error = check(rotated[0], t)
        each = [ways(operator, t) for operator in rotated]
        calls: dict[str, list[Callable[[], Any]]] = {name: [way[name] for way in each] for name in each[0]}
        failed = {}
        if isinstance(machine, Card):
            for name in list(calls):
                try:
                    calls[f"{name}, graph"] = [machine.graph(call, machine.graph_pool()) for call in calls[name]]
                except Exception as reason:  # what cannot be recorded is still measured as it is
                    failed[f"{name}, graph"] = f"{type(reason).__name__}: {str(reason)[:200]}"
        for name, variants in calls.items():
            turns = itertools.cycle(variants)
            for _ in range(5):
                next(turns)()
            machine.wait()
            _, host, _ = machine.time(next(turns))
            samples[name] = {"device": [], "ready": []}
            for _ in range(rounds):
                samples[name]["device"].append(machine.time(next(turns), min(1.5 * host, 20e-3))[0])
                machine.wait()
                samples[name]["ready"].append(machine.wall(next(turns)))
    return {"relative_error": error, "seconds": samples, "failed": failed}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_shot", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args(argv)
    try:
        machine = machine_of(options.device)
    except RuntimeError as error:
        parser.error(str(error))
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "layers": options.layers,
        "width": options.width,
        "group": options.group,
        "backends": {},
    }
    for backend in backends(options.device):
        measured = measure(machine, backend, options.layers, options.width, options.group, options.rounds)
        result["backends"][backend] = measured
        write_result(options.out, result)
        for name, seconds in measured["seconds"].items():
            device, ready = (1e6 * statistics.median(seconds[kind]) for kind in ("device", "ready"))
            print(f"{backend:>8} {name:<16} {device:9.1f} µs on the device, ready after {ready:9.1f} µs")
        for name, why in measured["failed"].items():
            print(f"{backend:>8} {name:<16} {why}")
    return int(not result["backends"])


if __name__ == "__main__":
    sys.exit(main())
