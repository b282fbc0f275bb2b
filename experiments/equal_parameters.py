"""Weight generators at equal parameters, to be compared as generators and not as sizes."""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from typing import Any

import torch

from projkern.models import GPT, GPTConfig
from projkern.models.generators import group_of, make_generator
from projkern.utils.errors import InputError

LARGEST_RANK = 1 << 14
NEAR = 0.1


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
