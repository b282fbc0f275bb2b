"""y = x W_s^T, W_s = P W Q (arXiv 2506.05641, Eq. 1), in three forms that differ in what they write and read.

    materialised    W_s[b], then y = x W_s^T
    projected       y in one kernel, which makes each tile of W_s where it is used
    factored        y[s,n] = sum_a p[n,a] sum_i W[n,a,i] (q[i] x[s,m])        i = (m, c)

The first and the last are made of operators that exist. The second is ``projkern::linear_forward`` and
``projkern::linear_backward``, which are opaque to ``torch.compile``.
"""

import importlib
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import batching, ops

Function = TypeVar("Function")


def materialised(x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
    """Generate W_s (B, n, m) in the type of x, then multiply. For the arguments see ``projkern.project_linear``."""
    (W_s,) = ops.project([weight[None]], p, q, [0, row_group, col_group], x.dtype)
    return torch.bmm(x, W_s.mT)


def factored(x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
    """Scale x, multiply by W itself once for all tasks, scale and sum. The product is made in the wider type."""
    if weight.shape[1] == 0:  # an empty sum is zero, also times a p that is infinite
        return materialised(x, weight, p, q, row_group, col_group)
    dtype = torch.promote_types(x.dtype, weight.dtype)
    wide = (x[..., None] * q.unflatten(1, (-1, col_group))[:, None]).to(dtype).flatten(2)  # [B, S, M]
    z = F.linear(wide, weight.to(dtype)).unflatten(2, (-1, row_group))  # [B, S, n, row_group]
    return (z * p.unflatten(1, (-1, row_group))[:, None]).sum(-1).to(x.dtype)


def constant_in_graphs(function: Function) -> Function:
    """What ``torch.compiler.assume_constant_result`` does, without its import of Dynamo, which takes a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str | None]:
    """The Triton kernels, or the reason why there are none."""
    try:
        return importlib.import_module("projkern.kernels.backends.triton_linear"), None
    except ImportError as error:
        return None, f"Triton cannot be imported: {error}"


def _kernels() -> ModuleType:
    kernels, reason = _load()
    if kernels is None:
        raise RuntimeError(f"the projected form cannot run: {reason}")
    return kernels


@constant_in_graphs
def why_not_here(device: torch.device) -> str | None:
    """Why the projected form's kernels cannot run on a device; None if they can, Triton's interpreter included."""
    kernels, reason = _load()
    if kernels is not None and device.type != "cuda" and not kernels.INTERPRETED:
        return f"its kernels run on CUDA devices; the device was {device}"
    return reason


def is_interpreted() -> bool:
    """Whether the projected form's kernels would run in Triton's interpreter, on any device, and slowly."""
    kernels, _ = _load()
    return kernels is not None and kernels.INTERPRETED


def projected(x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
    """Multiply by tiles of W_s that are never written. ``why_not_served`` and ``why_not_here`` must be None."""
    if q is p:  # as in ops.project
        q = q.view_as(q)
    return _ProjectedLinear.apply(x, weight, p, q, row_group, col_group)


_library = torch.library.Library("projkern", "FRAGMENT")
_library.define("linear_forward(Tensor x, Tensor weight, Tensor p, Tensor q, int row_group, int col_group) -> Tensor")
_library.define(
    "linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor p, Tensor q, int row_group, int col_group,"
    " bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)
_forward = torch.ops.projkern.linear_forward.default
_backward = torch.ops.projkern.linear_backward.default


def _linear_forward(x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
    y = _fake_forward(x, weight, p, q, row_group, col_group)
    inputs = [t.detach().contiguous() for t in (x, weight, p, q)]
    _kernels().linear_forward(*inputs, row_group, col_group, y)
    return y


def _linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int, needs: list[bool]
) -> tuple[Tensor, ...]:
    outputs = _fake_backward(grad, x, weight, p, q, row_group, col_group, needs)
    # A gradient may arrive with any strides: expanded after a sum, sliced after a concatenation.
    inputs = [t.detach().contiguous() for t in (grad, x, weight, p, q)]
    targets = [out if need else None for out, need in zip(outputs, needs)]
    _kernels().linear_backward(*inputs, row_group, col_group, *targets)
    return outputs


def _fake_forward(x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0] // row_group)


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int, needs: list[bool]
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape if need else 0) for t, need in zip((x, weight, p, q), needs))


for _key in ("CPU", "CUDA"):
    _library.impl("linear_forward", _linear_forward, _key)
    _library.impl("linear_backward", _linear_backward, _key)
torch.library.register_fake("projkern::linear_forward", _fake_forward, lib=_library)
torch.library.register_fake("projkern::linear_backward", _fake_backward, lib=_library)


@torch.library.register_vmap("projkern::linear_forward", lib=_library)
def _batched_forward(info: Any, axes: Any, x: Any, weight: Any, p: Any, q: Any, *groups: int) -> Any:
    size = info.batch_size
    if axes[1] is not None:
        return torch.stack(batching.one_by_one(_forward, axes, (x, weight, p, q, *groups), size)), 0
    x, p, q = (batching.fold(t, axis, size) for t, axis in zip((x, p, q), (axes[0], *axes[2:4])))
    return _forward(x, weight, p, q, *groups).unflatten(0, (size, -1)), 0


@torch.library.register_vmap("projkern::linear_backward", lib=_library)
def _batched_backward(info: Any, axes: Any, *arguments: Any) -> Any:
    samples = batching.one_by_one(_backward, axes, arguments, info.batch_size)  # each has its own sum for dL/dW
    return tuple(map(torch.stack, zip(*samples))), (0, 0, 0, 0)


class _ProjectedLinear(torch.autograd.Function):
    """(x, weight, p, q, row_group, col_group) -> y"""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
        return _forward(x, weight, p, q, row_group, col_group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.row_group, ctx.col_group = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:4])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A further derivative follows: the factored form is the same function, and torch knows all of them.
            def same(x: Tensor, weight: Tensor, p: Tensor, q: Tensor) -> Tensor:
                return factored(x, weight, p, q, ctx.row_group, ctx.col_group)

            pull_back = torch.func.vjp(same, *inputs)[1]
            grads = [d if need else None for d, need in zip(pull_back(grad), needs)]
        else:
            outputs = _backward(grad, *inputs, ctx.row_group, ctx.col_group, needs)
            grads = [out if need else None for out, need in zip(outputs, needs)]
        return *grads, None, None
