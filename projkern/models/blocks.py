"""The blocks of every model here: source, baseline and projected model run this one function."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import linear_ops
from .layout import LINEARS


class Affine(NamedTuple):
    """Weight and bias.

    Of a norm (d,), (d,), or one a sequence, (B, d), (B, d); of a linear operator (N, M), (N,), or one a task,
    (U, N, M), (U, N).
    """

    weight: Tensor
    bias: Tensor


class Factored(NamedTuple):
    """A linear operator generated for U tasks that is not written out: W (N, M), p (U, N), q (U, M), b_s (U, n)."""

    weight: Tensor
    p: Tensor
    q: Tensor
    bias: Tensor


class Layer(NamedTuple):
    """The weights of one block."""

    norm_1: Affine
    attn_qkv: Affine | Factored
    attn_out: Affine | Factored
    norm_2: Affine
    mlp_in: Affine | Factored
    mlp_out: Affine | Factored


def linear(x: Tensor, operator: Affine | Factored) -> Tensor:
    """(U, S, m) -> (U, S, n)"""
    if isinstance(operator, Factored):
        weight, p, q, bias = operator
        groups = weight.shape[0] // bias.shape[1], weight.shape[1] // x.shape[2]
        return linear_ops.factored(x, weight, p, q, *groups) + bias[:, None]
    if operator.weight.dim() == 2:
        return F.linear(x, *operator)
    if x.shape[1] == 1:  # a matrix by a vector: on a CPU this order is the faster one
        return torch.baddbmm(operator.bias[..., None], operator.weight, x.mT).mT
    return torch.baddbmm(operator.bias[:, None], x, operator.weight.mT)


def norm(x: Tensor, affine: Affine) -> Tensor:
    """(U, S, d) -> the same. A norm of (B, d) has a row for each of the B sequences that x holds, one by one."""
    weight, bias = affine
    if weight.dim() == 1:
        return F.layer_norm(x, x.shape[-1:], weight, bias)
    h = F.layer_norm(x, x.shape[-1:]).view(len(weight), -1, x.shape[-1])  # [B, T, d]
    return torch.addcmul(bias[:, None], h, weight[:, None]).view(x.shape)


def transformer(x: Tensor, layers: list[Layer], batch: int, n_head: int, dropout: float) -> Tensor:
    """Run the blocks.

    Args:
        x: (U, k·T, d): the sequences of U tasks, k each (U = 1 where all share their weights).
        layers: weights shared by all tasks, or one for each of the U.
        batch: U·k, the number of sequences.
        dropout: rate, 0 when not training.
    """
    for layer in layers:
        x = block(x, layer, batch, n_head, dropout)
    return x


def block(x: Tensor, layer: Layer, batch: int, n_head: int, dropout: float) -> Tensor:
    """Run one block; the arguments are those of ``transformer``."""
    tasks, tokens, width = x.shape
    h = norm(x, layer.norm_1)
    h = _attention(linear(h, layer.attn_qkv).view(batch, -1, 3, n_head, width // n_head), dropout)
    h = linear(h.reshape(tasks, tokens, width), layer.attn_out)
    x = x + F.dropout(h, dropout, dropout > 0)
    h = norm(x, layer.norm_2)
    h = linear(F.gelu(linear(h, layer.mlp_in), approximate="tanh"), layer.mlp_out)
    return x + F.dropout(h, dropout, dropout > 0)


def _attention(qkv: Tensor, dropout: float) -> Tensor:
    """Causal attention: (batch, T, 3, head, head width) -> (batch, T, head, head width)"""
    width = qkv.shape[-1]
    # Narrower heads take torch's CPU kernel longer than those of width 16 (docs/sampling.md); zeros change nothing.
    is_padded = width < 16 and qkv.device.type == "cpu"
    if is_padded:
        qkv = F.pad(qkv, (0, 16 - width))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [batch, head, T, head width]
    h = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout, scale=width**-0.5)
    return (h[..., :width] if is_padded else h).transpose(1, 2)


def assemble(norms: list[tuple[Affine, Affine]], linears: Sequence[Sequence[Affine | Factored]]) -> list[Layer]:
    """Sort norms (by layer) and linear operators (by operator, then layer) into layers."""
    return [
        Layer(norm_1=norm_1, norm_2=norm_2, **dict(zip(LINEARS, operators)))
        for (norm_1, norm_2), operators in zip(norms, zip(*linears))
    ]
