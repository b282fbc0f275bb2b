"""The tables of a model: embeddings, start vector, norms and head, which no operator generates for each t."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import InputError
from .blocks import Affine, norm
from .layout import GPTConfig


class Tables(nn.Module):
    """What a model has besides its linear operators: embeddings, start vector, norms and head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d, layers = config.n_embd, config.n_layer
        self.token_embedding = nn.Parameter(torch.randn(config.vocab_size, d) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(config.n_positions, d) * 0.02)
        if config.task_dim is None:
            self.start = nn.Parameter(torch.randn(d) * 0.02)
        else:
            self.start_of_task = nn.Linear(config.task_dim, d)
        self.norm_1_weight = nn.Parameter(torch.ones(layers, d))
        self.norm_1_bias = nn.Parameter(torch.zeros(layers, d))
        self.norm_2_weight = nn.Parameter(torch.ones(layers, d))
        self.norm_2_bias = nn.Parameter(torch.zeros(layers, d))
        self.final_norm_weight = nn.Parameter(torch.ones(d))
        self.final_norm_bias = nn.Parameter(torch.zeros(d))
        self.head = nn.Parameter(torch.randn(config.vocab_size, d) * 0.02)

    def embed(
        self,
        tokens: Tensor,
        t: Tensor | None = None,
        *,
        offset: Tensor | None = None,
        tasks: int = 1,
        dropout: float = 0.0,
    ) -> Tensor:
        """What the first layer reads: the start slot, then all tokens but the last, each with its position.

        Args:
            tokens: (B, T) int64.
            t: (B, task_dim) where the start slot depends on it.
            offset: (B, d), added at every position.
            tasks: U, which have B / U sequences each, side by side.
            dropout: rate, 0 when not training.

        Returns:
            (U, B / U · T, d).
        """
        start = self.start.expand(tokens.shape[0], 1, -1) if t is None else self.start_of_task(t)[:, None]
        x = torch.cat([start, self.look_up(tokens[:, :-1])], dim=1)
        x = x + self.position_embedding[: tokens.shape[1]]
        if offset is not None:
            x = x + offset[:, None]
        return F.dropout(x, dropout, dropout > 0).view(tasks, -1, x.shape[-1])

    def look_up(self, tokens: Tensor) -> Tensor:
        """The embeddings (..., d) of tokens (...); InputError for one that is not in the vocabulary, on a CPU."""
        try:
            return F.embedding(tokens, self.token_embedding)
        except IndexError:
            raise InputError(f"tokens must be from 0 to {len(self.token_embedding) - 1}; one was not") from None

    def norms(self) -> list[tuple[Affine, Affine]]:
        """The two norms of each layer."""
        first = zip(self.norm_1_weight.unbind(0), self.norm_1_bias.unbind(0))
        second = zip(self.norm_2_weight.unbind(0), self.norm_2_bias.unbind(0))
        return [(Affine(*a), Affine(*b)) for a, b in zip(first, second)]

    def modulated_norms(self, changes: Tensor) -> tuple[list[tuple[Affine, Affine]], Affine]:
        """The two norms of each layer and the final one, for each of B sequences.

        Args:
            changes: (B, 2, 2L + 1, d): a and b in (1 + a) · weight and bias + b; first norms, second norms, final one.
        """
        weight = torch.cat([self.norm_1_weight, self.norm_2_weight, self.final_norm_weight[None]])  # [2L + 1, d]
        bias = torch.cat([self.norm_1_bias, self.norm_2_bias, self.final_norm_bias[None]])
        a, b = changes.unbind(1)
        # Under autocast a is of half precision, in which 1 + a would lose most of it.
        norms = list(map(Affine, (weight + weight * a).unbind(1), (bias + b).unbind(1)))
        layers = len(self.norm_1_weight)
        return list(zip(norms[:layers], norms[layers:-1])), norms[-1]

    def logits(self, x: Tensor, final_norm: Affine | None = None) -> Tensor:
        """(..., d) -> (..., vocab_size). A final norm of (B, d), in place of its own, needs x (1, B·T, d)."""
        x = norm(x, final_norm or Affine(self.final_norm_weight, self.final_norm_bias))
        return F.linear(x, self.head)
