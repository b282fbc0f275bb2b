"""A picture of one stored result: ``python -m benchmarks.plot RESULT.json OUT.png``.

A row of two panels for each backend, source and dtype: how many times faster than the best form in torch, and which
part of the machine's limit is reached. One result is of one machine, so a picture never mixes two.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from .roofline import PARTS
from .tables import Stored, row, sections

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
"""Of Okabe and Ito: told apart by colour-blind readers, and in grey by their lightness."""
PART_MARKERS = {"forward": ("^", -1), "backward": ("v", 0), "forward + backward": ("o", 1)}
"""Part -> its mark, and on which side of its cell's place it stands."""


def title(machine: dict[str, Any]) -> str:
    """What this is, the machine, and the versions."""
    gpu = machine.get("gpu")
    if gpu:
        versions = [f"driver {gpu['driver']}", f"CUDA {gpu['cuda']}", f"triton {gpu['triton']}"]
        where = gpu["name"]
    else:
        versions = []
        where = f"{machine['cpu']}, {machine['threads']} threads, {machine['capability']}"
    versions = [f"torch {machine['torch']}", f"projkern {machine['projkern']}", *versions]
    return f"Projecting all weights of a source for B tasks, to 1/g of its width: {where}\n{', '.join(versions)}"


def plot(result: Stored, out: Path) -> None:
    """Write the picture; raises ValueError where the result holds nothing to draw."""
    tables = [
        (name, shared, rows)
        for name, shared, cells in sections(result)
        if (rows := [line for cell in cells if (line := row(cell, name)) and "speedup" in line["both"]])
    ]
    if not tables:
        raise ValueError("the result holds no cell with both our kernels and a form in torch")
    figure, panels = plt.subplots(
        len(tables), 2, figsize=(11, 1.2 + 3.6 * len(tables)), squeeze=False, layout="constrained"
    )
    figure.suptitle(title(result["machine"]), fontsize=11)
    for (name, shared, rows), (left, right) in zip(tables, panels):
        what = f"backend {name}: {shared.layers} layers, d = {shared.width:,}; W {shared.weights}, W_s {shared.outputs}"
        plot_speedups(left, rows)
        left.set_title(f"Times faster than the best form in torch, forward + backward\n{what}", fontsize=9, loc="left")
        plot_limits(right, rows)
        how = "time at the measured copy and float32 speeds / time taken"
        right.set_title(f"Part of the machine's limit that is reached:\n{how}", fontsize=9, loc="left")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _places(rows: list[Stored]) -> tuple[list[int], list[int], dict[tuple[int, int], float]]:
    """Batches, groups, and where each cell stands: groups side by side above their batch."""
    batches = sorted({r["batch"] for r in rows})
    groups = sorted({r["group"] for r in rows})
    step = 0.8 / len(groups)
    places = {
        (batch, group): i + (j - (len(groups) - 1) / 2) * step
        for i, batch in enumerate(batches)
        for j, group in enumerate(groups)
    }
    return batches, groups, places


def plot_speedups(axes: Axes, rows: list[Stored]) -> None:
    """Bars on a logarithmic axis, forward and backward together."""
    batches, groups, places = _places(rows)
    for color, group in zip(COLORS, groups):
        own = [r for r in rows if r["group"] == group]
        x = [places[r["batch"], group] for r in own]
        heights = [r["both"]["speedup"] for r in own]
        bars = axes.bar(x, [h - 1 for h in heights], 0.76 / len(groups), bottom=1, color=color, label=f"g = {group}")
        axes.bar_label(bars, [f"{h:.1f}" for h in heights], fontsize=8, padding=1)
    axes.set_yscale("log")
    largest = max(r["both"]["speedup"] for r in rows)
    lowest = min(1.0, *(0.8 * r["both"]["speedup"] for r in rows))
    axes.set_ylim(lowest, 2 * max(largest, 2))
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if lowest <= tick < 1.6 * largest]
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(batches)), [f"B = {batch}" for batch in batches])
    axes.legend(fontsize=8, frameon=False, ncols=len(groups), loc="upper left")
    _tidy(axes)


def plot_limits(axes: Axes, rows: list[Stored]) -> None:
    """A mark for each part of each cell."""
    batches, groups, places = _places(rows)
    step = 0.2 / len(groups)
    highest = 0.0
    for label, (marker, side) in PART_MARKERS.items():
        part, filled = (label, False) if label in PARTS else ("both", True)
        for color, group in zip(COLORS, groups):
            own = [r for r in rows if r["group"] == group]
            fractions = [r[part]["of_limit"] for r in own]
            highest = max(highest, *fractions)
            axes.plot(
                [places[r["batch"], group] + side * step for r in own],
                fractions,
                linestyle="none",
                marker=marker,
                markersize=7,
                color=color,
                markerfacecolor=color if filled else "white",
                markeredgewidth=1.6,
            )
        axes.plot([], [], marker, color="grey", markerfacecolor="grey" if filled else "white", label=label)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_ylim(0, max(1.2, 1.2 * highest))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    labels = [f"g={g}" for g in groups]
    axes.set_xticks([places[b, g] for b in batches for g in groups], labels * len(batches), fontsize=7.5)
    for i, batch in enumerate(batches):
        axes.annotate(f"B = {batch}", (i, 0), (0, -22), "data", "offset points", ha="center", va="top", fontsize=10)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper left")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    try:
        plot(json.loads(options.result.read_text("utf-8")), options.out)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
