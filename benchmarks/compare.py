"""Fused beside every baseline, and beside the machine's limits: ``python -m benchmarks.compare OUT.json``.

Each round measures every provider once, one after another, so that all see the same machine; medians are compared.
A baseline more than five times slower than the best one is measured in the first round only. Every provider is
verified against the float64 definition before it is timed. ``--table`` prints a stored result again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import projkern as pk
from projkern.memory import keep_freed_memory
from projkern.training.files import write_json

from .machine import Limits, describe, seconds
from .providers import BASELINES, Baseline, Case


def verify(project: Baseline, group: int, rows: int = 64, batch: int = 3) -> None:
    """Raise where a provider's result or gradient is not the one of the tested reference in float64."""
    W, p, q = torch.randn(rows, 96), torch.randn(batch, rows), torch.randn(batch, 96)
    leaves = [x.requires_grad_() for x in (W, p, q)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    with pk.use_backend("reference"):
        truth = pk.project(*exact, group)
    out = project(*leaves, group)
    grad = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, leaves, grad)]
    wanted = [truth, *torch.autograd.grad(truth, exact, grad.double())]
    for f, w in zip(found, wanted):
        torch.testing.assert_close(f.double(), w, rtol=1e-4, atol=1e-4)


def measure(layers: int, width: int, batch: int, group: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """Raw seconds of every provider for one cell of the table."""
    torch._dynamo.reset()  # what was compiled for another cell must not make this one's graphs dynamic
    case = Case(layers, width, batch, group)
    providers: dict[str, Callable[[], None]] = {}
    for name, project in BASELINES.items():
        verify(project, group)
        providers[name] = case.baseline(project)
        if compiled:
            fast = torch.compile(project, dynamic=False)
            verify(fast, group)
            Case(1, width, batch, group).baseline(fast)()  # compiles for each shape
            providers[f"{name}, compiled"] = case.baseline(fast)
    verify(pk.project, group)
    verify(pk.project, group, rows=2048, batch=32)
    limits, copies, gemms = Limits(), [], []
    samples: dict[str, list[float]] = {name: [] for name in (*providers, "forward", "backward", "fused")}
    case.fused()
    for turn in range(rounds):
        best = min((statistics.median(samples[n]) for n in providers), default=0.0) if turn else math.inf
        for name, run in providers.items():
            if turn == 0 or statistics.median(samples[name]) < 5 * best:
                samples[name].append(seconds(run))
        for _ in range(3):  # short against the baselines: more samples cost nothing
            samples["fused"].append(seconds(case.fused))
            outputs = case.fused_forward()
            samples["backward"].append(seconds(lambda outputs=outputs: case.fused_backward(outputs)))
            del outputs
            samples["forward"].append(seconds(case.fused_forward))
            copies.append(limits.copy_bytes_per_second())
            gemms.append(limits.gemm_flops_per_second())
    return {
        "layers": layers,
        "width": width,
        "batch": batch,
        "group": group,
        "seconds": samples,
        "copy_bytes_per_second": copies,
        "gemm_flops_per_second": gemms,
        "bytes": {"forward": case.forward_bytes(), "backward": case.backward_bytes()},
        "multiply_adds": {"forward": case.forward_multiply_adds(), "backward": case.backward_multiply_adds()},
    }


def limit(cell: dict[str, Any], part: str) -> tuple[float, str]:
    """The least time a part could take on this machine, and what sets it."""
    memory = cell["bytes"][part] / statistics.median(cell["copy_bytes_per_second"])
    arithmetic = 2 * cell["multiply_adds"][part] / statistics.median(cell["gemm_flops_per_second"])
    return max((memory, "memory"), (arithmetic, "arithmetic"))


def row(cell: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    median = {name: statistics.median(values) for name, values in cell["seconds"].items() if values}
    baselines = {n: t for n, t in median.items() if n not in ("fused", "forward", "backward")}
    best = min(baselines, key=lambda name: baselines[name])
    parts = {}
    for part in ("forward", "backward"):
        floor, by = limit(cell, part)
        parts[part] = {"seconds": median[part], "of_limit": floor / median[part], "by": by}
    floor = limit(cell, "forward")[0] + limit(cell, "backward")[0]
    return {
        "batch": cell["batch"],
        "group": cell["group"],
        "fused": median["fused"],
        "of_limit": floor / median["fused"],
        "best": best,
        "best_seconds": baselines[best],
        "speedup": baselines[best] / median["fused"],
        **parts,
    }


def table(result: dict[str, Any]) -> str:
    """The stored measurement as a Markdown table."""
    lines = [
        "| B | g | forward, ms | of limit | backward, ms | of limit | both, ms | of limit "
        "| best in torch | ms | ratio |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    rows = [row(cell) for cell in result["cells"]]
    for r in rows:
        parts = " | ".join(
            f"{1e3 * r[part]['seconds']:.1f} | {r[part]['of_limit']:.0%} ({r[part]['by']})"
            for part in ("forward", "backward")
        )
        lines.append(
            f"| {r['batch']} | {r['group']} | {parts} | {1e3 * r['fused']:.1f} | {r['of_limit']:.0%} "
            f"| {r['best']} | {1e3 * r['best_seconds']:.0f} | {r['speedup']:.1f} |"
        )
    speedups = [r["speedup"] for r in rows]
    at_limit = [r["speedup"] / min(r["of_limit"], 1) for r in rows]
    lines.append("")
    lines.append(
        f"Ratio to the best in torch: geometric mean {statistics.geometric_mean(speedups):.1f}, smallest "
        f"{min(speedups):.1f}. At 100 % of the limits everywhere the geometric mean would be "
        f"{statistics.geometric_mean(at_limit):.1f}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("out", type=Path, help="JSON file of the result; an interrupted measurement goes on")
    parser.add_argument("--table", action="store_true", help="only print the table of a stored result")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled baselines out")
    options = parser.parse_args()
    torch._dynamo.config.recompile_limit = 1000
    keep_freed_memory()
    result: dict[str, Any] = {"machine": describe(), "cells": []}
    if options.out.exists():
        stored = json.loads(options.out.read_text())
        if not options.table and stored["machine"] != result["machine"]:
            parser.error(f"OUT must be a new file, or one of this machine and build; {options.out} is of another")
        result = stored
    if not options.table:
        wanted = [(batch, group) for batch in options.batches for group in options.groups]
        done = {(c["batch"], c["group"]) for c in result["cells"]}
        sizes = {(c["layers"], c["width"]) for c in result["cells"]} | {(options.layers, options.width)}
        if len(sizes) > 1:
            parser.error(f"--layers and --width must be those of {options.out}; they would mix {sorted(sizes)}")
        for batch, group in tqdm([cell for cell in wanted if cell not in done], unit=" cells"):
            cell = measure(options.layers, options.width, batch, group, options.rounds, not options.no_compile)
            result["cells"].append(cell)
            write_json(options.out, result)
    print(table(result))


if __name__ == "__main__":
    main()
