"""The plan: one table that says which matrices a call projects, with which groups, from and to where.

Every backend reads the same plan, so all layers and operators of a model, at one scale or at
several, go through one call. A plan depends on shapes only and is cached; the batch size and the
addresses come with each call.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

ALIGN = 64
"""Each projected matrix starts at a multiple of this many elements: 128 bytes in bfloat16."""


@dataclass(frozen=True)
class Matrix:
    """One source matrix W (rows, cols) and the groups by which its rows and columns shrink."""

    weight: int  # index of the tensor that holds W in the list of weights
    layer: int  # index of W in that tensor's leading axis, 0 for a tensor of one matrix
    rows: int
    cols: int
    row_group: int
    col_group: int
    p_offset: int  # p[:, p_offset : p_offset + rows] combines the rows
    q_offset: int  # q[:, q_offset : q_offset + cols] combines the columns

    @property
    def out_rows(self) -> int:
        return self.rows // self.row_group

    @property
    def out_cols(self) -> int:
        return self.cols // self.col_group


@dataclass(frozen=True, eq=False)
class Plan:
    """The matrices of one call, in the order of its outputs. Compared by identity: ``make_plan`` caches."""

    matrices: tuple[Matrix, ...]
    p_width: int  # the width of p: the sum of all rows
    q_width: int  # the width of q: the sum of all cols

    def output_sizes(self, batch: int) -> list[int]:
        """Elements of the flat output buffer that each matrix takes, its padding included."""
        return [-(-batch * m.out_rows * m.out_cols // ALIGN) * ALIGN for m in self.matrices]

    def output_offsets(self, batch: int) -> list[int]:
        """Where each projected matrix (batch, out_rows, out_cols) starts in the flat output buffer."""
        return list(accumulate(self.output_sizes(batch), initial=0))[:-1]

    def output_views(self, flat: Tensor, batch: int) -> list[Tensor]:
        """The projected matrices (batch, out_rows, out_cols) as views of the flat output buffer."""
        return [
            part[: batch * m.out_rows * m.out_cols].view(batch, m.out_rows, m.out_cols)
            for part, m in zip(flat.split(self.output_sizes(batch)), self.matrices)
        ]

    def zero_padding(self, flat: Tensor, batch: int) -> None:
        """Make the whole flat output buffer a function of the inputs."""
        offsets = self.output_offsets(batch)
        ends = [offset + batch * m.out_rows * m.out_cols for m, offset in zip(self.matrices, offsets)]
        padding = [flat[end : end + -end % ALIGN] for end in ends if end % ALIGN]
        if padding:
            torch._foreach_zero_(padding)  # one launch on a card


@lru_cache(maxsize=256)
def make_plan(shapes: tuple[tuple[int, int, int], ...], entries: tuple[tuple[int, int, int], ...]) -> Plan:
    """Lay out a call.

    Args:
        shapes: (layers, rows, cols) of each weight tensor; one matrix counts as one layer.
        entries: (weight, row_group, col_group) of each projection of a whole weight tensor. A weight may
            appear several times, once for each scale.
    """
    matrices = []
    p_offset = q_offset = 0
    for weight, row_group, col_group in entries:
        layers, rows, cols = shapes[weight]
        for layer in range(layers):
            matrices.append(Matrix(weight, layer, rows, cols, row_group, col_group, p_offset, q_offset))
            p_offset += rows
            q_offset += cols
    return Plan(tuple(matrices), p_offset, q_offset)
