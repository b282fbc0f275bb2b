"""Has anything become slower? ``python -m benchmarks.gate OLD.json NEW.json``: exits with 1 if so.

Compares two results of one machine, cell by cell and kernel by kernel, by two ratios that a machine's mood changes
little: the speed-up over the best form in torch, and the part of the machine's limit that is reached. Each is a
quotient of two medians, of samples taken in turns. A ratio has become worse if it fell by more than the noise:

    noise² = sum over the four medians of ((p80 − p20) / (2 median))²,   and at least 3 %

where p20 and p80 are of a median's own raw samples. So half the spread of single samples stands for the error of
their median, which is wider than theory says for independent samples: those of one run are not independent. A
series of fewer than three samples has the widest relative spread of its cell's other series.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .roofline import PARTS, Cell
from .tables import Stored, best_baseline, row

FLOOR = 0.03
"""A change up to this is never called worse, however well the samples of each run agree: hours differ too."""


@dataclass(frozen=True)
class Change:
    """One ratio before and after."""

    cell: Cell
    provider: str
    what: str
    old: float
    new: float
    noise: float

    @property
    def worse(self) -> bool:
        return self.new < self.old * (1 - self.noise)

    @property
    def better(self) -> bool:
        return self.new > self.old * (1 + self.noise)


def spread(samples: list[float]) -> float | None:
    """Half the distance from p20 to p80, relative to the median; None for too few samples."""
    if len(samples) < 3:
        return None
    cuts = statistics.quantiles(samples, n=5, method="inclusive")
    return (cuts[3] - cuts[0]) / 2 / statistics.median(samples)


def _widest(cell: Stored) -> float:
    series = [samples for parts in cell["seconds"].values() for samples in parts.values()]
    return max((s for samples in series if (s := spread(samples)) is not None), default=0.0)


def _noise(cell: Stored, series: list[list[float]]) -> float:
    """Of a quotient of medians, in one result, squared."""
    spreads = [spread(samples) for samples in series]
    return sum((_widest(cell) if value is None else value) ** 2 for value in spreads)


def ratios(cell: Stored, provider: str) -> Iterator[tuple[str, float, float]]:
    """(what, value, squared noise) of each ratio of a provider in a cell."""
    line = row(cell, provider)
    if line is None:
        return
    for part in (*PARTS, "both"):
        samples = cell["seconds"][provider][part]
        rates = {"memory": cell["copy_bytes_per_second"], "arithmetic": cell["gemm_flops_per_second"]}
        bounds = [rates[by] for by in {line[p]["by"] for p in ((part,) if part in PARTS else PARTS)}]
        yield f"{part}, of limit", line[part]["of_limit"], _noise(cell, [samples, *bounds])
        best = best_baseline(cell, part) if part != "backward" else None  # a difference is noisier than its parts
        if best:
            best_samples = cell["seconds"][best[0]][part]
            yield f"{part}, ratio to the best in torch", line[part]["speedup"], _noise(cell, [samples, best_samples])


def compare(old: Stored, new: Stored) -> tuple[list[Change], list[str]]:
    """All changes, and what the new result lacks of the old one.

    Raises:
        ValueError: the results are of different machines or protocols, and so not to be compared.
    """
    if card(old["machine"]) != card(new["machine"]):
        raise ValueError(f"these are different machines: {card(old['machine'])} and {card(new['machine'])}")
    if old.get("protocol", 1) != new.get("protocol", 1):
        raise ValueError("these results were measured by different protocols; measure the old revision again")
    new_cells = {Cell.from_json(cell): cell for cell in new["cells"] if "skipped" not in cell}
    changes, missing = [], []
    for old_cell in old["cells"]:
        key = Cell.from_json(old_cell)
        for provider in old_cell.get("fused", ()):
            new_cell = new_cells.get(key)
            values = {what: (value, noise) for what, value, noise in ratios(new_cell, provider)} if new_cell else {}
            old_ratios = list(ratios(old_cell, provider))  # none of a graph: its backward is not measured alone
            if old_ratios and not values:
                missing.append(f"{_label(key)}, {provider}")
            for what, value, noise in old_ratios:
                if what in values:
                    now, noise_now = values[what]
                    changes.append(Change(key, provider, what, value, now, max(FLOOR, math.sqrt(noise + noise_now))))
    return changes, missing


def card(machine: dict[str, Any]) -> dict[str, Any]:
    """What makes two machines the same: not their software."""
    if "gpu" in machine:
        return {key: machine["gpu"].get(key) for key in ("name", "multiprocessors", "memory_bytes")}
    return {key: machine.get(key) for key in ("cpu", "threads", "capability")}


def _label(cell: Cell) -> str:
    return f"{cell.layers} layers, d = {cell.width}, W {cell.weights}, B = {cell.batch}, g = {cell.group}"


def report(changes: list[Change], missing: list[str]) -> str:
    """A table of what changed by more than the noise, and a last line with the verdict."""
    shown = sorted((c for c in changes if c.worse or c.better), key=lambda c: c.new / c.old)
    lines = []
    if shown:
        lines += ["| cell | kernels | ratio | old | new | change | noise | |", "|---|---|---|--:|--:|--:|--:|---|"]
    for c in shown:
        verdict = "WORSE" if c.worse else "better"
        change = c.new / c.old - 1
        lines.append(
            f"| {_label(c.cell)} | {c.provider} | {c.what} | {c.old:.3g} | {c.new:.3g} | {change:+.0%} "
            f"| {c.noise:.0%} | {verdict} |"
        )
    lines += [f"missing: {line}" for line in missing]
    worse, better = sum(c.worse for c in changes), sum(c.better for c in changes)
    noise = [c.noise for c in changes]
    lines.append(
        f"{len(changes)} ratios: {worse} worse, {better} better, the others within the noise, which was "
        f"{statistics.median(noise):.0%} in the middle and {max(noise):.0%} at most."
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if a ratio became worse or a cell is missing, 2 if the results are not to be compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--partial", action="store_true", help="the new result may lack cells and kernels of the old")
    options = parser.parse_args(argv)
    old, new = (json.loads(path.read_text("utf-8")) for path in (options.old, options.new))
    try:
        changes, missing = compare(old, new)
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    if not changes:
        print("refused: the results have no cell in common", file=sys.stderr)
        return 2
    versions = {key: (old["machine"].get(key), new["machine"].get(key)) for key in ("torch", "projkern")}
    for key, (old_version, new_version) in versions.items():
        if old_version != new_version:
            print(f"{key}: {old_version} before, {new_version} now")
    missing = [] if options.partial else missing
    print(report(changes, missing))
    return int(any(change.worse for change in changes) or bool(missing))


if __name__ == "__main__":
    sys.exit(main())
