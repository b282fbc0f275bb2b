"""Checks of arguments that ``project``, ``project_layers`` and ``project_linear`` share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.numbers import whole_number

Group = int | tuple[int, int]


def group_pairs(weights: Sequence[Tensor], group: Group | list[Group]) -> list[tuple[int, int]]:
    """(row_group, col_group) of each weight (..., N, M); raises InputError where one does not divide its axis."""
    groups = group if isinstance(group, list) else [group] * len(weights)
    if len(groups) != len(weights):
        raise InputError(f"group must have one entry for each of the {len(weights)} weights; it had {len(groups)}")
    pairs = []
    for i, (w, entry) in enumerate(zip(weights, groups)):
        pair = [whole_number(g) for g in (entry if isinstance(entry, tuple) else (entry, entry))]
        if len(pair) != 2 or not all(g is not None and g >= 1 for g in pair):
            raise InputError(f"group must be an int >= 1 or two of them (row_group, col_group); it was {entry!r}")
        for axis, size, g in zip(("rows", "columns"), w.shape[-2:], pair):
            assert g is not None
            if size % g:
                raise InputError(f"group must divide the {axis} of weights[{i}]; {g} does not divide {size}")
        pairs.append((pair[0], pair[1]))
    return pairs  # type: ignore[return-value]


def check_kinds(weights: Sequence[Tensor], p: Tensor, q: Tensor) -> None:
    """Raise TypeError or InputError unless dtypes and devices agree; p and q are float64 where the weights are."""
    first = weights[0]
    for name, tensor in (*((f"weights[{i}]", w) for i, w in enumerate(weights)), ("p", p), ("q", q)):
        if isinstance(tensor, Tensor) and tensor.layout != torch.strided:
            raise TypeError(f"{name} must be dense; it was {tensor.layout}")
    if not first.dtype.is_floating_point:
        raise TypeError(f"weights must be of a floating type; weights[0] was {first.dtype}")
    for i, w in enumerate(weights):
        if w.dtype != first.dtype or w.device != first.device:
            raise InputError(
                f"weights must share one dtype and device; weights[0] was {describe(first)} "
                f"and weights[{i}] was {describe(w)}"
            )
    factor_dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    for name, factor in (("p", p), ("q", q)):
        if not isinstance(factor, Tensor):
            raise TypeError(f"{name} must be a tensor; it was {describe(factor)}")
        if factor.dtype != factor_dtype:
            raise TypeError(f"{name} must be {factor_dtype} for {first.dtype} weights; it was {factor.dtype}")
        if factor.device != first.device:
            raise InputError(f"{name} must be on the device of the weights, {first.device}; it was on {factor.device}")


def check_width(name: str, factor: Tensor, width: int, axis: str) -> None:
    """Raise InputError unless the last axis of p or q has one element for each of the rows or columns."""
    if factor.dim() == 0 or factor.shape[-1] != width:
        raise InputError(
            f"{name} must have a last axis of {width}, one for each of the {axis} of all weights; "
            f"it was {describe(factor)}"
        )


def require_tensor(name: str, value: object) -> None:
    """Raise TypeError unless a value is a dense tensor of real numbers."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex():
        raise TypeError(f"{name} must be a dense tensor of real numbers; it was {describe(value)}")


def describe(value: object) -> str:
    """A value as an error shows it: dtype, shape and device of a tensor."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"
