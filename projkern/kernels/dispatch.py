"""Which kernels run: chosen by name with ``use_backend``, or the fastest that can, with ``auto``."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch

from ..utils.errors import InputError
from .backends import cpu, cuda, reference, triton
from .backends.backend import Backend

_BACKENDS: dict[str, Backend] = {"reference": reference, "cpu": cpu, "triton": triton, "cuda": cuda}
_FASTEST_FIRST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

BACKENDS = tuple(_BACKENDS)
NAMES = (*BACKENDS, "auto")

_chosen = ContextVar("projkern backend", default="auto")


def why_unavailable(name: str) -> str | None:
    """Why a backend cannot run here; None if it can."""
    return _BACKENDS[name].why_unavailable()


def available_backends() -> list[str]:
    """Names of the backends that can run here, ``auto`` left out."""
    return [name for name in _BACKENDS if why_unavailable(name) is None]


def describe(device: torch.device) -> str:
    """What projects on a device, for a run's first line; where that is plain torch, why."""
    fastest = _fastest(device)
    if fastest is not reference:
        return next(name for name, backend in _BACKENDS.items() if backend is fastest)
    return f"plain torch, which is slow{_why_slow(device)}"


def _fastest(device: torch.device) -> Backend:
    candidates = (_BACKENDS[name] for name in _FASTEST_FIRST.get(device.type, ()))
    return next((backend for backend in candidates if backend.why_unavailable() is None), reference)


def _why_slow(device: torch.device) -> str:
    best = _FASTEST_FIRST.get(device.type, ())[:1]
    return "".join(f": {why_unavailable(name)}" for name in best)


@lru_cache
def _warn_of_slow(device_type: str) -> None:
    """Warn once that plain torch projects: an installation without kernels says so to nobody."""
    warnings.warn(f"projections run in plain torch, which is slow{_why_slow(torch.device(device_type))}", stacklevel=2)


def build_info() -> dict[str, dict[str, Any]]:
    """How each compiled library that is installed was built, whatever can run here."""
    return {name: module.build_info() for name, module in (("cpu", cpu), ("cuda", cuda)) if module.is_built()}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the projections inside the ``with`` block on one backend.

    The choice is the calling thread's (a context variable): other threads keep their own, and one that is started
    inside begins with "auto", unless it runs in this thread's context (``contextvars.copy_context().run``). A backward,
    whenever and in whichever thread it runs, takes the choice of its forward. A graph of ``torch.compile`` is the same
    for all backends: forward and backward each take the choice of the thread that they run in, when they run.

    Args:
        name: "reference" (plain torch, any device and dtype), "cpu" (the C++ kernels), "triton", "cuda" (the CUDA
            kernels), or "auto": the fastest backend that serves the tensors at hand.

    Raises:
        InputError: ``name`` is not a backend.
        RuntimeError: the backend cannot run here; the message says why.
    """
    if name not in NAMES:
        raise InputError(f"backend must be one of {', '.join(NAMES)}; it was {name!r}")
    reason = None if name == "auto" else why_unavailable(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
    with choice(name):
        yield


def chosen() -> str:
    """The choice now in force, in this thread."""
    return _chosen.get()


@contextmanager
def choice(name: str) -> Iterator[None]:
    """As ``use_backend``, of a name that ``chosen`` returned."""
    previous = _chosen.get()
    _chosen.set(name)
    try:
        yield
    finally:
        _chosen.set(previous)


def select(device: torch.device, weight_dtype: torch.dtype, output_dtype: torch.dtype) -> Backend:
    """The backend that serves these tensors under the choice now in force."""
    name = chosen()
    if name == "auto":
        for candidate in _FASTEST_FIRST.get(device.type, ()):
            backend = _BACKENDS[candidate]
            if backend.serves(device, weight_dtype, output_dtype) and backend.why_unavailable() is None:
                return backend
        if device.type in _FASTEST_FIRST and _fastest(device) is reference:
            _warn_of_slow(device.type)
        return reference
    backend = _BACKENDS[name]
    if not backend.serves(device, weight_dtype, output_dtype):
        raise TypeError(
            f"backend {name!r} serves {backend.SERVES}; they were {weight_dtype} and {output_dtype} on {device}"
        )
    return backend
