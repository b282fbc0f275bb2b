"""Weight generators by name: from a source and a task identifier to a small model's linear operators.

Each is used in the same way, in training and in projection (paper, Sec. 2 and appendix B; docs/generators.md).
"""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from typing import Any

import torch

from ...utils.errors import InputError
from ..gpt import GPT
from ..layout import GPTConfig
from .additive import LinearGenerator, LowRankGenerator, ModularGenerator
from .base import Generator, TaskWeights, group_of
from .diagonal import STARTS, DiagonalGenerator, project_factors
from .source import BlockGenerator, GeneralGenerator

__all__ = [
    "GENERATORS",
    "STARTS",
    "DiagonalGenerator",
    "Generator",
    "TaskWeights",
    "count_parameters",
    "group_of",
    "make_generator",
    "project_factors",
    "rank_for",
]

GENERATORS: dict[str, type[Generator]] = {
    "diagonal": DiagonalGenerator,
    "general": GeneralGenerator,
    "blocks": BlockGenerator,
    "linear": LinearGenerator,
    "modular": ModularGenerator,
    "low-rank": LowRankGenerator,
}
"""The kinds by name."""

LARGEST_RANK = 1 << 14
NEAR = 0.1


def make_generator(kind: str, source: GPT, group: int, task_dim: int, rank: int, **options: Any) -> Generator:
    """A fresh generator.

    Raises:
        InputError: an unknown kind, an option that this kind does not have or a value that it does not take.
    """
    if kind not in GENERATORS:
        raise InputError(f"generator must be one of {', '.join(GENERATORS)}; it was {kind!r}")
    own_options = GENERATORS[kind].options()
    for name in options:
        if name not in own_options:
            known = ", ".join(own_options) or "none"
            raise InputError(f"options of the generator {kind!r} must be among its own ({known}); one was {name!r}")
    return GENERATORS[kind](source, group, task_dim, rank, **options)


def count_parameters(
    kind: str, config: GPTConfig, scale: float | Fraction, task_dim: int, rank: int, **options: Any
) -> int:
    """Parameters of a generator alone, without the operator's tables and biases, which all kinds have.

    Args:
        kind: one of ``GENERATORS``.
        config: of the source.
        scale: s.
        task_dim: length of t.
        rank: inner width r.
        options: of the kind.

    Raises:
        InputError: arguments that no generator takes.
    """
    with torch.device("meta"):
        group = group_of(scale, config.n_embd, config.n_head)
        generator = make_generator(kind, GPT(config), group, task_dim, rank, **options)
    return sum(parameter.numel() for parameter in generator.parameters())


def rank_for(
    kind: str, parameters: int, config: GPTConfig, scale: float | Fraction, task_dim: int, **options: Any
) -> int:
    """The rank r that brings a kind nearest to a number of parameters, as ``count_parameters`` counts them.

    Raises:
        InputError: no r up to 16,384 comes within 10 % of it.
    """

    def count(rank: int) -> int:
        return count_parameters(kind, config, scale, task_dim, rank, **options)

    above = 1 + bisect_left(range(1, LARGEST_RANK + 1), parameters, key=count)
    ranks = [1, max(1, above - 1), min(above, LARGEST_RANK)]
    rank = min(ranks, key=lambda r: (abs(count(r) - parameters), r))
    if abs(count(rank) - parameters) > NEAR * parameters:
        raise InputError(
            f"parameters must be near those of a generator {kind!r} of some rank; the nearest to {parameters:,} "
            f"is {count(rank):,}, at rank {rank}"
        )
    return rank
