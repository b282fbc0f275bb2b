"""``python -m experiments.languages``: train the arms that the stored results lack, then write the tables."""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from experiments.compression.sweep import next_training
from projkern.utils import command
from projkern.utils.files import Format, locked, write_text

from .arms import ARMS, Arm
from .page import PAGE, RESULTS, losses_of, read_results, write_tables
from .training import Result, train_arm, train_base

FORMAT = Format("projkern language results", 1, "results on tasks of text")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.languages", description=__doc__)
    parser.add_argument("--tasks", type=Path, help="folder of the tasks' texts; without it tables are written, no more")
    parser.add_argument("--out", type=Path, default=Path("runs/languages"), help="of the trainings (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="stored results (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--only", default="", help="arms whose name contains this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: all)")
    return parser


def work(options: argparse.Namespace) -> str:
    if options.tasks is not None:
        for seed in options.seeds:
            train_base(options.out, options.tasks, seed, {})
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with locked(options.results.parent):
            _run(options, [arm for arm in ARMS if options.only in arm.name])
    write_tables(options.results)
    return f"Wrote the tables of {options.results} into {PAGE}."


def _run(options: argparse.Namespace, arms: list[Arm]) -> None:
    """Train what is missing, several side by side, and store each result as it comes."""
    results = read_results(options.results)
    running: dict[Future[Result], Arm] = {}
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool, tqdm(unit=" trainings") as bar:
        while True:
            for arm in arms:
                if len(running) == options.workers:
                    break
                seeds = [seed for seed in arm.seeds if seed in options.seeds]
                training = next_training(losses_of(results, arm), arm.exponent, seeds)
                if training is not None and arm not in running.values():
                    running[pool.submit(train_arm, arm, *training, options.out, {})] = arm
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                results.append(future.result())
                _write(options.results, results)
                bar.update()
                bar.set_postfix_str(results[-1]["arm"])


def _write(path: Path, results: list[Result]) -> None:
    """One result a line, in an order that does not depend on when each was there."""
    ordered = sorted(results, key=lambda r: (r["arm"], r["steps"], r["exponent"], r["seed"]))
    lines = ",\n".join(f"    {json.dumps(result)}" for result in ordered)
    text = json.dumps(FORMAT.head, indent=2).removesuffix("\n}")
    write_text(path, f'{text},\n  "results": [\n{lines}\n  ]\n}}\n')


def main(argv: list[str] | None = None) -> int:
    return command.run(parser(), argv, work)


if __name__ == "__main__":
    sys.exit(main())
