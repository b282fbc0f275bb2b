"""The tables of benchmarks/results/cpu_sampling.json, for docs/sampling.md."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from projkern.utils import markdown

from . import attention

Result = dict[str, Any]


def models(result: Result) -> str:
    """Sizes; seconds of a step by batch and depth; tokens a second of whole images."""
    described = result["models"]
    largest = described["M_1"]["parameters"]
    head: tuple[str, ...] = ("model", "parameters", "fewer than M_1", "weights, MB", "keys and values of an image, MB")
    rows = []
    for name, row in described.items():
        fewer = "" if name == "M_1" else f"{100 * (1 - row['parameters'] / largest):.1f} %"
        sizes = (f"{row['weight_bytes'] / 1e6:.1f}", f"{row['cache_bytes'] / 1e6:.1f}")
        rows.append((name, f"{row['parameters']:,}", fewer, *sizes))
    tables = [markdown.table(head, rows)]
    head, rows = ("images at once", "tokens before", *(f"{name}, ms" for name in described)), []
    ratios: dict[str, list[float]] = {name: [] for name in described}
    for row in result["steps"]:
        cells = []
        for name, seconds in row["seconds"].items():
            ratio = median(a / b for a, b in zip(row["seconds"]["M_1"], seconds))
            ratios[name].append(ratio)
            cells.append(f"{1e3 * median(seconds):.1f}" + ("" if name == "M_1" else f" ({ratio:.1f}×)"))
        rows.append((str(row["batch"]), str(row["depth"]), *cells))
    tables.append(markdown.table(head, rows, left=0))
    head, rows = ("images at once", *(f"{name}, tokens/s" for name in described)), []
    for batch in dict.fromkeys(row["batch"] for row in result["steps"]):
        steps = [row for row in result["steps"] if row["batch"] == batch]
        cells = []
        for name in described:
            first, middle, last = (median(row["seconds"][name]) for row in steps)
            cells.append(f"{batch / ((first + 2 * middle + last) / 4):,.0f}")
        rows.append((str(batch), *cells))
    tables.append(markdown.table(head, rows, left=0))
    fewer = 100 * (1 - described["P_1/4"]["parameters"] / largest)
    rounds = len(result["steps"][0]["seconds"]["M_1"])
    return "\n\n".join(tables) + (
        f"\n\nP_1/4 is at least **{min(ratios['P_1/4']):.1f} times** as fast as M_1, with **{fewer:.1f} %** fewer "
        f"parameters. A step of the batch, in windows of {result['window']} steps; medians of {rounds} interleaved "
        "rounds, the ratio that of each round. Tokens per second of all images together, over a whole one, by the "
        "times at the three depths, the middle one counted twice. Decoded logits agreed with the whole sequence's to "
        f"{result['largest_error']:.0e} of the largest. {_made_on(result)}"
    )


def forms(result: Result) -> str:
    """A different t for each sequence."""
    lines = [
        "| g | tasks | models, MB | materialised: made in, s | step, ms | predicted | factored: made in, s | step, ms "
        "| predicted | auto took | made in, s |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    for row in result["forms"]:
        cells = [f"{row['group']}", f"{row['tasks']}", f"{row['weight_bytes'] / 1e6:,.0f}"]
        for form in ("materialised", "factored"):
            step, predicted = median(row["seconds"][form]), row["predicted"][form]
            cells += [f"{row['made'][form]:.2f}", f"{1e3 * step:.1f}", f"{1e3 * predicted:.1f}"]
        lines.append("| " + " | ".join([*cells, row["auto"], f"{row['made']['auto']:.2f}"]) + " |")
    return "\n".join(lines) + f"\n\nMedians, after {result['forms'][0]['depth']} tokens. {_made_on(result)}"


def one_query(result: Result) -> str:
    """Layouts of the cache."""
    names = list(result["one_query"][0]["seconds"])
    head = ("head width", "sequences", "positions", *(f"{name}, µs" for name in names))
    rows = []
    for row in result["one_query"]:
        best = min(row["seconds"].values())
        cells = [f"{'**' * (v == best)}{1e6 * v:.0f}{'**' * (v == best)}" for v in row["seconds"].values()]
        rows.append((str(row["width"]), str(row["batch"]), str(row["positions"]), *cells))
    slower = {
        name: math.exp(
            sum(math.log(row["seconds"][name] / row["seconds"]["products"]) for row in result["one_query"])
            / len(result["one_query"])
        )
        for name in names[1:]
    }
    multiples = ", ".join(f"{name} {ratio:.2f}" for name, ratio in slower.items())
    rates = []
    for row in result["one_query"]:
        if (row["batch"], row["positions"]) == (8, attention.POSITIONS):
            size = 2 * 4 * row["batch"] * attention.HEADS * row["positions"] * row["width"]
            rates.append(f"{size / row['seconds']['products'] / 1e9:.0f} GB/s at width {row['width']}")
    return markdown.table(head, rows, left=0) + (
        f"\n\nTime as a multiple of the first layout's, geometric means: {multiples}. What the first reads of keys "
        f"and values of 1024 positions of 8 sequences: {', '.join(rates)}. {_made_on(result)}"
    )


def sequences(result: Result) -> str:
    """Attention of the whole sequence, forward and backward."""
    head = ("head width", "sequences", "length", "torch's, ms", "GFLOP/s", "ours, ms", "GFLOP/s")
    rows = []
    for row in result["sequence"]:
        # Two products forward, five backward, half of each below the diagonal; two operations a multiply-add.
        work = 7 * row["batch"] * attention.HEADS * row["length"] ** 2 * row["width"]
        cells = [cell for s in row["seconds"].values() for cell in (f"{1e3 * s:.1f}", f"{work / s / 1e9:.1f}")]
        rows.append((str(row["width"]), str(row["batch"]), str(row["length"]), *cells))
    return markdown.table(head, rows, left=0) + f"\n\n{_made_on(result)}"


def _made_on(result: Result) -> str:
    machine, load = result["machine"], result["load"]
    return (
        f"{machine['cpu']}, one thread by its own clock, {machine['capability']}; torch {machine['torch']}, float32. "
        f"The machine was shared: load {load['before'][0]:.1f} at the start and {load['after'][0]:.1f} at the end, on "
        f"{machine['cores']} cores."
    )
