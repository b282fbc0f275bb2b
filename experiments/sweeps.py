"""Sweeps of learning rates: in powers of two until the best has one on either side, then more seeds at the best."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tqdm import tqdm

from projkern.utils.files import Format, locked, write_text

Result = dict[str, Any]
Losses = dict[tuple[int, int], float]
"""By the exponent of the learning rate and the seed."""
SWEEPING_SEED = 0


@dataclass(frozen=True)
class Sweep:
    """The trainings of one arm.

    Args:
        name: shown beside the bar.
        losses: of the trainings that a list of results holds.
        first: exponent that the sweep begins with.
        seeds: 0 sweeps; the others run at the best.
        train: runs the training of an exponent and a seed; a worker process calls it.
        is_swept: whether the learning rate is; else ``first`` is the only one.
    """

    name: str
    losses: Callable[[list[Result]], Losses]
    first: int
    seeds: Sequence[int]
    train: Callable[[int, int], Result]
    is_swept: bool = True


@dataclass(frozen=True)
class Store:
    """A file of results, one a line.

    Args:
        path: of the file.
        format: of the file.
        order: of the results, by these keys.
        head: what else the file says: what they were measured on.
    """

    path: Path
    format: Format
    order: Sequence[str]
    head: dict[str, Any]

    def read(self) -> list[Result]:
        """The stored results; see ``read_results``."""
        return read_results(self.path, self.format)

    def write(self, results: list[Result]) -> None:
        """Write results, in an order that does not depend on when each was there."""
        ordered = sorted(results, key=lambda r: tuple(r[key] for key in self.order))
        lines = ",\n".join(f"    {json.dumps(result)}" for result in ordered)
        text = json.dumps(self.format.head | self.head, indent=2).removesuffix("\n}")
        write_text(self.path, f'{text},\n  "results": [\n{lines}\n  ]\n}}\n')


def read_results(path: Path, format: Format) -> list[Result]:
    """The stored results, none where there is no file; raises InputError where it is damaged."""
    return list(format.read(path)["results"]) if path.exists() else []


def next_training(losses: Losses, first: int, seeds: Sequence[int], is_swept: bool = True) -> tuple[int, int] | None:
    """The exponent and seed that a sweep lacks, None once it is whole; its arguments are ``Sweep``'s."""
    sweep = {exponent: loss for (exponent, seed), loss in losses.items() if seed == SWEEPING_SEED}
    best = min(sweep, key=lambda e: sweep[e], default=first)
    for exponent in (best, best + 1, best - 1) if is_swept else (best,):
        if exponent not in sweep:
            return exponent, SWEEPING_SEED
    return next(((best, seed) for seed in seeds if (best, seed) not in losses), None)


def summary(losses: Losses) -> tuple[int, float, float, int] | None:
    """Best exponent, mean and standard deviation over its seeds, and how many these are; None before the sweep."""
    sweep = {exponent: loss for (exponent, seed), loss in losses.items() if seed == SWEEPING_SEED}
    if not sweep:
        return None
    best = min(sweep, key=lambda e: sweep[e])
    values = [loss for (exponent, _), loss in losses.items() if exponent == best]
    return best, mean(values), stdev(values) if len(values) > 1 else 0.0, len(values)


def run_sweeps(store: Store, sweeps: Sequence[Sweep], workers: int) -> None:
    """Run what the stored results lack, several trainings side by side, and store each as it comes."""
    store.path.parent.mkdir(parents=True, exist_ok=True)
    with (
        locked(store.path.parent),
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        tqdm(unit=" trainings") as bar,
    ):
        results = store.read()
        running: dict[Future[Result], str] = {}
        while True:
            for sweep in sweeps:
                if len(running) == workers:
                    break
                training = next_training(sweep.losses(results), sweep.first, sweep.seeds, sweep.is_swept)
                if training is not None and sweep.name not in running.values():
                    running[pool.submit(sweep.train, *training)] = sweep.name
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                bar.set_postfix_str(running.pop(future))
                results.append(future.result())
                store.write(results)
                bar.update()
