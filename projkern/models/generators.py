"""From a task identifier to the weights of the sums: p(t) and q(t) of every linear operator.

    p(t), q(t) = W_o silu(W_i t + b_i) + b_o,   W_i: r x dim t,  W_o: (N + M) x r        (paper, Sec. 2.2, 3.2)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DiagonalGenerator(nn.Module):
    """One two-layer MLP for each linear operator of each layer, all evaluated together.

    At the start the result does not depend on t: W_o is zero, and b_o holds p0 and q0.

    Args:
        shapes: (rows N, cols M) of each linear operator of a layer.
        n_layer: number of layers L.
        task_dim: length of t.
        rank: inner width r.
        group: g; p0 and q0 are g^-1/4, which keeps the variance of a layer's outputs as its fan-in shrinks by g.
    """

    def __init__(self, shapes: list[tuple[int, int]], n_layer: int, task_dim: int, rank: int, group: int) -> None:
        super().__init__()
        self.shapes, self.n_layer, self.rank = shapes, n_layer, rank
        bound = 1 / math.sqrt(task_dim)
        hidden = len(shapes) * n_layer * rank
        self.inner_weight = nn.Parameter(torch.empty(hidden, task_dim).uniform_(-bound, bound))
        self.inner_bias = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        self.outer_weight = nn.ParameterList()
        self.outer_bias = nn.ParameterList()
        for rows, cols in shapes:
            self.outer_weight.append(nn.Parameter(torch.zeros(n_layer, rows + cols, rank)))
            self.outer_bias.append(nn.Parameter(torch.full((n_layer, rows + cols), group**-0.25)))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t (U, task_dim) -> p (U, sum of rows), q (U, sum of cols), ordered by operator, then layer."""
        tasks = len(t)
        hidden = F.silu(F.linear(t, self.inner_weight, self.inner_bias))
        hidden = hidden.view(tasks, len(self.shapes), self.n_layer, self.rank).permute(1, 2, 0, 3)
        p: list[Tensor] = []
        q: list[Tensor] = []
        for h, W, b, (rows, cols) in zip(hidden, self.outer_weight, self.outer_bias, self.shapes):
            both = torch.baddbmm(b[:, None], h, W.mT)  # [L, U, N + M]
            for factor, part in zip((p, q), both.split((rows, cols), dim=2)):
                factor.append(part.transpose(0, 1).reshape(tasks, -1))
        return torch.cat(p, dim=1), torch.cat(q, dim=1)
