"""From stored samples to the lines of a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from .roofline import PARTS, Cell

Stored = dict[str, Any]


def limits(cell: Stored) -> tuple[float, float]:
    """Bytes copied a second, float32 operations a second."""
    return statistics.median(cell["copy_bytes_per_second"]), statistics.median(cell["gemm_flops_per_second"])


def best_baseline(cell: Stored, part: str) -> tuple[str, float] | None:
    """The fastest form in torch, and its median seconds; None where none was measured."""
    medians = {
        name: statistics.median(parts[part])
        for name, parts in cell["seconds"].items()
        if name not in cell["fused"] and parts.get(part)
    }
    return min(medians.items(), key=lambda item: item[1], default=None)


def row(cell: Stored, provider: str) -> Stored | None:
    """One line of a provider's table; None where it was not measured.

    Under each of "forward", "backward" and "both": ``seconds``, ``of_limit`` (the part of the time that the machine
    would need at the least), ``by`` (which limit), and ``best``, ``best_seconds`` and ``speedup`` for the fastest
    form in torch. A form in torch has its backward by difference: both, less forward. ``extra_memory`` is the most
    memory taken beside inputs and results, as a part of the results; None where it is not known.
    """
    parts = cell["seconds"].get(provider, {})
    if not all(parts.get(part) for part in (*PARTS, "both")):
        return None
    key = Cell.from_json(cell)
    floors = {part: key.least_seconds(part, *limits(cell)) for part in PARTS}
    peak = cell["peak_bytes"].get(provider)
    line: Stored = {"batch": key.batch, "group": key.group, "extra_memory": peak and peak / key.kept_bytes - 1}
    for part in (*PARTS, "both"):
        seconds = statistics.median(parts[part])
        floor = floors[part][0] if part in floors else sum(floor for floor, _ in floors.values())
        line[part] = {"seconds": seconds, "of_limit": floor / seconds, "by": floors.get(part, (0.0, None))[1]}
        best = best_baseline(cell, part) if part != "backward" else _best_backward(cell)
        if best:
            name, best_seconds = best
            line[part] |= {"best": name, "best_seconds": best_seconds, "speedup": best_seconds / seconds}
    return line


def _best_backward(cell: Stored) -> tuple[str, float] | None:
    differences = {
        name: statistics.median(parts["both"]) - statistics.median(parts["forward"])
        for name, parts in cell["seconds"].items()
        if name not in cell["fused"] and parts.get("both") and parts.get("forward")
    }
    return min(differences.items(), key=lambda item: item[1], default=None)


def sections(result: Stored) -> list[tuple[str, Cell, list[Stored]]]:
    """The cells of a result sorted into tables: (backend, what the table's cells share, its cells)."""
    by_table: dict[tuple[str, Cell], list[Stored]] = {}
    for cell in result["cells"]:
        key = Cell.from_json(cell)
        shared = Cell(key.layers, key.width, 0, 0, key.weights, key.outputs)
        for name in cell.get("fused", ()):
            if not name.endswith(", graph"):
                by_table.setdefault((name, shared), []).append(cell)
    order = lambda cell: (cell["batch"], cell["group"])  # noqa: E731
    return [(name, shared, sorted(group, key=order)) for (name, shared), group in by_table.items()]


def table(result: Stored) -> str:
    """The stored measurement as Markdown: a table for each backend, source and dtype, under headings if several."""
    on_card = "gpu" in result["machine"]
    parts = []
    all_sections = sections(result)
    for name, shared, cells in all_sections:
        rows = [line for cell in cells if (line := row(cell, name))]
        if not rows:
            continue
        heading = (
            f"**{name}**: {shared.layers} layers of d = {shared.width:,}, W in {shared.weights}, "
            f"W_s in {shared.outputs}\n\n"
        )
        shown = "\n".join([*_lines(rows, on_card), "", _summary(rows)])
        parts.append(heading + shown if len(all_sections) > 1 else shown)
    skipped = [
        f"{c['layers']} layers of d = {c['width']:,}, W in {c['weights']}, B = {c['batch']}, g = {c['group']}: "
        f"{c['skipped']}"
        for c in result["cells"]
        if "skipped" in c
    ]
    if skipped:
        parts.append("Not measured:\n\n" + "\n".join(f"- {line}" for line in skipped))
    if on_card and all_sections:
        parts.append(_speeds([cell for _, _, cells in all_sections for cell in cells]))
    return "\n\n".join(parts) or "Nothing was measured."


def _speeds(cells: list[Stored]) -> str:
    """A card's measured speeds, and which of them are limits."""
    copy, single, half = (
        statistics.median(value for cell in cells for value in cell[name])
        for name in ("copy_bytes_per_second", "gemm_flops_per_second", "bfloat16_gemm_flops_per_second")
    )
    return (
        f"The limit is the longer of the least traffic at the speed of a large copy ({copy / 1e12:.2f} TB/s, read and "
        f"written) and the multiply-adds at the rate of torch's float32 product without TF32 ({single / 1e12:.1f} "
        f"TFLOP/s); kernels that use tensor cores (bfloat16 product: {half / 1e12:.0f} TFLOP/s) may pass the second."
    )


def _lines(rows: list[Stored], on_card: bool) -> list[str]:
    """Times of a card are short, and its baselines are measured forward alone too; its memory is known."""
    ms = (lambda s: f"{1e3 * s:.3f}") if on_card else (lambda s: f"{1e3 * s:.1f}")
    head = [
        "| B | g | forward, ms | of limit | backward, ms | of limit | both, ms | of limit "
        "| best in torch | ms | ratio |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    if on_card:
        head = [head[0] + " forward alone, ratio | extra memory |", head[1] + "--:|--:|"]
    lines = []
    for r in rows:
        both = r["both"]
        alone = " | ".join(f"{ms(r[part]['seconds'])} | {r[part]['of_limit']:.0%} ({r[part]['by']})" for part in PARTS)
        best_ms = f"{1e3 * both['best_seconds']:.{2 if on_card else 0}f}" if "best" in both else ""
        line = (
            f"| {r['batch']} | {r['group']} | {alone} | {ms(both['seconds'])} | {both['of_limit']:.0%} "
            f"| {both.get('best', 'none could be measured')} | {best_ms} | {_number(both.get('speedup'), '.1f')} |"
        )
        if on_card:
            line += f" {_number(r['forward'].get('speedup'), '.1f')} | {_number(r['extra_memory'], '.0%')} |"
        lines.append(line)
    return head + lines


def _summary(rows: Iterable[Stored]) -> str:
    both = [r["both"] for r in rows if "speedup" in r["both"]]
    if not both:
        return "No form in torch could be measured beside it."
    speedups = [b["speedup"] for b in both]
    at_limit = [b["speedup"] / min(b["of_limit"], 1) for b in both]
    return (
        f"Ratio to the best in torch: geometric mean {statistics.geometric_mean(speedups):.1f}, smallest "
        f"{min(speedups):.1f}. At 100 % of the limits everywhere the geometric mean would be "
        f"{statistics.geometric_mean(at_limit):.1f}."
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
