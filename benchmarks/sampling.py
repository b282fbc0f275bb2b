"""How fast models draw, token by token: ``python -m benchmarks.sampling OUT.json``, on the CPU.

The paper's shape with random weights. A step's time grows with what is in the cache, so steps are timed in windows, at
several depths of it. Models, forms and layouts take turns; what is stored are medians over the rounds, or the rounds.

One thread, by its own clock, which stands still while other work has the core: so a shared machine gives times that
other machines in its place would repeat, up to what others take of memory and caches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projkern.kernels.cost import explain
from projkern.models import GPT, GPTConfig, ProjectionOperator
from projkern.models.blocks import Factored
from projkern.models.decode import Decoder
from projkern.utils.device import free_memory, keep_freed_memory

from . import attention
from .compare import write_result
from .machine import Machine

PAPER = GPTConfig(vocab_size=512, n_positions=1024, n_embd=512, n_layer=24, n_head=8)
GROUPS, TASKS = (2, 4, 8), (1, 4, 16, 64)
BATCHES, DEPTHS, WINDOW = (1, 8), (16, 512, 1008), 8
VERIFIED = 24
"""Tokens on which decoded logits are held against those of the whole sequence, before anything is timed."""


def verify(decoder: Decoder, tokens: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit; raises where it is more than rounding."""
    logits = [decoder.step(None)] + [decoder.step(tokens[:, i]) for i in range(VERIFIED - 1)]
    error = float((torch.stack(logits, 1) - expected).abs().max() / expected.abs().max())
    if not error < 1e-4:
        raise AssertionError(f"decoded logits differ from the model's by {error:.1e} of the largest")
    decoder.position = 0
    return error


def fill(decoder: Decoder, depth: int) -> None:
    """Put numbers into the cache as if ``depth`` tokens had been decoded."""
    for cache, _, _ in decoder._cache:
        cache[:, :, :, :depth].normal_()


def window(decoder: Decoder, depth: int, steps: int = WINDOW) -> float:
    """Median seconds of the steps that follow ``depth`` tokens."""
    decoder.position = depth
    tokens, times = torch.zeros(decoder.batch, dtype=torch.int64), []
    for _ in range(steps):
        start = time.thread_time()
        decoder.step(tokens)
        times.append(time.thread_time() - start)
    return statistics.median(times)


def measure_models(source: GPT, operators: dict[int, ProjectionOperator], t: Tensor, rounds: int) -> dict[str, Any]:
    """M_1 beside one generated model of each scale: parameters, bytes, and seconds of a step by batch and depth."""
    models = {"M_1": source} | {f"P_{Fraction(1, g)}": operator.generate(t) for g, operator in operators.items()}
    rows: list[dict[str, Any]] = []
    errors = []
    for batch in BATCHES:
        tokens = torch.randint(PAPER.vocab_size, (batch, VERIFIED))
        decoders = {name: model.decoder(batch) for name, model in models.items()}
        for name, decoder in decoders.items():
            errors.append(verify(decoder, tokens, models[name](tokens)))
            fill(decoder, PAPER.n_positions)
        for depth in DEPTHS:
            seconds: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(rounds):
                for name, decoder in decoders.items():
                    seconds[name].append(window(decoder, depth))
            rows.append({"batch": batch, "depth": depth, "seconds": seconds})
    described = {
        name: {
            "parameters": sum(p.numel() for p in model.parameters()),
            "weight_bytes": sum(p.nbytes for p in model.parameters()),
            "cache_bytes": model.decoder(1).cache_bytes,
        }
        for name, model in models.items()
    }
    return {"models": described, "steps": rows, "window": WINDOW, "largest_error": max(errors)}


def predict(group: int, tasks: int) -> dict[str, float]:
    """Seconds that ``explain`` predicts for the linear operators of a step, generation shared by all steps."""
    seconds = dict.fromkeys(("materialised", "factored"), 0.0)
    for rows, cols in PAPER.linear_shapes().values():
        explanation = explain(rows, cols, group, tasks=tasks, tokens=1, reuse=PAPER.n_positions)
        for form in explanation.forms:
            if form.name in seconds:
                seconds[form.name] += PAPER.n_layer * form.seconds
    return seconds


def measure_forms(operators: dict[int, ProjectionOperator], rounds: int, depth: int = 16) -> list[dict[str, Any]]:
    """A different t for each sequence: seconds to make a decoder and of a step, by form, and what auto takes."""
    rows = []
    for group, operator in operators.items():
        for tasks in TASKS:
            t = torch.rand(tasks, operator.task_dim)
            weight_bytes = tasks * sum(w.nbytes for w in operator.source.weights.values()) // group**2
            if 2.5 * weight_bytes > free_memory(torch.device("cpu")):
                print(f"left out: {tasks} tasks at g = {group}, {weight_bytes / 1e9:.1f} GB each", file=sys.stderr)
                continue
            tokens = torch.randint(PAPER.vocab_size, (tasks, VERIFIED))
            expected = operator(tokens, t)
            decoders, making = {}, {}
            for form in ("materialised", "factored"):
                start = time.thread_time()
                decoders[form] = operator.decoder(t, form=form)
                making[form] = time.thread_time() - start
                verify(decoders[form], tokens, expected)
                fill(decoders[form], depth + WINDOW)
            seconds: dict[str, list[float]] = {form: [] for form in decoders}
            for _ in range(rounds):
                for form, decoder in decoders.items():
                    seconds[form].append(window(decoder, depth, 3))
            del decoders, decoder
            start = time.thread_time()
            chosen = operator.decoder(t)
            making["auto"] = time.thread_time() - start
            choice = "factored" if isinstance(chosen._layers[0].mlp_in, Factored) else "materialised"
            del chosen
            row = {"group": group, "tasks": tasks, "depth": depth, "weight_bytes": weight_bytes, "auto": choice}
            rows.append(row | {"made": making, "seconds": seconds, "predicted": predict(group, tasks)})
            medians = {form: f"{1e3 * statistics.median(values):.1f} ms" for form, values in seconds.items()}
            print(f"g = {group}, {tasks} tasks: {medians}, auto took {choice}")
    return rows


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    source = GPT(PAPER).eval()
    operators = {g: ProjectionOperator(source, 1 / g, task_dim=18).eval() for g in GROUPS}
    result = {
        "machine": Machine().describe(),
        "load": {"before": os.getloadavg()},
        **measure_models(source, operators, torch.rand(18), options.rounds),
    }
    for row in result["steps"]:
        medians = {name: statistics.median(values) for name, values in row["seconds"].items()}
        shown = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in medians.items())
        ratio = medians["M_1"] / medians["P_1/4"]
        print(f"batch {row['batch']}, depth {row['depth']}: {shown}; M_1 / P_1/4 = {ratio:.2f}")
    result["forms"] = measure_forms(operators, max(3, options.rounds // 3))
    result["one_query"] = attention.measure_one_query()
    with torch.enable_grad():
        result["sequence"] = attention.measure_sequence()
    result["load"]["after"] = os.getloadavg()
    write_result(options.out, result)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
