"""What the compiled libraries, `_cpu` and `_cuda`, have in common: how they load, how a plan is handed over."""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from ..plan import Plan

INTERFACE = 2
"""kInterface of csrc/plan.h: the interface between Python and the libraries."""

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def load(name: str, not_built: str) -> tuple[ModuleType | None, str | None]:
    """The library, or the reason why there is none.

    Args:
        name: of the module.
        not_built: the reason where this installation has none.
    """
    try:
        library = importlib.import_module(name)
    except ModuleNotFoundError:
        return None, not_built
    except ImportError as error:
        return None, str(error)
    if getattr(library, "interface", None) != INTERFACE:
        return None, "the library beside this package was built from other sources; `pip install .` builds it anew"
    return library, None


def make_plan(library: ModuleType, plan: Plan, shapes: tuple[tuple[int, ...], ...]) -> object:
    """The library's own copy of a plan over weights of these shapes (layers, rows, cols)."""
    matrices = [
        (m.weight, m.layer, m.rows, m.cols, m.row_group, m.col_group, m.p_offset, m.q_offset) for m in plan.matrices
    ]
    return library.Plan(weights=shapes, matrices=matrices, p_width=plan.p_width, q_width=plan.q_width)


def shapes_of(weights: list[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple([tuple(weight.shape) for weight in weights])  # at every call: a list is faster than a generator


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def addresses(tensors: list[Tensor] | list[Tensor | None]) -> list[int]:
    """One for each tensor, 0 for None; none at all where every tensor is None."""
    return [address(t) for t in tensors] if any(t is not None for t in tensors) else []


def dtype_name(tensors: list[Tensor]) -> str:
    return DTYPES[tensors[0].dtype] if tensors else "float32"


def output_addresses(plan: Plan, flat: Tensor, batch: int) -> list[int]:
    start, size = flat.data_ptr(), flat.element_size()
    return [start + offset * size for offset in plan.output_offsets(batch)]
