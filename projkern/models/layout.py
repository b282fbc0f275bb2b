"""The layout of a GPT: its settings, its linear operators and their shapes, and the tables that it has besides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import InputError
from .blocks import Affine, norm

LINEARS = ("attn_qkv", "attn_out", "mlp_in", "mlp_out")
"""The linear operators of a layer, in the order of every stacked or concatenated quantity."""

CONDITIONINGS = ("first", "every", "norms")
"""Where a conditional model is told t; each form has all of those before it."""


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT.

    Args:
        vocab_size: number of tokens.
        n_positions: longest sequence.
        n_embd: width d.
        n_layer: number of blocks.
        n_head: attention heads, each n_embd / n_head wide.
        dropout: rate on embeddings, attention and residual branches while training.
        task_dim: None, or the length of t: then the start slot holds Linear(t), and the model is conditional.
        conditioning: where a conditional model is told t. "first": in the start slot alone, as the paper's. "every":
            an MLP of t is added to the embedding of every position too. "norms": and another gives the weight and
            bias of every norm as (1 + a(t)) · weight and bias + b(t). Both MLPs give zero at the start.
        t_mean: t enters a conditional model as (t - t_mean) / t_std.
        t_std: see ``t_mean``; above 0.

    Raises:
        ValueError: a value out of its range, or "every" or "norms" without a ``task_dim``.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    dropout: float = 0.0
    task_dim: int | None = None
    conditioning: str = "first"
    t_mean: float = 0.0
    t_std: float = 1.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; it was {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd must be a multiple of n_head = {self.n_head}; it was {self.n_embd}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must lie in [0, 1); it was {self.dropout}")
        if self.conditioning not in CONDITIONINGS:
            raise InputError(f"conditioning must be first, every or norms; it was {self.conditioning!r}")
        if self.conditioning != "first" and self.task_dim is None:
            raise InputError(f"conditioning must be 'first' without a task_dim; it was {self.conditioning!r}")
        if not math.isfinite(self.t_mean):
            raise InputError(f"t_mean must be finite; it was {self.t_mean}")
        if not 0 < self.t_std < math.inf:
            raise InputError(f"t_std must be finite and above 0; it was {self.t_std}")

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each linear operator of a layer."""
        d = self.n_embd
        return {"attn_qkv": (3 * d, d), "attn_out": (d, d), "mlp_in": (4 * d, d), "mlp_out": (d, 4 * d)}


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

    def embed(self, tokens: Tensor, t: Tensor | None) -> Tensor:
        """(B, T) tokens -> (B, T, d): the start slot, then all tokens but the last, each with its position."""
        start = self.start.expand(len(tokens), 1, -1) if t is None else self.start_of_task(t)[:, None]
        x = torch.cat([start, F.embedding(tokens[:, :-1], self.token_embedding)], dim=1)
        return x + self.position_embedding[: tokens.shape[1]]

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
        made = list(map(Affine, (weight + weight * a).unbind(1), (bias + b).unbind(1)))
        layers = len(self.norm_1_weight)
        return list(zip(made[:layers], made[layers:-1])), made[-1]

    def logits(self, x: Tensor, final_norm: Affine | None = None) -> Tensor:
        """(..., d) -> (..., vocab_size). A final norm of (B, d), in place of its own, wants x (1, B·T, d)."""
        x = norm(x, final_norm or Affine(self.final_norm_weight, self.final_norm_bias))
        return F.linear(x, self.head)
