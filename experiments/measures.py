"""What is measured of a trained model besides its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projkern.data import SynthMNIST
from projkern.data.stream import Images
from projkern.data.tokens import TokenImages
from projkern.evaluation.sweep import with_component
from projkern.training.losses import another_task, evaluate
from projkern.training.stages import Model

from .image_losses import DECIMALS

T_SCALES = tuple(k / 4 for k in range(9))
SWEEP_IMAGES = 192


def measure(model: Model, data: Images, images: int) -> dict[str, Any]:
    """The loss on the first ``images`` held-out images, as a whole and of each, and what the data allow besides."""
    if isinstance(data, TokenImages):
        images = min(images, data.count)  # the stream would begin again, and count images twice
    losses = evaluate(model.predict, data, images)
    row = summary(losses.by_image) | {"parameters": model.parameters}
    if model.operator_parameters is not None:
        row["operator_parameters"] = model.operator_parameters
    if model.takes_task:
        row["loss_with_another_t"] = round(evaluate(model.predict, data, images, another_task).mean, 5)
        if isinstance(data, SynthMNIST):
            row["by_scale"] = by_scale(model, data, images)
    if isinstance(data, TokenImages):
        row["by_part"] = by_part(losses.by_image, data)
    return row


def by_scale(model: Model, data: SynthMNIST, images: int) -> list[list[float]]:
    """Loss against t_scale from 0 to 2 (Figure 4), on images whose textures have that scale: [t_scale, loss, error]."""
    rows = []
    for value in T_SCALES:
        losses = evaluate(model.predict, data, min(images, SWEEP_IMAGES), with_component("scale", value))
        rows.append([value, round(losses.mean, 5), round(losses.standard_error, 5)])
    return rows


def by_part(by_image: Tensor, data: TokenImages) -> dict[str, dict[str, Any]]:
    """Losses (N,) of the first N held-out images, by each part of the classes (see ``held_out_parts``)."""
    parts = held_out_parts(data.folder)
    return {name: summary(by_image[is_in[: len(by_image)]]) for name, is_in in parts.items()}


def held_out_parts(folder: Path) -> dict[str, Tensor]:
    """Which held-out images (n,), in the stream's order, are of C1 and of C2 by each split (appendix D.2).

    Args:
        folder: of tokenised images.
    """
    data = TokenImages(folder, "validation")
    labels = torch.cat([data.labels(step) for step in range(-(-data.count // data.batch_size))])[: data.count]
    last = int(TokenImages(folder, "train").all_labels.max())  # the held-out images may lack the last classes
    parts = {}
    for split, in_c1 in first_parts(labels, last).items():
        parts[f"{split}, C1"], parts[f"{split}, C2"] = in_c1, ~in_c1
    return parts


def first_parts(labels: Tensor, last: int) -> dict[str, Tensor]:
    """Which labels (n,) are of C1 among the classes 0 .. ``last``: the first half ("halves"), even ones ("mod 2")."""
    return {"halves": labels < (last + 1) // 2, "mod 2": labels % 2 == 0}


def summary(by_image: Tensor) -> dict[str, Any]:
    """Losses (N,) as the results hold them."""
    error = by_image.std() / len(by_image) ** 0.5
    return {
        "loss": round(by_image.mean().item(), 5),
        "standard_error": round(error.item(), 5),
        "by_image": [round(loss, DECIMALS) for loss in by_image.tolist()],
    }
