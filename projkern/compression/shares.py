"""Which parameters lie in one stack, and which process owns each: has its W, P and A, and steps them.

W_C of all stacks = |W_C| numbers, the only ones that travel: each from its owner, its gradient to its owner
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..models.huggingface.axes import Axes, kind_of

_LARGEST_STACK = 1 << 19
"""Numbers of W in a stack of several layers; a larger matrix is a stack by itself, and is not copied."""

Shapes = Mapping[str, tuple[int, ...]]


def stacks_of(shapes: Shapes, axes: Axes) -> list[list[str]]:
    """The names of parameters of one kind and shape, in several layers, stack by stack."""
    alike: dict[object, list[str]] = {}
    for name, shape in shapes.items():
        alike.setdefault((kind_of(name), shape, axes[name]), []).append(name)
    return [run for names in alike.values() for run in _runs(names, math.prod(shapes[names[0]]))]


def owners(stacks: list[list[str]], shapes: Shapes, ranks: int) -> list[int]:
    """The rank that owns each stack: the largest first, each to the rank that has the fewest numbers of W so far."""
    sizes = [len(names) * math.prod(shapes[names[0]]) for names in stacks]
    loads, ranks_of = [0] * ranks, [0] * len(stacks)
    for index in sorted(range(len(stacks)), key=lambda i: -sizes[i]):
        owner = loads.index(min(loads))
        loads[owner] += sizes[index]
        ranks_of[index] = owner
    return ranks_of


def owned_names(shapes: Shapes, axes: Axes, rank: int, ranks: int) -> set[str]:
    """The parameters whose stacks a rank owns."""
    stacks = stacks_of(shapes, axes)
    return {name for names, owner in zip(stacks, owners(stacks, shapes, ranks)) if owner == rank for name in names}


def _runs(names: list[str], numbers: int) -> list[list[str]]:
    length = max(1, _LARGEST_STACK // max(1, numbers))
    return [names[i : i + length] for i in range(0, len(names), length)]
