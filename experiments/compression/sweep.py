"""The sweep of every arm: learning rates in powers of two until the best has one on either side, then more seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tqdm import tqdm

from projkern.utils.files import Format, locked, write_text

from .arms import ARMS, SEEDS, Arm
from .training import train_arm

FORMAT = Format("projkern compression results", 1, "results of compressions")
Result = dict[str, Any]


def read_results(path: Path) -> list[Result]:
    """The stored results, none where there is no file; raises InputError where it is damaged."""
    return list(FORMAT.read(path)["results"]) if path.exists() else []


def write_results(path: Path, head: dict[str, Any], results: list[Result]) -> None:
    """Write results, one a line, in an order that does not depend on when each was there."""
    ordered = sorted(results, key=lambda r: (r["arm"], r["tokens"], r["exponent"], r["seed"]))
    lines = ",\n".join(f"    {json.dumps(result)}" for result in ordered)
    text = json.dumps(FORMAT.head | head, indent=2).removesuffix("\n}")
    write_text(path, f'{text},\n  "results": [\n{lines}\n  ]\n}}\n')


def of_cell(results: list[Result], arm: str, budget: int) -> dict[tuple[int, int], float]:
    """Losses of an arm at a budget, by exponent and seed."""
    return {
        (r["exponent"], r["seed"]): r["result"]["loss"] for r in results if (r["arm"], r["tokens"]) == (arm, budget)
    }


def next_training(
    losses: dict[tuple[int, int], float], first: int, seeds: Sequence[int] = SEEDS
) -> tuple[int, int] | None:
    """The exponent and seed that a cell lacks, None once it is whole.

    Args:
        first: exponent that the sweep begins with.
        seeds: the first sweeps; the others run at the best.
    """
    sweep = {exponent: loss for (exponent, seed), loss in losses.items() if seed == SEEDS[0]}
    best = min(sweep, key=lambda e: sweep[e], default=first)
    for exponent in (best, best + 1, best - 1):
        if exponent not in sweep:
            return exponent, SEEDS[0]
    return next(((best, seed) for seed in seeds if (best, seed) not in losses), None)


def summary(losses: dict[tuple[int, int], float]) -> tuple[int, float, float, int] | None:
    """Best exponent, mean and standard deviation over its seeds, and how many these are; None before the sweep."""
    sweep = {exponent: loss for (exponent, seed), loss in losses.items() if seed == SEEDS[0]}
    if not sweep:
        return None
    best = min(sweep, key=lambda e: sweep[e])
    values = [loss for (exponent, _), loss in losses.items() if exponent == best]
    return best, mean(values), stdev(values) if len(values) > 1 else 0.0, len(values)


def run_sweeps(
    path: Path,
    head: dict[str, Any],
    source: Path,
    tokens: Path,
    held_out: int,
    workers: int,
    chosen: Callable[[Arm, int], bool],
) -> None:
    """Run what the stored results lack, several trainings side by side, and store each as it comes.

    Args:
        path: of the results.
        head: of their file: what they were measured on.
        source, tokens, held_out: as ``train_arm`` takes them.
        workers: processes.
        chosen: which arms at which budgets are run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [(arm, budget) for arm in ARMS for budget in arm.budgets if chosen(arm, budget)]
    cells.sort(key=lambda cell: cell[1])
    with (
        locked(path.parent),
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        tqdm(unit=" trainings") as bar,
    ):
        results = read_results(path)
        running: dict[Future[Result], tuple[str, int]] = {}
        while True:
            for arm, budget in cells:
                if len(running) == workers:
                    break
                training = next_training(of_cell(results, arm.name, budget), arm.exponent, arm.seeds)
                if training is None or (arm.name, budget) in running.values():
                    continue
                running[pool.submit(train_arm, arm, budget, *training, source, tokens, held_out)] = arm.name, budget
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                results.append(future.result())
                write_results(path, head, results)
                bar.update()
                bar.set_postfix_str(f"{results[-1]['arm']}: {results[-1]['result']['loss']:.3f}")
