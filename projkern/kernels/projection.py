"""Projection of weights as a function: check the arguments, then one call into the kernels.

W_s = P W Q,   P_ij = p_j [j // g_r == i],   Q_ij = q_i [i // g_c == j]           (paper, Sec. 2.2)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.errors import InputError
from . import ops
from .arguments import Group, check_kinds, check_width, describe, group_pairs


def project(weight: Tensor, p: Tensor, q: Tensor, group: Group, *, dtype: torch.dtype | None = None) -> Tensor:
    """Project one weight matrix for every task of a batch.

    Each row of the result is a sum of ``group`` neighbouring source rows weighted by ``p``, and the same for
    the columns and ``q``. Differentiable in ``weight``, ``p`` and ``q``, in reverse mode, to any order.

    Args:
        weight: (N, M) source matrix W; float32, bfloat16, float16 or float64.
        p: (..., N) weights of the rows. float32, or float64 when ``weight`` is float64.
        q: (..., M) weights of the columns, of the same dtype and leading axes (which broadcast).
        group: how many neighbours make one: an int, or (row_group, col_group). 1 leaves an axis's size alone.
        dtype: of the result; that of ``weight`` unless given. Sums are made in float32 at the least.

    Returns:
        W_s (..., N / row_group, M / col_group).

    Raises:
        TypeError: an argument that is not a tensor, or of a dtype that is not served.
        InputError: shapes that disagree, a group that does not divide, devices that differ.
    """
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise InputError(f"weight must be a tensor (N, M); it was {describe(weight)}")
    if isinstance(p, Tensor) and isinstance(q, Tensor) and p.dim() and q.dim() and p.shape[:-1] != q.shape[:-1]:
        try:
            leading = torch.broadcast_shapes(p.shape[:-1], q.shape[:-1])
        except RuntimeError:
            raise InputError(
                f"p and q must have leading axes that broadcast; they were {describe(p)} and {describe(q)}"
            ) from None
        p, q = p.expand(*leading, p.shape[-1]), q.expand(*leading, q.shape[-1])
    return project_layers([weight], p, q, group, dtype=dtype)[0]


def project_layers(
    weights: Sequence[Tensor], p: Tensor, q: Tensor, group: Group | list[Group], *, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Project the matrices of many layers in one call, and for every task of a batch.

    Args:
        weights: matrices (N, M) or stacks of layers (L, N, M), all of one dtype on one device. The same tensor
            may appear several times, once for each scale that it is projected to; it is then read once.
        p: (..., sum of N over all matrices in order), the weights of the rows. float32, or float64 when the
            weights are float64.
        q: (..., sum of M over all matrices in order), the weights of the columns, of the same dtype and leading axes.
        group: an int or (row_group, col_group) for all, or a list with one of these for each of ``weights``.
        dtype: of the results; that of ``weights`` unless given. Sums are made in float32 at the least.

    Returns:
        One (..., N / row_group, M / col_group) for each matrix in order (a stack gives one for each of its
        layers). All are views of one buffer, and none is to be changed in place.

    Raises:
        TypeError: an argument that is not a tensor, or of a dtype that is not served.
        InputError: shapes that disagree, a group that does not divide, devices that differ.
    """
    try:
        weights = list(weights)
    except TypeError:
        raise TypeError(f"weights must be a list of tensors; it was {describe(weights)}") from None
    if not weights:
        raise InputError("weights must hold at least one matrix; it was empty")
    for i, w in enumerate(weights):
        if not isinstance(w, Tensor) or w.dim() not in (2, 3):
            raise InputError(f"weights[{i}] must be a tensor (N, M) or (L, N, M); it was {describe(w)}")
    groups = group_pairs(weights, group)
    check_kinds(weights, p, q)
    dtype = weights[0].dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype; it was {describe(dtype)}")
    if not dtype.is_floating_point or (dtype == torch.float64) != (p.dtype == torch.float64):
        raise TypeError(f"dtype must be a floating type, float64 with float64 weights only; it was {dtype}")

    distinct: dict[int, int] = {}
    stacks: list[Tensor] = []
    entries: list[int] = []
    rows = cols = 0
    for w, (row_group, col_group) in zip(weights, groups):
        if id(w) not in distinct:
            distinct[id(w)] = len(stacks)
            stacks.append(w if w.dim() == 3 else w[None])
        entries += (distinct[id(w)], row_group, col_group)
        layers = w.shape[0] if w.dim() == 3 else 1
        rows, cols = rows + layers * w.shape[-2], cols + layers * w.shape[-1]
    check_width("p", p, rows, "rows")
    check_width("q", q, cols, "columns")
    if p.shape[:-1] != q.shape[:-1]:
        raise InputError(f"p and q must have the same leading axes; they were {describe(p)} and {describe(q)}")

    leading = p.shape[:-1]
    if len(leading) == 1:
        return ops.project(stacks, p, q, entries, dtype)
    batch = math.prod(leading)
    outputs = ops.project(stacks, p.reshape(batch, rows), q.reshape(batch, cols), entries, dtype)
    return [out.view(*leading, *out.shape[1:]) for out in outputs]
