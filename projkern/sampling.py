"""Drawing images from a model, token by token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def sample(
    predict: Callable[[Tensor, Tensor], Tensor], t: Tensor, positions: int, *, seed: int = 0
) -> Tensor:
    """Draw one sequence for each task identifier.

    Args:
        predict: tokens (B, n), t (B, task_dim) -> logits (B, n, vocabulary), those at i predicting token i.
        t: (B, task_dim).
        positions: length T of a sequence.
        seed: of the draws.

    Returns:
        (B, T) int64 tokens.
    """
    generator = torch.Generator(t.device).manual_seed(seed)
    tokens = torch.zeros(len(t), positions, dtype=torch.int64, device=t.device)
    for i in range(positions):
        probabilities = predict(tokens[:, : i + 1], t)[:, i].float().softmax(-1)
        tokens[:, i] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return tokens
