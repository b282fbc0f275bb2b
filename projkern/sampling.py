"""Drawing images from a model, token by token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm


@torch.no_grad()
def sample(
    predict: Callable[[Tensor], Tensor], batch: int, positions: int, *, device: torch.device, seed: int = 0
) -> Tensor:
    """Draw sequences.

    Args:
        predict: tokens (B, n) -> logits (B, n, vocabulary), those at i predicting token i.
        batch: B.
        positions: length T of a sequence.
        device: of the model.
        seed: of the draws.

    Returns:
        (B, T) int64 tokens.
    """
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.zeros(batch, positions, dtype=torch.int64, device=device)
    for i in tqdm(range(positions), unit=" tokens", desc="sample", leave=False):
        probabilities = predict(tokens[:, : i + 1])[:, i].float().softmax(-1)
        tokens[:, i] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return tokens
