"""The interface of every data set of images that training and evaluation use."""

from typing import Protocol

from torch import Tensor


class Images(Protocol):
    """Batches of tokenised images with their task identifiers; a batch is a function of (seed, split, step) alone."""

    batch_size: int
    """B, images per step."""
    size: int
    """Height and width of an image in tokens: it has T = size^2."""
    task_dim: int
    """Length of a task identifier."""
    vocabulary: int
    """K: tokens are in [0, K)."""

    def batch(self, step: int, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) int64 and task identifiers (B, task_dim) float32, ``t`` in place of the stored ones."""

    def tasks(self, step: int) -> Tensor:
        """The task identifiers of ``batch``."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens (B, T): (B, 3, H, W) float32 in [-1, 1]."""
