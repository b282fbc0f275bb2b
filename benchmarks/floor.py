"""Are the kernels still as much faster than torch? ``python -m benchmarks.floor``: exits with 1 if not.

Two small cells in ten seconds: forward and backward of our kernels, and of three forms in torch that are fast at this
size without torch.compile, in turns. The ratio of their medians must not fall below a floor, two thirds of the smallest
in 13 runs on two cores, six of them beside two other busy processes. For the whole table:
``python -m benchmarks.compare NEW.json``, then ``python -m benchmarks.gate OLD.json NEW.json``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial

from .case import Case
from .machine import Machine
from .providers import backends, baseline, fused
from .roofline import Cell

FLOORS = {Cell(2, 512, 1, 4): 0.75, Cell(2, 512, 8, 4): 1.9}
FORMS = ("bmm by hand", "bmm and dot", "bmm and sum")
ROUNDS = 9


def ratio(cell: Cell) -> float:
    """Median seconds of the fastest form in torch over those of the kernels."""
    case, machine = Case(cell), Machine()
    providers = [fused(backends("cpu")[0]), *(baseline(form, stacked=True) for form in FORMS)]
    seconds: dict[str, list[float]] = {provider.name: [] for provider in providers}
    for k in range(ROUNDS + 1):  # the first warms up
        for provider in providers:
            seconds[provider.name] += [machine.wall(partial(provider.both, case))] * (k > 0)
    ours, *others = map(statistics.median, seconds.values())
    return min(others) / ours


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__).parse_args(argv)
    if not backends("cpu"):
        print("floor: the compiled CPU kernels are not here; python -m projkern.env says why", file=sys.stderr)
        return 2
    is_below = False
    for cell, floor in FLOORS.items():
        speedup = ratio(cell)
        is_below |= speedup < floor
        verdict = "BELOW" if speedup < floor else "not below"
        print(f"B = {cell.batch}, g = {cell.group}: {speedup:.2f} times the best of these forms, {verdict} {floor:.2f}")
    return int(is_below)


if __name__ == "__main__":
    sys.exit(main())
