"""The paper's generator: P(t) and Q(t) are grouped diagonals of p(t) and q(t).

    W_s = P(t) W_1 Q(t),   P_ij = p_j(t) [j // g == i],   Q_ij = q_i(t) [i // g == j]       (paper, Sec. 2.2, 3.2)

so that each entry of W_s is a weighted sum over a block of g x g entries of W_1.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from ...kernels.projection import project_layers
from ...utils.errors import InputError
from ..gpt import GPT
from ..kinds import STARTS
from ..layout import LINEARS, GPTConfig
from .base import MLPGenerator, TaskWeights


class LinearOperators(Protocol):
    """What is projected: the linear operators of a GPT, or of one layer of it."""

    config: GPTConfig
    weights: nn.ParameterDict
    biases: nn.ParameterDict


class DiagonalGenerator(MLPGenerator):
    """p(t) and q(t) of each linear operator of each layer, by an MLP each.

    Args:
        source: the model to project.
        group: g.
        task_dim: length of t.
        rank: inner width r.
        start: initial p and q. "constant": g^-1/4, which keeps the variance of a layer's outputs as its fan-in shrinks
            by g; "noise": that times 1 + N(0, 1) / 2; "signs": that with random signs; "one-hot": in each group p is
            (1, 0, ...) and q = g^1/2 p, so that W_s is g^1/2 times a submatrix of W_1, with the same variance.
        shared_inner: one first layer t -> r for all linear operators, instead of one each.
        tied: p of attn_out and mlp_out, and q of attn_qkv and mlp_in (times g^1/2 with "one-hot"), are one vector of
            the source's width in all layers: both sides of the residual stream.

    Raises:
        InputError: an unknown start.
    """

    def __init__(
        self,
        source: GPT,
        group: int,
        task_dim: int,
        rank: int,
        start: str = "constant",
        shared_inner: bool = False,
        tied: bool = False,
    ) -> None:
        if start not in STARTS:
            raise InputError(f"start must be one of {', '.join(STARTS)}; it was {start!r}")
        shapes, layers = source.config.linear_shapes(), source.config.n_layer
        if tied:
            widths = [shapes[name][1 if linear.writes_stream else 0] for name, linear in LINEARS.items()]
            heads = [(layers, width) for width in widths] + [(1, source.config.n_embd)]
        else:
            heads = [(layers, sum(shapes[name])) for name in LINEARS]
        super().__init__(heads, task_dim, rank, shared_inner)
        self.group, self.tied, self.shapes = group, tied, shapes
        if start == "one-hot":
            self.kept_coordinates = slice(0, None, group)
        self._q_to_p = group**0.5 if start == "one-hot" else 1.0
        with torch.no_grad():
            for name, bias in zip([*LINEARS, "stream"], self.outer_bias):
                bias.copy_(_start(start, bias.shape, group))
                if name in LINEARS:
                    self._columns(name, bias).mul_(self._q_to_p)

    def factors(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t (U, task_dim) -> p (U, sum of rows), q (U, sum of cols), ordered by operator, then layer."""
        outputs = self.evaluate(t)  # [L, U, N + M]; tied: [L, U, N or M], and last the stream's [1, U, d]
        p: list[Tensor] = []
        q: list[Tensor] = []
        for (name, linear), own in zip(LINEARS.items(), outputs):
            if not self.tied:
                parts = own.split(self.shapes[name], dim=2)
            elif linear.writes_stream:
                parts = outputs[-1].expand(len(own), -1, -1), own
            else:
                parts = own, self._q_to_p * outputs[-1].expand(len(own), -1, -1)
            for factor, part in zip((p, q), parts):
                factor.append(part.transpose(0, 1).reshape(t.shape[0], -1))
        return torch.cat(p, dim=1), torch.cat(q, dim=1)

    def factors_by_layer(self, t: Tensor) -> list[tuple[Tensor, Tensor]]:
        """t (U, task_dim) -> p (U, sum of rows), q (U, sum of cols) of each layer, ordered by operator."""
        by_layer = []
        for axis, factor in enumerate(self.factors(t)):
            sizes = [shape[axis] for shape in self.shapes.values()]
            layers = factor.shape[1] // sum(sizes)
            operators = factor.split([layers * size for size in sizes], dim=1)
            by_layer.append(torch.cat([o.unflatten(1, (layers, -1)) for o in operators], dim=2).unbind(1))
        return list(zip(*by_layer))

    def forward(self, source: GPT, t: Tensor) -> TaskWeights:
        return project_factors(source, [self], [self.factors(t)])[0]

    def biases(self, source: LinearOperators, p: Tensor) -> list[Tensor]:
        """P b_1 (U, n) of each linear operator."""
        bias = torch.cat([source.biases[name].reshape(-1) for name in LINEARS])  # ordered as p is
        widths = [self.shapes[name][0] // self.group for name in LINEARS for _ in range(source.config.n_layer)]
        return list((p * bias).view(p.shape[0], -1, self.group).sum(2).split(widths, dim=1))

    def _columns(self, name: str, both: Tensor) -> Tensor:
        """The part of an operator's own outputs (L, ...) that is q."""
        rows = self.shapes[name][0]
        if not self.tied:
            return both[:, rows:]
        return both if LINEARS[name].writes_stream else both[:, :0]


def _start(kind: str, shape: torch.Size, group: int) -> Tensor:
    """Initial p, (..., a multiple of g)."""
    if kind == "one-hot":
        p = torch.zeros(shape)
        p[..., ::group] = 1
        return p
    p = torch.full(shape, group**-0.25)
    if kind == "noise":
        p *= 1 + 0.5 * torch.randn(shape)
    elif kind == "signs":
        p *= 2.0 * torch.randint(2, shape) - 1
    return p


def project_factors(
    source: LinearOperators,
    generators: list[DiagonalGenerator],
    factors: list[tuple[Tensor, Tensor]],
    dtype: torch.dtype | None = None,
) -> list[TaskWeights]:
    """Project one source for several generators, all layers in one call, from one read of it.

    Args:
        source: the model to project.
        generators: each of another scale.
        factors: p and q of each generator (see ``DiagonalGenerator.factors``).
        dtype: of the weights; the source's unless given.
    """
    weights = project_layers(
        [source.weights[name] for name in LINEARS] * len(generators),
        torch.cat([p for p, _ in factors], dim=1),
        torch.cat([q for _, q in factors], dim=1),
        [generator.group for generator in generators for _ in LINEARS],
        dtype=dtype,
    )
    count = len(weights) // len(generators)
    return [
        TaskWeights(weights[i * count : (i + 1) * count], generator.biases(source, p))
        for i, (generator, (p, _)) in enumerate(zip(generators, factors))
    ]
