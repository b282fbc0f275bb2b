"""Pictures of images that models draw, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .files import write_atomically

PER_LINE = 8
"""Samples of one task in a line of ``beside_tasks``, and the most columns of a line of tasks."""
INCH = 1.1
"""Side of an image."""


def in_rows(path: Path, rows: Sequence[tuple[str, Tensor]], title: str) -> None:
    """Write a grid of images.

    Args:
        path: of the PNG file.
        rows: a label and as many images (n, 3, S, S) in [-1, 1] for each row.
        title: above all.
    """
    columns = len(rows[0][1])
    figure = Figure(figsize=(INCH * columns + 0.7, INCH * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (label, images) in zip(axes, rows):
        for axis, image in zip(row, _pixels(images)):
            _show(axis, image)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11)
    figure.suptitle(title, fontsize=11)
    save_figure(path, figure)


def beside_tasks(path: Path, samples: Tensor, meaning: Tensor | None, title: str) -> None:
    """Write the samples of each task, at the right of what the task means.

    Args:
        path: of the PNG file.
        samples: (U, k, 3, S, S) in [-1, 1], k images for each of U tasks.
        meaning: (U, 3, S, S) in [-1, 1], the texture or image of each task; None where they are not known.
        title: above all.
    """
    tasks, each = samples.shape[:2]
    wide = min(each, PER_LINE)
    lines = -(-each // wide)
    first = 0 if meaning is None else 1
    across = max(1, min(tasks, PER_LINE // (first + wide)))
    down = -(-tasks // across)
    label, head, edge = 0.25, 0.4, 0.1  # inches: above each block, above all, at the edges
    width = across * (first + wide) * INCH + 2 * edge
    height = down * (lines * INCH + label) + head + edge
    figure = Figure(figsize=(width, height))
    blocks = figure.add_gridspec(
        down,
        across,
        left=edge / width,
        right=1 - edge / width,
        bottom=edge / height,
        top=1 - (head + label) / height,
        wspace=0.15 / (first + wide),
        hspace=label / (lines * INCH),
    )
    for k, images in enumerate(samples):
        grid = blocks[divmod(k, across)].subgridspec(lines, first + wide, wspace=0.04, hspace=0.04)
        for i, image in enumerate(_pixels(images)):
            line, column = divmod(i, wide)
            _show(figure.add_subplot(grid[line, first + column]), image)
        if meaning is not None:
            axis = figure.add_subplot(grid[0, 0])
            _show(axis, _pixels(meaning[k : k + 1])[0])
            axis.set_title(f"t {k} means", fontsize=9, loc="left", pad=2)
    figure.suptitle(title, fontsize=11, y=1 - edge / height, va="top")
    save_figure(path, figure)


def _pixels(images: Tensor) -> np.ndarray:
    """(n, 3, S, S) in [-1, 1] -> (n, S, S, 3) in [0, 1]"""
    pixels: np.ndarray = ((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def _show(axis: Axes, image: np.ndarray) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def save_figure(path: Path, figure: Figure, dpi: int = 120) -> None:
    """Write a figure as a PNG file, atomically."""
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=dpi, format="png"))
