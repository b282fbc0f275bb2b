"""The compiled CPU kernels: finds the library, hands it addresses and sizes.

`csrc/plan.h` has the formula. The library is loaded at its first use; where it is missing or cannot run
here, using it raises and says why. It starts no threads of its own: it runs on the OpenMP runtime that
torch has loaded.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .plan import Plan

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

INTERFACE = 1
"""kInterface of csrc/plan.h: what this file and the library say to each other."""

HUGE_PAGE_BYTES = 32 << 20
"""Results from this size up are fresh mappings at every call, each page of which faults once."""


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str | None]:
    """The library, or the reason why there is none."""
    try:
        library = importlib.import_module("projkern._native")
    except ImportError as error:
        return None, str(error)
    if getattr(library, "interface", None) != INTERFACE:
        return None, "the library beside this package was built from other sources"
    library.use_openmp(_gomp_parallel())
    return library, None


def _gomp_parallel() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that torch runs on, or 0.

    GCC's runtime, LLVM's and Intel's all export it.
    """
    for path in _openmp_runtimes():
        try:
            # Not to load a second runtime: this asks for the one that is there.
            runtime = ctypes.CDLL(path, mode=ctypes.DEFAULT_MODE | os.RTLD_NOLOAD)
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):  # without RTLD_NOLOAD (Windows) too
            continue
    return 0


def _openmp_runtimes() -> list[str]:
    names = ("libgomp", "libiomp5", "libomp")
    maps = Path("/proc/self/maps")
    if maps.exists():
        loaded = {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "/" in line}
    else:
        loaded = {str(path) for path in (Path(torch.__file__).parent / "lib").iterdir()}
    # Torch's own first, should another library have brought a second one.
    return sorted((path for path in loaded if Path(path).name.startswith(names)), key=lambda path: "torch" not in path)


def _library() -> ModuleType:
    library, reason = _load()
    if library is None:
        raise RuntimeError(
            f"projkern's compiled kernels cannot be used: {reason}. To build them, run `pip install .` in the "
            "project's root with a C++17 compiler (GCC >= 9 or Clang); PROJKERN_REQUIRE_NATIVE=1 shows what fails."
        )
    return library


def is_available() -> bool:
    return _load()[0] is not None


def why_unavailable() -> str | None:
    return _load()[1]


def build_info() -> dict[str, Any]:
    """How the library was built: compiler, flags, target, float32 lanes, CUDA, version and revision."""
    return dict(_library().build_info())


def supports(weight_dtype: torch.dtype, output_dtype: torch.dtype) -> bool:
    return weight_dtype in DTYPES and output_dtype in DTYPES


@lru_cache(maxsize=256)
def _native_plan(plan: Plan, shapes: tuple[tuple[int, ...], ...]) -> Any:
    matrices = [
        (m.weight, m.layer, m.rows, m.cols, m.row_group, m.col_group, m.p_offset, m.q_offset) for m in plan.matrices
    ]
    return _library().Plan(weights=shapes, matrices=matrices, p_width=plan.p_width, q_width=plan.q_width)


def _prepare(plan: Plan, weights: list[Tensor]) -> Any:
    return _native_plan(plan, tuple(tuple(weight.shape) for weight in weights))


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _fresh(tensor: Tensor) -> None:
    """Prepares a large result, most likely on memory that nobody has touched yet, for its first write."""
    size = tensor.numel() * tensor.element_size()
    if size >= HUGE_PAGE_BYTES:
        _library().prefer_huge_pages(tensor.data_ptr(), size)


def _weight_dtype(weights: list[Tensor]) -> str:
    return DTYPES[weights[0].dtype] if weights else "float32"


def project_forward(plan: Plan, weights: list[Tensor], p: Tensor, q: Tensor, out: Tensor) -> None:
    """Writes W_s of each matrix k into the flat buffer `out`, at plan.output_offsets(batch)[k].

    Args:
        weights: (layers, rows, cols) each, contiguous, all float32 or all bfloat16.
        p: (batch, plan.p_width) float32, contiguous. q: (batch, plan.q_width) alike.
        out: float32 or bfloat16, sum(plan.output_sizes(batch)) elements. Padding is not written.
    """
    native = _prepare(plan, weights)
    batch, start, size = p.shape[0], out.data_ptr(), out.element_size()
    _fresh(out)
    native.project_forward(
        _addresses(weights),
        _weight_dtype(weights),
        p.data_ptr(),
        q.data_ptr(),
        [start + offset * size for offset in plan.output_offsets(batch)],
        DTYPES[out.dtype],
        batch,
        torch.get_num_threads(),
    )


def project_backward(
    plan: Plan,
    weights: list[Tensor],
    p: Tensor,
    q: Tensor,
    grads: list[Tensor],
    d_weights: list[Tensor | None],
    dp: Tensor | None,
    dq: Tensor | None,
) -> None:
    """Writes the gradients that are given a place; the others cost nothing.

    Args:
        grads: dL/dW_s of each matrix, (batch, out_rows, out_cols), contiguous, all of one type.
        d_weights: as the weights, in their type, None where not wanted; what no matrix reads becomes zero.
        dp: as p. dq: as q.
    """
    native = _prepare(plan, weights)
    for d_weight in d_weights:
        if d_weight is not None:
            _fresh(d_weight)
    native.project_backward(
        _addresses(weights),
        _weight_dtype(weights),
        p.data_ptr(),
        q.data_ptr(),
        _addresses(grads),
        DTYPES[grads[0].dtype] if grads else "float32",
        [0 if d is None else d.data_ptr() for d in d_weights] if any(d is not None for d in d_weights) else [],
        dp.data_ptr() if dp is not None else 0,
        dq.data_ptr() if dq is not None else 0,
        p.shape[0],
        torch.get_num_threads(),
    )
