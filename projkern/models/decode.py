"""Decoding: one token of B sequences at a time, each attending to the keys and values of those before it.

A step runs what ``transformer`` runs, for one position. Keys and values lie as (sequence and head, position, head
width), and attention is two batched products: of the layouts that were tried, the one that is fast at all head
widths (docs/sampling.md).
"""

import math
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.arguments import describe
from ..utils.device import free_memory, wait_for
from ..utils.errors import InputError
from .blocks import Affine, Layer, linear, norm
from .tables import Tables


class Decoder:
    """Predicts the tokens of B sequences one after the other. ``GPT`` and ``ProjectionOperator`` build it.

    ``step(None)`` gives the logits of token 0, and ``step(tokens)``, with the tokens just drawn, those of the next
    one: up to rounding those of the model for the whole sequence. Attributes: ``batch``, B; ``positions``, the
    length of a whole sequence; ``position``, of the token that the next step predicts; ``device``; ``cache_bytes``,
    of the keys and values of whole sequences.

    Args:
        tables: embeddings, norms and head.
        layers: their linear operators are shared by all sequences, or those of U tasks.
        n_head: attention heads.
        start: (B, d), the start slot of each sequence.
        tasks: U; sequences are sorted by task, B / U each (U = 1 where all share their weights).
        offset: None, or (B, d), added to the embedding at every position of each sequence.
        final_norm: None for that of the tables, or one for each sequence.

    Raises:
        MemoryError: no room for the keys and values.
    """

    def __init__(
        self,
        tables: Tables,
        layers: list[Layer],
        n_head: int,
        start: Tensor,
        tasks: int = 1,
        *,
        offset: Tensor | None = None,
        final_norm: Affine | None = None,
    ) -> None:
        self._offset, self._final_norm = offset, final_norm
        self.batch, self._width = start.shape
        self.positions, self.position, self.device = len(tables.position_embedding), 0, start.device
        self._tables, self._layers, self._start, self._n_head, self._tasks = tables, layers, start, n_head, tasks
        shape = len(layers), 2, self.batch, n_head, self.positions, self._width // n_head
        self.cache_bytes, free = math.prod(shape) * start.element_size(), free_memory(start.device)
        if self.cache_bytes > free:  # the system may promise it all the same, and end the process later
            raise MemoryError(
                f"keys and values of {self.batch} sequences take {self.cache_bytes / 1e6:,.1f} MB; "
                f"{free / 1e6:,.1f} MB are free"
            )
        cache = start.new_empty(shape)
        # Of each layer: all of it, and its keys (B·heads, head width, T) and values (B·heads, T, head width).
        self._cache = [(both, both[0].flatten(0, 1).mT, both[1].flatten(0, 1)) for both in cache.unbind(0)]

    @torch.no_grad()
    def step(self, tokens: Tensor | None) -> Tensor:
        """Predict the next token of each sequence.

        Args:
            tokens: None in the first step; then (B,) int64, the tokens at the position before.

        Returns:
            (B, vocab_size) logits.

        Raises:
            InputError: tokens of another shape or dtype, None after the first step, or a step past the last position.
        """
        if self.position == self.positions:
            raise InputError(f"step must be called {self.positions} times at most, once for each position")
        x = self._embed(tokens)
        with torch.inference_mode():  # at small widths faster than no_grad
            x = self._blocks(x.view(self._tasks, -1, self._width))
        self.position += 1
        return self._tables.logits(x, self._final_norm).view(self.batch, -1)  # outside of it: an ordinary tensor

    def use_fastest(self, forms: Sequence[list[Layer]]) -> None:
        """Go on with the form of the layers whose first step takes the least time, measured now."""
        turns = [[self._seconds(form) for form in forms] for _ in range(5)]
        best = [min(times) for times in zip(*turns)]  # other work on the machine only ever adds
        self._layers = forms[best.index(min(best))]

    def _seconds(self, layers: list[Layer]) -> float:
        self._layers = layers
        began = time.perf_counter()
        self.step(None)
        wait_for(self.device)
        self.position = 0
        return time.perf_counter() - began

    def _embed(self, tokens: Tensor | None) -> Tensor:
        position = self._tables.position_embedding[self.position]
        if self._offset is not None:
            position = position + self._offset
        if self.position == 0:
            if tokens is not None:
                raise InputError("tokens must be None in the first step, whose input is the start slot")
            return self._start + position
        if not isinstance(tokens, Tensor) or tokens.shape != (self.batch,) or tokens.dtype != torch.int64:
            raise InputError(f"tokens must be int64 ({self.batch},), one for each sequence; it was {describe(tokens)}")
        return self._tables.look_up(tokens) + position

    def _blocks(self, x: Tensor) -> Tensor:
        """(U, B / U, d) -> the same, through all layers; stores keys and values of this position."""
        count, unused = self.position + 1, x.new_empty(())
        for layer, (cache, keys, values) in zip(self._layers, self._cache):
            h = norm(x, layer.norm_1)
            qkv = linear(h, layer.attn_qkv).view(self.batch, 3, self._n_head, -1)
            cache[:, :, :, self.position] = qkv[:, 1:].transpose(0, 1)
            query = qkv[:, 0].reshape(len(keys), 1, -1)  # [B·heads, 1, head width]
            scale = query.shape[-1] ** -0.5
            scores = torch.baddbmm(unused, query, keys[..., :count], beta=0, alpha=scale)
            h = torch.bmm(scores.softmax(-1), values[:, :count]).view(x.shape)
            x = x + linear(h, layer.attn_out)
            h = norm(x, layer.norm_2)
            x = x + linear(F.gelu(linear(h, layer.mlp_in), approximate="tanh"), layer.mlp_out)
        return x
