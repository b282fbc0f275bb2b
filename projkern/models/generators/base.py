"""The interface of every weight generator, and the MLPs of t that most of them consist of.

    o(t) = W_o silu(W_i t + b_i) + b_o,   W_i: r x dim t                                        (paper, Sec. 3.2)

with the inner width r, which options call the rank.
"""

import inspect
import math
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.numbers import require_real
from ..gpt import GPT

COMMON_ARGUMENTS = ("source", "group", "task_dim", "rank")
"""What the constructor of every kind takes first."""


class TaskWeights(NamedTuple):
    """The linear operators of U generated models, by operator and then layer."""

    weights: list[Tensor]  # each (U, n, m)
    biases: list[Tensor]  # each (U, n)

    def of_examples(self, which: Tensor | None) -> "TaskWeights":
        """A copy for each example of the weights of its task, ``which`` (B,) of the U; None: no task needs one."""
        if which is None:
            return self
        return TaskWeights([w[which] for w in self.weights], [b[which] for b in self.biases])


class Generator(nn.Module):
    """Generates small models' linear operators from a source and task identifiers.

    Initially no kind's result depends on t. Attribute ``kept_coordinates``: the coordinates of the source's residual
    stream that are initially the small models' stream, or None where that is the sums of neighbours.
    """

    kept_coordinates: slice | None = None

    @classmethod
    def options(cls) -> list[str]:
        """Names of the constructor's arguments that this kind has beyond those of all kinds."""
        return [name for name in inspect.signature(cls).parameters if name not in COMMON_ARGUMENTS]

    def forward(self, source: GPT, t: Tensor) -> TaskWeights:
        """Weights for t (U, task_dim), of the parameters' dtype; the operator's own biases are not added."""
        raise NotImplementedError


class MLPGenerator(Generator):
    """A generator with two-layer MLPs of t, all evaluated together. Initially W_o and b_o are zero.

    Args:
        heads: (number of MLPs, outputs of each) for each stack of MLPs, such as one linear operator's in all layers.
        task_dim: length of t.
        rank: inner width r.
        shared_inner: one W_i and b_i for all MLPs instead of one each.
    """

    def __init__(self, heads: list[tuple[int, int]], task_dim: int, rank: int, shared_inner: bool = False) -> None:
        super().__init__()
        self.rank = rank
        self._counts = [count for count, _ in heads]
        bound = 1 / math.sqrt(task_dim)
        hidden = rank * (1 if shared_inner else sum(self._counts))
        self.inner_weight = nn.Parameter(torch.empty(hidden, task_dim).uniform_(-bound, bound))
        self.inner_bias = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        self.outer_weight = nn.ParameterList(nn.Parameter(torch.zeros(*head, rank)) for head in heads)
        self.outer_bias = nn.ParameterList(nn.Parameter(torch.zeros(*head)) for head in heads)

    def evaluate(self, t: Tensor) -> list[Tensor]:
        """t (U, task_dim) -> (MLPs, U, outputs) of each stack, in t's type, which may be wider than the parameters'."""
        hidden = F.silu(F.linear(t, self.inner_weight.to(t.dtype), self.inner_bias.to(t.dtype)))
        hidden = hidden.view(t.shape[0], -1, self.rank).transpose(0, 1).expand(sum(self._counts), -1, -1)
        stacks = zip(hidden.split(self._counts), self.outer_weight, self.outer_bias)
        return [torch.baddbmm(b[:, None].to(t.dtype), h, W.mT.to(t.dtype)) for h, W, b in stacks]


def unstack(stacks: list[Tensor]) -> list[Tensor]:
    """(L, U, ...) of each linear operator -> (U, ...), by operator and then layer."""
    return [layer for stack in stacks for layer in stack.unbind(0)]


def group_of(scale: float | Fraction, n_embd: int, n_head: int) -> int:
    """The group g = 1/s of a scale s, checked against the source's width and heads."""
    group = group_of_scale(scale)
    if n_embd % (group * n_head):
        raise InputError(
            f"scale must leave each of the source's {n_head} heads of width {n_embd // n_head} a whole width; "
            f"it was 1/{group}"
        )
    return group


def group_of_scale(scale: float | Fraction) -> int:
    """The group g = 1/s of a scale s; raises InputError where that is no integer."""
    require_real("scale", scale)
    group = round(1 / scale) if 0 < scale <= 1 else 0
    if group < 1 or abs(group * scale - 1) > 1e-6:
        raise InputError(f"scale must be 1/g for an integer g >= 1, such as 1/2 or 1/4; it was {scale}")
    return group
