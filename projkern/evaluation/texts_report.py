"""The report of an evaluation of a run on tasks of text, and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..language.report import PLACES_OF_T, held_out_section, table_by_task
from ..models.names import with_tildes
from ..utils import markdown
from ..utils.files import write_json, write_text
from ..utils.pictures import save_figure
from .pictures import DPI, NATS, draw_equivalent_sizes, label
from .report import JSON, REPORT, differences_table, equivalent_sizes


def write_report(out: Path, result: dict[str, Any]) -> list[Path]:
    """Write an evaluation into its folder, in place of an older one; returns the files, the report first."""
    report = out / REPORT  # goes first and comes last: without it an evaluation is not whole
    report.unlink(missing_ok=True)
    (out / "equivalent_size.png").unlink(missing_ok=True)
    write_json(out / JSON, result)
    pictures = [out / "by_task.png", out / "matrix.png"]
    _draw_by_task(pictures[0], result)
    _draw_matrices(pictures[1], result)
    if not any("none_because" in size for size in result["equivalent_size"].values()):
        pictures.append(out / "equivalent_size.png")
        draw_equivalent_sizes(pictures[-1], result)
    write_text(report, markdown.wrap(report_text(result)))
    return [report, out / JSON, *pictures]


def report_text(result: dict[str, Any]) -> str:
    """The report, as Markdown."""
    parts = [
        "# Evaluation",
        f"Of the run {result['run']}, on {result['windows']} held-out windows of {result['length']} tokens of each of "
        f"{len(result['tasks'])} tasks, the same for all models; ± one standard error over windows. "
        f"{result['device']}; torch {result['versions']['torch']}, Python {result['versions']['python']}.",
        _losses_table(result),
        f"M is an unconditional model, M̃ takes the task identifier t {PLACES_OF_T[result['conditioning']]}, and P is "
        f"generated for each t from a source, in {_generation(result)}. The last column is the loss with the t of "
        "another task.",
        "## Against their counterparts",
        "Differences of the losses window by window. What makes a window hard for both models cancels, so their error "
        "is smaller than the errors above suggest; it is the one to judge by.",
        differences_table(result),
        "## Equivalent size",
        equivalent_sizes(result),
        "## By task",
        "Bits per byte of text:",
        table_by_task(result["tasks"], {name: row["bits_per_byte"] for name, row in result["models"].items()}),
        "![Bits per byte of each model on each task](by_task.png)",
        "Every task's model on every task's text: a row is the task that t is of, a column the text.",
        "![Loss of every task's model on every task's text](matrix.png)",
        *held_out_section(result),
    ]
    return "\n\n".join(parts) + "\n"


def _generation(result: dict[str, Any]) -> str:
    return ", ".join(f"{1e3 * seconds:.0f} ms ({with_tildes(n)})" for n, seconds in result["generation"].items())


def _losses_table(result: dict[str, Any]) -> str:
    rows = []
    for name, row in result["models"].items():
        other = f"{row['loss_with_another_t']:.3f}" if "loss_with_another_t" in row else ""
        bits = sum(row["bits_per_byte"]) / len(row["bits_per_byte"])
        loss = f"{row['loss']:.3f} ± {row['standard_error']:.3f}"
        rows.append((with_tildes(name), f"{row['parameters']:,}", loss, f"{bits:.3f}", other))
    head = ("model", "parameters", "nats per token", "bits per byte", "with another task's t")
    return markdown.table(head, rows)


def _draw_by_task(path: Path, result: dict[str, Any]) -> None:
    """Bits per byte of each model on each task, tasks sorted by the first model's."""
    tasks, models = result["tasks"], result["models"]
    order = np.argsort(next(iter(models.values()))["bits_per_byte"])
    figure = Figure(figsize=(max(6, 0.4 * len(tasks) + 2), 4.5), layout="constrained")
    axis = figure.subplots()
    for marker, (name, row) in zip("osD^vP*X" * len(models), models.items()):
        axis.plot(np.array(row["bits_per_byte"])[order], marker, label=label(name), markersize=5, alpha=0.8)
    axis.set_xticks(range(len(tasks)), [tasks[i] for i in order], rotation=0 if len(max(tasks, key=len)) < 4 else 60)
    axis.set(ylabel="bits per byte")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    save_figure(path, figure, DPI)


def _draw_matrices(path: Path, result: dict[str, Any]) -> None:
    """Every task's model on every task's text, for each model that takes t, all in one scale of colours."""
    tasks, matrices = result["tasks"], {name: np.array(rows) for name, rows in result["matrices"].items()}
    everything = np.concatenate([matrix.ravel() for matrix in matrices.values()])
    low, high = everything.min(), np.quantile(everything, 0.95)
    side = max(3.2, 0.22 * len(tasks) + 1)
    figure = Figure(figsize=(side * len(matrices) + 1, side + 0.5), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (name, matrix) in zip(axes, matrices.items()):
        image = axis.imshow(matrix, vmin=low, vmax=high, cmap="viridis")
        axis.set_xticks(range(len(tasks)), tasks, fontsize=7, rotation=90)
        axis.set_yticks(range(len(tasks)), tasks, fontsize=7)
        axis.set(title=label(name), xlabel="text of", ylabel="t of")
    figure.colorbar(image, ax=axes, label=NATS, shrink=0.8, extend="max")
    save_figure(path, figure, DPI)
