"""How good a model is on held-out images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..data import SynthMNIST
from .stages import Predict


@torch.no_grad()
def evaluate(
    predict: Predict, data: SynthMNIST, images: int, *, another_task: bool = False
) -> tuple[float, float]:
    """Mean loss over the first ``images`` images of a data stream.

    Args:
        predict: tokens (B, T), t (B, 18) -> logits (B, T, vocabulary).
        another_task: give each image the t of the one before it, to see how much a model makes of its t.

    Returns:
        Nats per token, and the standard error of that mean over images.
    """
    losses: list[float] = []
    for step in range(math.ceil(images / data.batch_size)):
        tokens, t = data.batch(step)
        t = t.roll(1, 0) if another_task else t
        loss = F.cross_entropy(predict(tokens, t).float().mT, tokens, reduction="none")  # [B, T]
        losses += loss.mean(1).tolist()
    values = torch.tensor(losses[:images], dtype=torch.float64)
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()
