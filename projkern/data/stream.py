"""The interfaces of the data sets that training and evaluation use."""

from typing import Protocol

from torch import Tensor


class Sequences(Protocol):
    """Batches of token sequences with their task identifiers; a batch is a function of (seed, split, step) alone."""

    batch_size: int
    """B, sequences per step."""
    examples_per_task: int
    """k, rows of a batch that lie side by side and share a task; divides B."""
    task_dim: int
    """Length of a task identifier."""
    vocabulary: int
    """K: tokens are in [0, K)."""

    @property
    def positions(self) -> int:
        """T, tokens of a sequence."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) int64 and task identifiers (B, task_dim) float32."""

    def tasks(self, step: int) -> Tensor:
        """The task identifiers of ``batch``."""


class Images(Sequences, Protocol):
    """Tokenised images."""

    size: int
    """Height and width of an image in tokens: it has T = size^2."""

    def batch(self, step: int, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) int64 and task identifiers (B, task_dim) float32, ``t`` in place of the stored ones."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens (B, T): (B, 3, H, W) float32 in [-1, 1]."""
