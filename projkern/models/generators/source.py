"""Generators that read the source otherwise than by grouped diagonals: any linear map of it, and blocks as modules."""

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from ..gpt import GPT
from ..layout import LINEARS
from .base import MLPGenerator, TaskWeights, unstack

LARGEST_MAPS = 100_000_000
"""Most numbers in the maps of a general generator: 400 MB in float32, and as much twice again for Adam."""


class GeneralGenerator(MLPGenerator):
    """The general linear map of the source's weights (paper, Sec. 2.1), with t in grouped diagonals.

        (W_s)_ij = sum_kl V_ijkl p_k(t) q_l(t) (W_1)_kl + V^B_ij,   (b_s)_i = sum_k U_ik p_k(t) (b_1)_k

    For a fixed t it is any linear map. A V that depends on t in all its entries would be r + 1 times as large, and V
    alone is the square of a source matrix over g². V starts as [k // g == i][l // g == j], U as [k // g == i], V^B as
    zero, p and q as g^-1/4, which together are the start of the diagonal generator.

    Args:
        source: the model to map.
        group: g.
        task_dim: length of t.
        rank: inner width r of the MLPs of p and q.

    Raises:
        InputError: a source so large that V, V^B and U hold more than ``LARGEST_MAPS`` numbers.
    """

    def __init__(self, source: GPT, group: int, task_dim: int, rank: int) -> None:
        shapes, layers = source.config.linear_shapes(), source.config.n_layer
        size = layers * sum((N * M) ** 2 // group**2 + N * M // group**2 + N * N // group for N, M in shapes.values())
        if size > LARGEST_MAPS:
            raise InputError(
                f"source must be so small that the maps of a general generator hold at most {LARGEST_MAPS:,} numbers; "
                f"at width {source.config.n_embd}, {layers} layers and scale 1/{group} they held {size:,}"
            )
        super().__init__([(layers, sum(shapes[name])) for name in LINEARS], task_dim, rank)
        for bias in self.outer_bias:
            nn.init.constant_(bias, group**-0.25)
        self.V, self.V_bias, self.U = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name in LINEARS:
            rows, cols = (torch.eye(size // group).repeat_interleave(group, 1) for size in shapes[name])
            self.V[name] = nn.Parameter(torch.kron(rows, cols).repeat(layers, 1, 1))  # [L, n m, N M]
            self.V_bias[name] = nn.Parameter(torch.zeros(layers, len(rows), len(cols)))
            self.U[name] = nn.Parameter(rows.repeat(layers, 1, 1))  # [L, n, N]

    def forward(self, source: GPT, t: Tensor) -> TaskWeights:
        weights, biases = [], []
        for name, both in zip(LINEARS, self.evaluate(t)):
            W, offset = source.weights[name], self.V_bias[name]
            p, q = both.split(W.shape[1:], dim=2)
            scaled = p[..., None] * W[:, None] * q[:, :, None]  # [L, U, N, M]
            flat = torch.baddbmm(offset.flatten(1)[:, None], scaled.flatten(2), self.V[name].mT)  # [L, U, n m]
            weights.append(flat.unflatten(2, offset.shape[1:]))
            biases.append(torch.bmm(p * source.biases[name][:, None], self.U[name].mT))
        return TaskWeights(unstack(weights), unstack(biases))


class BlockGenerator(MLPGenerator):
    """A modular network whose modules are the g x g blocks of each source matrix (paper, appendix B.2).

        W_s = sum_ab r_ab(t) W_1[block a, b],   b_s = sum_a u_a(t) b_1[block a]

    r and u come from an MLP for each linear operator of each layer. Blocks of rows of attn_qkv are taken within
    queries, keys and values. Initially r_00 = g^1/2 and u_0 = 1 and all others are zero: W_s is g^1/2 times the
    first block, which keeps the variance of a layer's outputs, and the residual stream is the source's first d / g
    coordinates.

    Args:
        source: the model to divide.
        group: g.
        task_dim: length of t.
        rank: inner width r of the MLPs.
    """

    def __init__(self, source: GPT, group: int, task_dim: int, rank: int) -> None:
        super().__init__([(source.config.n_layer, group * group + group) for _ in LINEARS], task_dim, rank)
        self.group = group
        self.kept_coordinates = slice(0, source.config.n_embd // group)
        with torch.no_grad():
            for bias in self.outer_bias:
                bias[:, 0] = group**0.5
                bias[:, group * group] = 1

    def forward(self, source: GPT, t: Tensor) -> TaskWeights:
        weights, biases, g = [], [], self.group
        for name, coefficients in zip(LINEARS, self.evaluate(t)):
            W, b = source.weights[name].to(t.dtype), source.biases[name].to(t.dtype)
            layers, rows, cols = W.shape
            parts = LINEARS[name].row_blocks
            blocks = W.view(layers, parts, g, -1, g, cols // g).permute(0, 2, 4, 1, 3, 5)  # [L, a, b, part, i, j]
            bias_blocks = b.view(layers, parts, g, -1).transpose(1, 2)  # [L, a, part, i]
            r, u = coefficients.split((g * g, g), dim=2)
            flat = torch.bmm(r, blocks.reshape(layers, g * g, -1))  # [L, U, n m]
            weights.append(flat.unflatten(2, (rows // g, cols // g)))
            biases.append(torch.bmm(u, bias_blocks.reshape(layers, g, -1)))
        return TaskWeights(unstack(weights), unstack(biases))
