"""The GPT: source, baseline and projected model are this one function.

GPT-2 blocks with biases, learned positions and an untied head. Position 0 is a start slot: a learned vector,
or Linear(t) in the conditional baseline (paper, Sec. 3.3.1), whose stronger forms are conditioned on t at every
position and in every norm too; the logits at position i predict token i.
Each linear operator's weights are stacked over layers, (L, N, M), so that one call projects them all.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import InputError
from .blocks import Affine, Layer, assemble, norm, transformer
from .decode import Decoder
from .layout import LINEARS

CONDITIONINGS = ("first", "every", "norms")
"""Where a conditional model takes t; each form has all of those before it."""

CONDITIONING_WIDTH = 64
"""Hidden units of the MLPs of t in the conditional baseline.

More than three for each of the 18 numbers of SynthMNIST's t, so that they are no bottleneck; and few enough that at
the paper's shape the MLPs have fewer parameters than an operator's generators of rank 8, at s = 1/2 and below.
"""


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
        conditioning: where a conditional model takes t. "first": in the start slot alone, as the paper's. "every":
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
        return {name: linear.shape(self.n_embd) for name, linear in LINEARS.items()}


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
        norms = list(map(Affine, (weight + weight * a).unbind(1), (bias + b).unbind(1)))
        layers = len(self.norm_1_weight)
        return list(zip(norms[:layers], norms[layers:-1])), norms[-1]

    def logits(self, x: Tensor, final_norm: Affine | None = None) -> Tensor:
        """(..., d) -> (..., vocab_size). A final norm of (B, d), in place of its own, needs x (1, B·T, d)."""
        x = norm(x, final_norm or Affine(self.final_norm_weight, self.final_norm_bias))
        return F.linear(x, self.head)


class Conditioning(nn.Module):
    """Where a conditional model takes t beside its start slot; initially this changes nothing."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self._changes_shape = 2, 2 * config.n_layer + 1, config.n_embd
        self.offset = _zero_mlp(config.task_dim, config.n_embd)
        self.norms = None
        if config.conditioning == "norms":
            self.norms = _zero_mlp(config.task_dim, math.prod(self._changes_shape))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """t (B, task_dim) -> the offset of every position (B, d), the norms' changes (B, 2, 2L + 1, d) or None."""
        changes = None if self.norms is None else self.norms(t).view(-1, *self._changes_shape)
        return self.offset(t), changes


def _zero_mlp(inputs: int | None, outputs: int) -> nn.Sequential:
    assert inputs is not None  # the configuration is checked
    last = nn.Linear(CONDITIONING_WIDTH, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, CONDITIONING_WIDTH), nn.SiLU(), last)


