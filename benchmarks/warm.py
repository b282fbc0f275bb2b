"""Compile the baselines ahead of a measurement, several at a time: ``python -m benchmarks.warm --device cuda``.

torch keeps what it compiles on the disk, so ``benchmarks.compare`` finds it there and spends its time on measuring.
Cells are taken in the order in which they will be measured; ending this early loses nothing but the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from torch._dynamo.utils import counters

from . import providers
from .case import Case
from .roofline import Cell, standard


def compile_one(name: str, stacked: bool, cell: Cell, device: str) -> tuple[str, int, int]:
    """Run a compiled baseline once, forward and backward; returns its name, and how often the disk had it, or not."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 1000
    counters.clear()
    provider = providers.baseline(name, stacked, compiled=True)
    provider.both(Case(cell if stacked else dataclasses.replace(cell, layers=1), device))
    counts = counters["inductor"]
    return provider.name, counts["fxgraph_cache_hit"], counts["fxgraph_cache_miss"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warm", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--jobs", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 4)))
    parser.add_argument("--cells", type=int, default=None, help="the first so many only")
    options = parser.parse_args(argv)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # one process a task is parallel enough
    tasks = list(itertools.product(standard(options.device)[: options.cells], providers.COMPILED, (False, True)))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        running = {
            pool.submit(compile_one, name, stacked, cell, options.device): (name, cell) for cell, name, stacked in tasks
        }
        for done, future in enumerate(as_completed(running), 1):
            name, cell = running[future]
            error = future.exception()
            print(f"{done}/{len(tasks)} {cell} {name}: {error or future.result()}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
