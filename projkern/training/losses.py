"""Losses: those that training minimises, and those of each held-out image and position that judge a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.stream import Images, Sequences
from ..utils.errors import InputError

Predict = Callable[[Tensor, Tensor], Tensor]
"""Tokens (B, T) and t (B, task_dim) -> logits (B, T, vocabulary)."""

Batches = Callable[[Any, int], tuple[Tensor, Tensor]]
"""From a data stream and a step to tokens (B, T) and the t (B, task_dim) that a model gets with them."""


@dataclass(frozen=True)
class Losses:
    """Losses of one model on N images, nats per token; those of two models on the same images can be subtracted.

    Args:
        by_image: (N,) float64, mean over an image's tokens.
        by_position: (T,) float64, mean over images.
    """

    by_image: Tensor
    by_position: Tensor

    @property
    def mean(self) -> float:
        return self.by_image.mean().item()

    @property
    def standard_error(self) -> float:
        """Of the mean, over images. Of a difference, the paired one: how hard an image is for both models cancels."""
        return (self.by_image.std() / math.sqrt(len(self.by_image))).item()

    def __sub__(self, other: Losses) -> Losses:
        return Losses(self.by_image - other.by_image, self.by_position - other.by_position)


def as_drawn(data: Sequences, step: int) -> tuple[Tensor, Tensor]:
    """Each image with its own t."""
    return data.batch(step)


def another_task(data: Images, step: int) -> tuple[Tensor, Tensor]:
    """Each image with the t of the one before it, to see how much a model uses its t."""
    tokens, t = data.batch(step)
    return tokens, t.roll(1, 0)


def nats_per_token(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean loss of next-token prediction, nats per token; every token is a target (paper, Sec. 3)."""
    return F.cross_entropy(_precise(logits).flatten(0, 1), tokens.flatten())


def nats_from(teacher: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of predictions from a teacher's, which they do not train, nats per token."""
    target, log_probs = (F.log_softmax(_precise(x).flatten(0, 1), -1) for x in (teacher.detach(), logits))
    return F.kl_div(log_probs, target, reduction="batchmean", log_target=True)


@torch.no_grad()
def evaluate(predict: Predict, data: Sequences, images: int, batches: Batches = as_drawn) -> Losses:
    """Losses of a model on the first sequences of a data stream, which are images or windows of text.

    Args:
        predict: tokens (B, T), t (B, task_dim) -> logits (B, T, vocabulary).
        data: the stream.
        images: N >= 2.
        batches: how each batch is put together.

    Raises:
        InputError: fewer than two sequences, which have no standard error.
    """
    if images < 2:
        raise InputError(f"images must be at least 2; it was {images}")
    by_image: list[float] = []
    by_position = torch.zeros(data.positions, dtype=torch.float64)
    for step in range(math.ceil(images / data.batch_size)):
        tokens, t = batches(data, step)
        loss = F.cross_entropy(predict(tokens, t).float().mT, tokens, reduction="none")  # [B, T]
        loss = loss[: images - len(by_image)]
        by_image += loss.mean(1).tolist()
        by_position += loss.double().sum(0).cpu()
    return Losses(torch.tensor(by_image, dtype=torch.float64), by_position / images)


def _precise(logits: Tensor) -> Tensor:
    """In float32, or float64 where they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def bits_per_dimension(nats: float) -> float:
    """Of the image in its palette's colours: a token is a pixel, which is three colour values."""
    return nats / (3 * math.log(2))
