"""Generators that do not read the source: theta(t) = theta(0) + delta theta(t)                 (paper, appendix B.1).

In all of them theta(0) is a parameter, and starts as the source under constant p = q = g^-1/4: as the model that the
diagonal generator starts from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import InputError
from ..gpt import GPT
from ..layout import LINEARS
from .base import Generator, MLPGenerator, TaskWeights, unstack


class AdditiveGenerator(Generator):
    """theta(t) = theta(0) + sum_k S_k eta_k(t), with theta all weights and biases of the linear operators.

    S starts as zero.

    Args:
        source: the model that theta(0) starts from.
        group: g.
        eta: t (U, task_dim) -> (U, modules).
        modules: number of k.
    """

    def __init__(self, source: GPT, group: int, eta: nn.Module, modules: int) -> None:
        super().__init__()
        weights, biases = merged(source, group)
        self._shapes = [w.shape for w in weights + biases]
        self.theta = nn.Parameter(torch.cat([w.flatten() for w in weights + biases]))
        self.S = nn.Parameter(torch.zeros(len(self.theta), modules))
        self.eta = eta

    def forward(self, source: GPT, t: Tensor) -> TaskWeights:
        flat = F.linear(self.eta(t), self.S, self.theta)  # [U, theta]
        parts = flat.split([shape.numel() for shape in self._shapes], dim=1)
        stacks = [part.unflatten(1, shape).transpose(0, 1) for part, shape in zip(parts, self._shapes)]
        return TaskWeights(unstack(stacks[: len(LINEARS)]), unstack(stacks[len(LINEARS) :]))


class LinearGenerator(AdditiveGenerator):
    """Weights linear in t, theta(t) = theta(0) + S t (paper, Eq. 4). There is no MLP, and ``rank`` changes nothing.

    Args:
        source: the model that theta(0) starts from.
        group: g.
        task_dim: length of t.
        rank: not used.
    """

    def __init__(self, source: GPT, group: int, task_dim: int, rank: int) -> None:
        super().__init__(source, group, nn.Identity(), task_dim)


class ModularGenerator(AdditiveGenerator):
    """Modules weighted by functions of t, eta(t) = W_o silu(W_i t + b_i) + b_o (paper, Eq. 5).

    Args:
        source: the model that theta(0) starts from.
        group: g.
        task_dim: length of t.
        rank: r, the number of modules and the inner width of eta.
    """

    def __init__(self, source: GPT, group: int, task_dim: int, rank: int) -> None:
        eta = nn.Sequential(nn.Linear(task_dim, rank), nn.SiLU(), nn.Linear(rank, rank))
        super().__init__(source, group, eta, rank)


class LowRankGenerator(MLPGenerator):
    """A change of low rank to each weight (paper, Eq. 6).

        W(t) = W(0) + L(t) R(t),   b(t) = b(0)

    L and R come from one MLP for each linear operator of each layer. Initially L is zero, and R constant and random
    with the variance 1 / m that keeps that of its input.

    Args:
        source: the model that W(0) and b(0) start from.
        group: g.
        task_dim: length of t.
        rank: inner width r of the MLPs.
        delta_rank: columns of L and rows of R: the rank of the change.

    Raises:
        InputError: a delta_rank below 1.
    """

    def __init__(self, source: GPT, group: int, task_dim: int, rank: int, delta_rank: int = 1) -> None:
        if delta_rank < 1:
            raise InputError(f"delta_rank must be at least 1; it was {delta_rank}")
        weights, biases = merged(source, group)
        shapes = [w.shape for w in weights]
        super().__init__([(layers, delta_rank * (n + m)) for layers, n, m in shapes], task_dim, rank)
        self.delta_rank = delta_rank
        self.weights = nn.ParameterDict({name: nn.Parameter(w) for name, w in zip(LINEARS, weights)})
        self.biases = nn.ParameterDict({name: nn.Parameter(b) for name, b in zip(LINEARS, biases)})
        with torch.no_grad():
            for bias, (_, n, m) in zip(self.outer_bias, shapes):
                bias[:, delta_rank * n :].normal_(std=m**-0.5)

    def forward(self, source: GPT, t: Tensor) -> TaskWeights:
        weights = []
        for name, both in zip(LINEARS, self.evaluate(t)):
            W = self.weights[name]  # [L, n, m]
            _, n, m = W.shape
            L, R = both.split((self.delta_rank * n, self.delta_rank * m), dim=2)
            change = L.unflatten(2, (n, -1)) @ R.unflatten(2, (-1, m))  # [L, U, n, m]
            weights.append(W[:, None] + change)
        biases = [self.biases[name][:, None].expand(-1, t.shape[0], -1) for name in LINEARS]
        return TaskWeights(unstack(weights), unstack(biases))


@torch.no_grad()
def merged(source: GPT, group: int) -> tuple[list[Tensor], list[Tensor]]:
    """The source under constant p = q = g^-1/4: weights (L, n, m) and biases (L, n), new ones on the default device."""
    weights, biases = [], []
    for name in LINEARS:
        W, b = source.weights[name], source.biases[name]
        summed = W.unflatten(2, (-1, group)).sum(3).unflatten(1, (-1, group)).sum(2) * group**-0.5
        weights.append(torch.empty(summed.shape).copy_(summed))
        summed = b.unflatten(1, (-1, group)).sum(2) * group**-0.25
        biases.append(torch.empty(summed.shape).copy_(summed))
    return weights, biases
