"""P of one axis: which source coordinates each block of it reads, and its start.

P is dense (one block), block-diagonal (blocks of so many kept coordinates, each with its share of the dropped ones), or
a grouped diagonal (blocks of one kept coordinate): in the last form it is what ``projkern.project`` computes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .compensation import predict_dropped


@dataclass(frozen=True)
class Projection:
    """A projection of one axis of one matrix, from ``size`` coordinates to those that are kept.

    Args:
        coordinates: (n, s) source coordinates of each of n blocks; -1 where a block has none.
        values: (n, s, k) float32, each block's part of P: k kept coordinates from s.
    """

    coordinates: Tensor
    values: Tensor


def selection(size: int, kept: Tensor, block: int | None) -> Projection:
    """The projection that selects: 1 from each kept coordinate to its place, 0 elsewhere.

    Args:
        size: coordinates of the source.
        kept: (m,) those that stay, ascending; the order of the small model.
        block: kept coordinates a block; None, or as many as are kept, for one dense block.
    """
    m = len(kept)
    values = torch.zeros(shape_of(size, m, block))
    if block is None or block >= m:
        values[0, kept, torch.arange(m)] = 1
        return Projection(torch.arange(size)[None], values)
    n = len(values)
    dropped = _complement(size, kept)
    coordinates = torch.full(values.shape[:2], -1)
    places = torch.arange(m)
    coordinates[places // block, places % block] = kept
    values[places // block, places % block, places % block] = 1
    turns = torch.arange(len(dropped))
    coordinates[turns % n, block + turns // n] = dropped
    return Projection(coordinates, values)


def shape_of(size: int, kept: int, block: int | None) -> tuple[int, int, int]:
    """The shape (n, s, k) of the values of ``selection``."""
    if block is None or block >= kept:
        return 1, size, kept
    n = -(-kept // block)
    return n, block + -(-(size - kept) // n), block


def compensated(projection: Projection, kept: Tensor, moments: Tensor) -> Projection:
    """A selection whose dropped coordinates are predicted from the kept ones of their block (``compensation.py``).

    Args:
        projection: of ``selection``.
        kept: (m,) as there.
        moments: (size, size) of the layer's input.
    """
    values = projection.values.clone()
    is_kept = torch.zeros(moments.shape[0], dtype=torch.bool)
    is_kept[kept] = True
    for coordinates, block in zip(projection.coordinates, values):
        is_there = coordinates >= 0
        has_place = is_there & is_kept[coordinates]
        is_dropped = is_there & ~is_kept[coordinates]
        columns = block[has_place].argmax(1)  # the place of each kept coordinate in the small model's block
        weights = predict_dropped(moments, coordinates[has_place], coordinates[is_dropped])
        block[is_dropped.nonzero(), columns[None]] = weights.cpu()
    return Projection(projection.coordinates, values)


def _complement(size: int, kept: Tensor) -> Tensor:
    is_dropped = torch.ones(size, dtype=torch.bool)
    is_dropped[kept] = False
    return is_dropped.nonzero()[:, 0]
