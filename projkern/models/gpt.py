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
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.arguments import describe, require_tensor
from ..utils.errors import InputError
from ..utils.numbers import require_whole
from .blocks import Affine, Layer, assemble, transformer
from .decode import Decoder
from .layout import LINEARS, GPTConfig
from .tables import Tables

CONDITIONING_WIDTH = 64
"""Hidden units of the MLPs of t in the conditional baseline.

More than three for each of the 18 numbers of SynthMNIST's t, so that they are no bottleneck; and few enough that at
the paper's shape the MLPs have fewer parameters than an operator's generators of rank 8, at s = 1/2 and below.
"""


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
            (B, T, vocab_size) logits; those at position i predict token i.

        Raises:
            InputError: tokens of another shape, or a t where none is taken or the other way round.
        """
        check_tokens(tokens, self.config)
        t = self._checked(t, tokens.shape[0])
        offset, layers, final_norm = self._conditioned(t)
        dropout = self.config.dropout if self.training else 0.0
        x = self.tables.embed(tokens, t, offset=offset, dropout=dropout)
        x = transformer(x, layers, tokens.shape[0], self.config.n_head, dropout)
        return self.tables.logits(x, final_norm).view(*tokens.shape, -1)

    def decoder(self, batch: int, t: Tensor | None = None) -> Decoder:
        """Predict sequences token by token, without dropout.

        Args:
            batch: B, the number of sequences.
            t: (B, task_dim) for a conditional model, None for all others.

        Raises:
            InputError: no sequence, or a t where none is taken or the other way round.
        """
        require_whole("batch", batch)
        t = self._checked(t, batch)
        with torch.no_grad():
            start = self.tables.start.expand(batch, -1) if t is None else self.tables.start_of_task(t)
            offset, layers, final_norm = self._conditioned(t)
            return Decoder(self.tables, layers, self.config.n_head, start, offset=offset, final_norm=final_norm)

    def _checked(self, t: Tensor | None, batch: int) -> Tensor | None:
        """t as it enters the model."""
        if (t is None) != (self.config.task_dim is None):
            expected = "None" if self.config.task_dim is None else f"(B, {self.config.task_dim})"
            raise InputError(f"t must be {expected} for this model; it was {t if t is None else describe(t)}")
        if t is None:
            return t
        check_task(t, batch, self.config.task_dim)
        own = self.tables.head.dtype
        t = t.to(torch.promote_types(own, torch.float32))
        return ((t - self.config.t_mean) / self.config.t_std).to(own)

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
            InputError: a conditional model, or one of more than one type, for which that format has no place.
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
            InputError: a folder without such a model, or what a ``GPT`` cannot represent.
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
    require_tensor("tokens", tokens)
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise InputError(f"tokens must be int64 (B, T); it was {tokens.dtype} {tuple(tokens.shape)}")
    if tokens.shape[0] == 0:
        raise InputError("tokens must hold at least one sequence; it was empty")
    if not 1 <= tokens.shape[1] <= config.n_positions:
        raise InputError(f"tokens must hold 1 to {config.n_positions} positions; it held {tokens.shape[1]}")


def check_task(t: Tensor, batch: int, task_dim: int | None) -> None:
    require_tensor("t", t)
    if t.shape != (batch, task_dim):
        raise InputError(f"t must be ({batch}, {task_dim}), one task identifier an example; it was {tuple(t.shape)}")