class GPT(nn.Module):
    """A GPT, with one set of weights for all: M_s, its conditional form, or one generated model.

    Args:
        config: the shape; a ``task_dim`` makes it the conditional baseline.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tables = Tables(config)
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        for name, linear in LINEARS.items():
            rows, cols = linear.shape(config.n_embd)
            # GPT-2's 0.02 at d = 768 is about half of 1 / sqrt(fan in); residual branches shrink with depth.
            std = 0.5 / math.sqrt(cols) / (math.sqrt(2 * config.n_layer) if linear.writes_stream else 1)
            self.weights[name] = nn.Parameter(torch.randn(config.n_layer, rows, cols) * std)
            self.biases[name] = nn.Parameter(torch.zeros(config.n_layer, rows))
        # Last, so that models of one seed start alike in all forms.
        self.conditioning = None if config.conditioning == "first" else Conditioning(config)

    def forward(self, tokens: Tensor, t: Tensor | None = None) -> Tensor:
        """Predict every token from those before it.

        Args:
            tokens: (B, T) int64, T at most ``n_positions``.
            t: (B, task_dim) for a conditional model, None for all others.

        Returns:
            (B, T, vocab_size) logits; those at position i predict ``tokens[:, i]``.

        Raises:
            ValueError: tokens of another shape, or a t where none is taken or the other way round.
        """
        check_tokens(tokens, self.config)
        t = self._checked(t, len(tokens))
        offset, layers, final_norm = self._conditioned(t)
        dropout = self.config.dropout if self.training else 0.0
        x = self.tables.embed(tokens, t)
        if offset is not None:
            x = x + offset[:, None]
        x = F.dropout(x, dropout, dropout > 0)
        x = transformer(x.view(1, -1, x.shape[-1]), layers, len(tokens), self.config.n_head, dropout)
        return self.tables.logits(x, final_norm).view(*tokens.shape, -1)

    def decoder(self, batch: int, t: Tensor | None = None) -> Decoder:
        """Predict sequences token by token, without dropout.

        Args:
            batch: B, the number of sequences.
            t: (B, task_dim) for a conditional model, None for all others.

        Raises:
            ValueError: no sequence, or a t where none is taken or the other way round.
        """
        if batch < 1:
            raise InputError(f"batch must be at least 1; it was {batch}")
        t = self._checked(t, batch)
        with torch.no_grad():
            start = self.tables.start.expand(batch, -1) if t is None else self.tables.start_of_task(t)
            offset, layers, final_norm = self._conditioned(t)
            return Decoder(self.tables, layers, self.config.n_head, start, offset=offset, final_norm=final_norm)

    def _checked(self, t: Tensor | None, batch: int) -> Tensor | None:
        """t as it enters the model."""
        if (t is None) != (self.config.task_dim is None):
            expected = "None" if self.config.task_dim is None else f"(B, {self.config.task_dim})"
            raise InputError(f"t must be {expected} for this model; it was {t if t is None else tuple(t.shape)}")
        if t is None:
            return t
        check_task(t, batch, self.config.task_dim)
        return (t - self.config.t_mean) / self.config.t_std

    def _conditioned(self, t: Tensor | None) -> tuple[Tensor | None, list[Layer], Affine | None]:
        """The offset of every position (B, d), the layers and the final norm; None where t does not change it."""
        if self.conditioning is None:
            return None, self._layers(self.tables.norms()), None
        offset, changes = self.conditioning(t)
        if changes is None:
            return offset, self._layers(self.tables.norms()), None
        norms, final_norm = self.tables.modulated_norms(changes)
        return offset, self._layers(norms), final_norm

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model into a new folder in Hugging Face's GPT-2 format (see ``models/huggingface/gpt2.py``).

        Raises:
            FileExistsError: the folder holds something already.
            ValueError: a conditional model, or one of more than one type, for which that format has no place.
        """
        from .huggingface import gpt2

        gpt2.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> GPT:
        """Read a model that ``save_pretrained`` wrote, or another GPT-2's or ImageGPT's folder, of safetensors only.

        Warns of what could not be kept.

        Returns:
            The model in evaluation mode, on the CPU.

        Raises:
            ValueError: a folder without such a model, or what a ``GPT`` cannot represent.
        """
        from .huggingface import gpt2

        pretrained = gpt2.load(Path(folder))
        for note in pretrained.notes:
            warnings.warn(note, stacklevel=2)
        return pretrained.model

    def _layers(self, norms: list[tuple[Affine, Affine]]) -> list[Layer]:
        linears = [
            [Affine(w, b) for w, b in zip(self.weights[name].unbind(0), self.biases[name].unbind(0))]
            for name in LINEARS
        ]
        return assemble(norms, linears)


def check_tokens(tokens: Tensor, config: GPTConfig) -> None:
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise InputError(f"tokens must be int64 (B, T); it was {tokens.dtype} {tuple(tokens.shape)}")
    if not len(tokens):
        raise InputError("tokens must hold at least one sequence; it was empty")
    if not 1 <= tokens.shape[1] <= config.n_positions:
        raise InputError(f"tokens must hold 1 to {config.n_positions} positions; it held {tokens.shape[1]}")


def check_task(t: Tensor, batch: int, task_dim: int | None) -> None:
    if t.shape != (batch, task_dim):
        raise InputError(f"t must be ({batch}, {task_dim}), one task identifier an example; it was {tuple(t.shape)}")
