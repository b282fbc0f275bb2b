"""Which kernels run: chosen by name with ``use_backend``, or the fastest that can, with ``auto``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch

from . import native, reference

NAMES = ("reference", "cpu", "triton", "cuda", "auto")

_chosen: ContextVar[str] = ContextVar("projkern_backend", default="auto")


def why_unavailable(name: str) -> str | None:
    """Why a backend cannot run here; None if it can."""
    if name == "cpu":
        return native.why_unavailable()
    if name in ("triton", "cuda"):
        return f"this version of projkern has no {name} kernels"
    return None


def available_backends() -> list[str]:
    """Names of the backends that can run here, ``auto`` left out."""
    return [name for name in NAMES if name != "auto" and why_unavailable(name) is None]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the projections inside the ``with`` block on one backend.

    Args:
        name: "reference" (plain torch, any device and dtype), "cpu" (the C++ kernels), "triton", "cuda", or
            "auto": the fastest backend that serves the tensors at hand.

    Raises:
        ValueError: ``name`` is not a backend.
        RuntimeError: the backend cannot run here; the message says why.
    """
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}; it was {name!r}")
    reason = why_unavailable(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def select(device: torch.device, weight_dtype: torch.dtype, output_dtype: torch.dtype) -> ModuleType:
    """The backend module that serves these tensors under the choice now in force."""
    name = _chosen.get()
    native_serves = device.type == "cpu" and native.supports(weight_dtype, output_dtype)
    if name == "reference" or (name == "auto" and not (native_serves and native.is_available())):
        return reference
    if not native_serves:
        raise TypeError(
            f"backend 'cpu' serves float32 and bfloat16 weights and outputs on the CPU; "
            f"they were {weight_dtype} and {output_dtype} on {device}"
        )
    return native
