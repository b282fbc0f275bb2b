"""The compiled CUDA kernels: finds the library, hands it addresses, sizes and the current stream.

`csrc/cuda/` has the formulas. The library is loaded at its first use; where it is missing or cannot run here, using it
raises and says why. Everything that a launch needs travels in its arguments, so CUDA graphs capture it as it is.
"""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan
from . import extension
from .backend import Backward, Forward

SERVES = "float32, bfloat16 and float16 weights and float32 and bfloat16 outputs on a CUDA device"


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str | None]:
    """The library, or the reason why there is none."""
    not_built = "this installation was built without CUDA kernels; with nvcc on the PATH, PROJKERN_CUDA=1 builds them"
    return extension.load("projkern._cuda", not_built)


def _library() -> ModuleType:
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"projkern's CUDA kernels cannot be used: {reason}")
    return library


def is_built() -> bool:
    """Whether this installation has CUDA kernels, whatever runs here."""
    return _load()[0] is not None


def _runs_on_host(library: ModuleType) -> bool:
    """Whether the library is the build for tests that stands in for a card."""
    return bool(getattr(library, "on_host", False))


def why_unavailable() -> str | None:
    library, reason = _load()
    if library is None or _runs_on_host(library):
        return reason
    return _why_no_card()


@lru_cache(maxsize=1)
def _why_no_card() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA card"
    reasons = [_why_not_on(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else reasons[0]


@lru_cache(maxsize=64)
def _why_not_on(device_index: int) -> str | None:
    built_for = str(build_info()["architectures"]).split()
    capability = torch.cuda.get_device_capability(device_index)
    if runs_on(built_for, capability):
        return None
    name = torch.cuda.get_device_name(device_index)
    return (
        f"the kernels were compiled for architectures {', '.join(built_for)}, and {name} is "
        f"{capability[0]}{capability[1]}; CUDAARCHS chooses them (80 at the least)"
    )


def runs_on(built_for: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of CMake's architectures ("80-real", "90", "120-virtual") runs on a card of this capability.

    Machine code runs within its major version, from its minor version up; PTX on everything newer.
    """
    card = 10 * capability[0] + capability[1]
    for entry in built_for:
        architecture, _, kind = entry.partition("-")
        digits = "".join(filter(str.isdigit, architecture))
        if not digits:  # "native", "all": CMake's words, which it alone resolves
            return True
        number = int(digits)
        specific = not architecture.isdigit()  # "90a" runs on 90 alone
        if kind != "virtual" and (card == number if specific else number <= card and number // 10 == capability[0]):
            return True
        if kind != "real" and not specific and number <= card:
            return True
    return False


def build_info() -> dict[str, Any]:
    """How the library was built: compiler, architectures, version and revision."""
    return dict(_library().build_info())


def serves(device: torch.device, weight_dtype: torch.dtype, output_dtype: torch.dtype) -> bool:
    library = _load()[0]
    if library is None:
        return False
    if _runs_on_host(library):
        on_device = device.type == "cpu"
    else:
        on_device = device.type == "cuda" and _why_not_on(device.index or 0) is None
    return on_device and weight_dtype in extension.DTYPES and output_dtype in (torch.float32, torch.bfloat16)


@lru_cache(maxsize=256)
def _cuda_plan(library: ModuleType, plan: Plan, shapes: tuple[tuple[int, ...], ...]) -> Any:
    return extension.make_plan(library, plan, shapes)


def _prepare(plan: Plan, weights: list[Tensor]) -> Any:
    return _cuda_plan(_library(), plan, extension.shapes_of(weights))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def project_forward(plan: Plan, call: Forward) -> None:
    """Run on the current stream."""
    weights, p, q, flat = call
    cuda_plan = _prepare(plan, weights)
    batch = p.shape[0]
    with _on(p.device):
        cuda_plan.project_forward(
            weights=[w.data_ptr() for w in weights],
            weight_dtype=extension.dtype_name(weights),
            p=p.data_ptr(),
            q=q.data_ptr(),
            outputs=extension.output_addresses(plan, flat, batch),
            output_dtype=extension.DTYPES[flat.dtype],
            batch=batch,
            stream=_stream(p.device),
        )


def project_backward(plan: Plan, call: Backward) -> None:
    """Run on the current stream. ``d_weights`` may be in float32 whatever the weights are.

    Under ``torch.use_deterministic_algorithms`` every sum has a fixed order, at the price of a workspace for partial
    sums of dq; otherwise dq is summed by atomics.
    """
    weights, p, q, grads, d_weights, dp, dq = call
    cuda_plan = _prepare(plan, weights)
    batch, device = p.shape[0], p.device
    scales = Counter((m.weight, m.layer) for m in plan.matrices)
    read = {weight for weight, _ in scales}
    places = [d if d is None or i in read else None for i, d in enumerate(d_weights)]
    for i, d in enumerate(d_weights):
        if d is not None and (i not in read or batch == 0):
            d.zero_()
    # A 16-bit dW cannot collect the shares of several scales without rounding each.
    collect = max(scales.values(), default=0) > 1 and any(d is not None and d.dtype != torch.float32 for d in places)
    targets = [d.float() if d is not None else None for d in places] if collect else places
    deterministic = dq is not None and torch.are_deterministic_algorithms_enabled()
    workspace = p.new_empty(cuda_plan.partial_dq_size(batch)) if deterministic else None
    with _on(device):
        cuda_plan.project_backward(
            weights=[w.data_ptr() for w in weights],
            weight_dtype=extension.dtype_name(weights),
            p=p.data_ptr(),
            q=q.data_ptr(),
            grads=[g.data_ptr() for g in grads],
            grad_dtype=extension.dtype_name(grads),
            d_weights=extension.addresses(targets),
            d_weight_dtype=extension.dtype_name([d for d in targets if d is not None]),
            dp=extension.address(dp),
            dq=extension.address(dq),
            workspace=extension.address(workspace),
            batch=batch,
            stream=_stream(device),
        )
    if collect:
        for d, target in zip(places, targets):
            if d is not None and target is not None:
                d.copy_(target)
