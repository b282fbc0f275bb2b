"""The sweeps of docs/compression.md: every arm at every budget, and the results that are stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.sweeps import Losses, Result, Store, Sweep, run_sweeps
from projkern.utils.files import Format

from .arms import ARMS, Arm
from .training import train_arm

FORMAT = Format("projkern compression results", 1, "results of compressions")


def of_cell(results: list[Result], arm: str, budget: int) -> Losses:
    """Losses of an arm at a budget."""
    return {
        (r["exponent"], r["seed"]): r["result"]["loss"] for r in results if (r["arm"], r["tokens"]) == (arm, budget)
    }


def run_arms(
    path: Path,
    head: dict[str, Any],
    source: Path,
    tokens: Path,
    held_out: int,
    workers: int,
    chosen: Callable[[Arm, int], bool],
) -> None:
    """Run what the stored results lack.

    Args:
        path: of the results.
        head: of their file: what they were measured on.
        source, tokens, held_out: as ``train_arm`` takes them.
        workers: processes.
        chosen: which arms at which budgets are run.
    """
    cells = [(arm, budget) for arm in ARMS for budget in arm.budgets if chosen(arm, budget)]
    sweeps = [
        Sweep(
            name=f"{arm.name}, {budget} tokens",
            losses=partial(of_cell, arm=arm.name, budget=budget),
            first=arm.exponent,
            seeds=arm.seeds,
            train=partial(train_arm, arm, budget, source=source, tokens=tokens, held_out=held_out),
        )
        for arm, budget in sorted(cells, key=lambda cell: cell[1])
    ]
    run_sweeps(Store(path, FORMAT, ("arm", "tokens", "exponent", "seed"), head), sweeps, workers)
