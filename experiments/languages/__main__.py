"""``python -m experiments.languages``: train the arms that the stored results lack, then write the tables."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from experiments.sweeps import Store, Sweep, run_sweeps
from projkern.utils import command

from .arms import ARMS
from .page import FORMAT, PAGE, RESULTS, losses_of, write_tables
from .training import train_arm, train_base


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.languages", description=__doc__)
    parser.add_argument("--tasks", type=Path, help="folder of the tasks' texts; without it tables are written, no more")
    parser.add_argument("--out", type=Path, default=Path("runs/languages"), help="of the trainings (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="stored results (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--only", default="", help="arms whose name and steps, as in 'M_1/4, 4000 steps', contain this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: all)")
    return parser


def work(options: argparse.Namespace) -> str:
    if options.tasks is not None:
        for seed in options.seeds:
            train_base(options.out, options.tasks, seed, {})
        sweeps = [
            Sweep(
                name=f"{arm.name}, {arm.steps} steps",
                losses=partial(losses_of, arm=arm),
                first=arm.exponent,
                seeds=[seed for seed in arm.seeds if seed in options.seeds],
                train=partial(train_arm, arm, out=options.out, changes={}),
                is_swept=arm.is_swept,
            )
            for arm in ARMS
            if options.only in f"{arm.name}, {arm.steps} steps"
        ]
        run_sweeps(store(options.results), sweeps, options.workers)
    write_tables(options.results)
    return f"Wrote the tables of {options.results} into {PAGE}."


def store(path: Path) -> Store:
    """The file of results."""
    return Store(path, FORMAT, ("arm", "steps", "exponent", "seed"), {})


def main(argv: list[str] | None = None) -> int:
    return command.run(parser(), argv, work)


if __name__ == "__main__":
    sys.exit(main())
