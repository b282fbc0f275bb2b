"""``python -m experiments.synthmnist_figure``: draw the picture of docs/synthmnist.md, after the paper's Figure 3."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from projkern.data.digits import Digits, load_digits
from projkern.data.synthmnist import TASK_DIM, SynthMNIST, synthmnist_palette
from projkern.utils.errors import InputError
from projkern.utils.files import write_atomically

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "synthmnist.png"
_CELL, _GAP = 96, 6  # screen pixels of one image, and between images
_LEFT, _TOP, _BLOCK = 164, 40, 30  # margins for labels, and between blocks of columns or rows
_COLUMNS = 4  # digits of each task
_LABELS = (
    "stripes\n" r"$\cos\,\tilde{x}$",
    "rings\n" r"$\cos\,\tilde{\rho}$",
    "cells\n" r"$\cos(10\,g\,t_{13} + 2\,t_{14})$",
)  # of the texture classes


def gallery(
    path: str | os.PathLike[str],
    digits: Digits | None = None,
    rows_per_class: int = 3,
    blocks: tuple[tuple[int, int], ...] = ((32, 0), (32, 512), (16, 64)),
    seed: int = 0,
) -> None:
    """Draw SynthMNIST: one row for each task identifier, several digits of it side by side.

    Args:
        path: image file to write (.png).
        digits: digits to draw; by default scikit-learn's.
        rows_per_class: task identifiers of each of the three texture classes.
        blocks: (size, colours) of each group of columns; 0 colours: not quantised. The size divides 96.
        seed: of task identifiers, digits and palettes.

    Raises:
        InputError: a size that does not divide 96, or another argument out of range.
    """
    for size, _ in blocks:
        if size < 4 or _CELL % size:
            raise InputError(f"blocks has size {size}; it must be at least 4 and divide {_CELL}")
    if rows_per_class < 1:
        raise InputError(f"rows_per_class is {rows_per_class}; it must be at least 1")
    digits = load_digits() if digits is None else digits
    t = _tasks(rows_per_class, seed).repeat_interleave(_COLUMNS, 0)
    step = _CELL + _GAP
    block_width, block_height = _COLUMNS * step - _GAP, rows_per_class * step - _GAP
    width = _LEFT + len(blocks) * (block_width + _BLOCK) - _BLOCK + _GAP
    height = _TOP + len(_LABELS) * (block_height + _BLOCK // 2) - _BLOCK // 2 + _GAP
    top = [_TOP + k * (block_height + _BLOCK // 2) for k in range(len(_LABELS))]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    canvas = torch.ones(height, width, 3)

    for b, (size, colors) in enumerate(blocks):
        palette = synthmnist_palette(size, colors or 2, digits, seed)
        data = SynthMNIST(size, palette, digits, seed, "validation", len(t))  # without flips
        images = data.images(0, t)[0]
        if colors:
            images = palette.decode(palette.encode(images))
        images = images.repeat_interleave(_CELL // size, -1).repeat_interleave(_CELL // size, -2)
        left = _LEFT + b * (block_width + _BLOCK)
        for i, image in enumerate(images):
            row, column = divmod(i, _COLUMNS)
            y, x = top[row // rows_per_class] + row % rows_per_class * step, left + column * step
            canvas[y : y + _CELL, x : x + _CELL] = (image.movedim(0, -1) + 1) / 2
        label = f"{size}×{size}, " + (f"{colors} colours" if colors else "before quantisation")
        figure.text((left + block_width / 2) / width, 1 - _TOP / 2 / height, label, ha="center", va="center")
    for y, label in zip(top, _LABELS):
        figure.text(_LEFT / 2 / width, 1 - (y + block_height / 2) / height, label, ha="center", va="center")

    figure.figimage(canvas.numpy())
    write_atomically(Path(path), lambda partial: figure.savefig(partial, dpi=100, format="png"))


def _tasks(per_class: int, seed: int) -> Tensor:
    """The first ``per_class`` random task identifiers of each texture class, by class: (3 per_class, 18)."""
    t = torch.rand(1000 * per_class, TASK_DIM, generator=torch.Generator().manual_seed(seed))
    kind = t[:, 10:13].argmax(1)
    return torch.cat([t[kind == k][:per_class] for k in range(3)])


if __name__ == "__main__":
    gallery(PICTURE)
    print(f"Wrote {PICTURE}.")
