"""The projection as torch operators: schema, fake kernels, dispatch to a backend, and gradients.

``projkern::project_forward`` and ``projkern::project_backward`` are opaque to ``torch.compile``. The autograd
functions stand outside of them. Both are differentiable: the map is trilinear in (W, p, q), so the gradient
of the backward is made of the same two operators, and every order of derivative follows.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.device import without_autocast
from . import batching, dispatch
from .backends.backend import Backward, Forward
from .memory import new_empty
from .plan import ALIGN, Plan, make_plan

_library = torch.library.Library("projkern", "DEF")
_library.define("project_forward(Tensor[] weights, Tensor p, Tensor q, int[] entries, ScalarType dtype) -> Tensor")
_library.define(
    "project_backward(Tensor[] weights, Tensor p, Tensor q, Tensor[] grads, int[] entries,"
    " bool[] need_weights, bool need_p, bool need_q) -> (Tensor[], Tensor, Tensor)"
)
_forward = torch.ops.projkern.project_forward.default
_backward = torch.ops.projkern.project_backward.default


def project(weights: list[Tensor], p: Tensor, q: Tensor, entries: list[int], dtype: torch.dtype) -> list[Tensor]:
    """Project every matrix of ``entries``; no argument is checked here.

    Args:
        weights: distinct tensors (layers, rows, cols) of one dtype on one device.
        p: (B, sum of rows over the matrices), q: (B, sum of cols), float32 (float64 for float64 weights).
        entries: (weight, row_group, col_group) of each projection, flattened.
        dtype: of the result.

    Returns:
        One (B, rows / row_group, cols / col_group) for each matrix: the layers of the first entry, of the
        second, and so on. All are views of one buffer.
    """
    if q is p:  # Dynamo refuses a tensor that is two inputs of an autograd function
        q = q.view_as(q)
    return list(_Project.apply(p, q, entries, dtype, *weights))


def _plan(weights: list[Tensor], entries: list[int]) -> Plan:
    shapes = tuple([(int(w.shape[0]), int(w.shape[1]), int(w.shape[2])) for w in weights])  # faster than a generator
    # Dynamo cannot trace a cached function; it calls this once for each graph.
    build = make_plan.__wrapped__ if torch.compiler.is_compiling() else make_plan
    return build(shapes, tuple(zip(entries[::3], entries[1::3], entries[2::3])))


@torch.no_grad()
def _project_forward(weights: list[Tensor], p: Tensor, q: Tensor, entries: list[int], dtype: torch.dtype) -> Tensor:
    plan, batch = _plan(weights, entries), p.shape[0]
    flat = new_empty(p, (sum(plan.output_sizes(batch)),), dtype)
    backend = dispatch.select(p.device, weights[0].dtype, dtype)
    with without_autocast(p.device):  # sums stay in float32
        call = Forward([w.contiguous() for w in weights], p.contiguous(), q.contiguous(), flat)
        backend.project_forward(plan, call)
    plan.zero_padding(flat, batch)
    return flat


@torch.no_grad()
def _project_backward(
    weights: list[Tensor],
    p: Tensor,
    q: Tensor,
    grads: list[Tensor],
    entries: list[int],
    need_weights: list[bool],
    need_p: bool,
    need_q: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    plan = _plan(weights, entries)
    # A gradient may arrive with any strides: expanded after a sum, sliced after a concatenation.
    grads = [g.contiguous() for g in grads]
    weights = [w.contiguous() for w in weights]
    d_weights = [new_empty(w, w.shape if need else (0,)) for w, need in zip(weights, need_weights)]
    dp = p.new_empty(p.shape if need_p else 0)
    dq = q.new_empty(q.shape if need_q else 0)
    backend = dispatch.select(p.device, weights[0].dtype, grads[0].dtype)
    with without_autocast(p.device):
        call = Backward(
            weights,
            p.contiguous(),
            q.contiguous(),
            grads,
            [d if need else None for d, need in zip(d_weights, need_weights)],
            dp if need_p else None,
            dq if need_q else None,
        )
        backend.project_backward(plan, call)
    return d_weights, dp, dq


# On every device: dispatch.py chooses the backend, the reference at the least.
_library.impl("project_forward", _project_forward, "CompositeExplicitAutograd")
_library.impl("project_backward", _project_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("projkern::project_forward", lib=_library)
def _fake_forward(weights: list[Tensor], p: Tensor, q: Tensor, entries: list[int], dtype: torch.dtype) -> Tensor:
    return p.new_empty(sum(_plan(weights, entries).output_sizes(p.shape[0])), dtype=dtype)


@torch.library.register_fake("projkern::project_backward", lib=_library)
def _fake_backward(
    weights: list[Tensor],
    p: Tensor,
    q: Tensor,
    grads: list[Tensor],
    entries: list[int],
    need_weights: list[bool],
    need_p: bool,
    need_q: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    d_weights = [w.new_empty(w.shape if need else 0) for w, need in zip(weights, need_weights)]
    return d_weights, p.new_empty(p.shape if need_p else 0), q.new_empty(q.shape if need_q else 0)


@torch.library.register_vmap("projkern::project_forward", lib=_library)
def _batched_forward(info: Any, axes: Any, weights: Any, p: Any, q: Any, entries: Any, dtype: Any) -> Any:
    size = info.batch_size
    if batching.is_batched(axes[0]):
        return torch.stack(batching.one_by_one(_forward, axes, (weights, p, q, entries, dtype), size)), 0
    p, q = (batching.fold(t, axis, size) for t, axis in zip((p, q), axes[1:3]))
    plan, batch = _plan(weights, entries), len(p)
    views = plan.output_views(_forward(weights, p, q, entries, dtype), batch)
    padded = [F.pad(v.reshape(size, -1), (0, -v.numel() // size % ALIGN)) for v in views]
    return torch.cat(padded, 1), 0


@torch.library.register_vmap("projkern::project_backward", lib=_library)
def _batched_backward(
    info: Any, axes: Any, weights: Any, p: Any, q: Any, grads: Any, entries: Any, need_weights: Any, *needs: Any
) -> Any:
    size = info.batch_size
    if batching.is_batched(axes[0]) or any(need_weights):  # of dL/dW each sample has its own sum over tasks
        arguments = (weights, p, q, grads, entries, need_weights, *needs)
        d_weights, dp, dq = zip(*batching.one_by_one(_backward, axes, arguments, size))
        results = [torch.stack(samples) for samples in zip(*d_weights)], torch.stack(dp), torch.stack(dq)
    else:
        p, q = (batching.fold(t, axis, size) for t, axis in zip((p, q), axes[1:3]))
        grads = [batching.fold(grad, axis, size) for grad, axis in zip(grads, axes[3])]
        d_weights, *factors = _backward(weights, p, q, grads, entries, need_weights, *needs)
        dp, dq = (d.unflatten(0, (size, -1)) if need else d.expand(size, 0) for d, need in zip(factors, needs))
        results = [d.expand(size, 0) for d in d_weights], dp, dq
    return results, ([0] * len(weights), 0, 0)


def _chosen_backend() -> str:
    """The choice that a backward takes over: autograd runs it later, on a card in threads of its own."""
    return "auto" if torch.compiler.is_compiling() else dispatch.chosen()


def _split(entries: list[int], rest: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    count = 1 + max(entries[::3])
    return list(rest[:count]), list(rest[count:])


class _Project(torch.autograd.Function):
    """(p, q, entries, dtype, *weights) -> one projected matrix a layer and entry, views of one buffer."""

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, q: Tensor, entries: list[int], dtype: torch.dtype, *weights: Tensor) -> Any:
        flat = _forward(list(weights), p, q, entries, dtype)
        return tuple(_plan(list(weights), entries).output_views(flat, p.shape[0]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        p, q, ctx.entries, _, *weights = inputs
        ctx.backend = _chosen_backend()
        ctx.save_for_backward(p, q, *weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        p, q, *weights = ctx.saved_tensors
        need_p, need_q, _, _, *need_weights = ctx.needs_input_grad
        needs = (need_weights, need_p, need_q)
        if torch.compiler.is_compiling():  # it refuses to trace a further derivative
            d_weights, dp, dq = _backward(weights, p, q, list(grads), ctx.entries, *needs)
        else:
            with dispatch.choice(ctx.backend):
                if torch.is_grad_enabled():
                    dp, dq, *d_weights = _ProjectBackward.apply(p, q, ctx.entries, needs, *weights, *grads)
                else:  # no further derivative follows
                    d_weights, dp, dq = _backward(weights, p, q, list(grads), ctx.entries, *needs)
        return (
            dp if need_p else None,
            dq if need_q else None,
            None,
            None,
            *(d if need else None for d, need in zip(d_weights, need_weights)),
        )


class _ProjectBackward(torch.autograd.Function):
    """(p, q, entries, needs, *weights, *grads) -> dp, dq, *d_weights; one not needed is empty."""

    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, q: Tensor, entries: list[int], needs: tuple[list[bool], bool, bool], *rest: Tensor) -> Any:
        weights, grads = _split(entries, rest)
        d_weights, dp, dq = _backward(weights, p, q, grads, entries, *needs)
        return dp, dq, *d_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        p, q, ctx.entries, ctx.needs, *rest = inputs
        ctx.backend = _chosen_backend()
        ctx.save_for_backward(p, q, *rest)

    @staticmethod
    def backward(ctx: Any, c_p: Tensor, c_q: Tensor, *c_weights: Tensor) -> Any:
        """Differentiate <c_W, dW> + <c_p, dp> + <c_q, dq> = <G, F(c_W, p, q) + F(W, c_p, q) + F(W, p, c_q)>."""
        p, q, *rest = ctx.saved_tensors
        weights, grads = _split(ctx.entries, rest)
        total: list[Tensor | None] = [None] * (2 + len(rest))

        def add(first: int, terms: Any) -> None:
            for i, term in enumerate(terms, first):
                so_far = total[i]
                total[i] = term if so_far is None else so_far + term

        need_weights, need_p, need_q = ctx.needs
        terms: list[tuple[int, list[Tensor], Tensor, Tensor]] = []  # which factor a cotangent replaces; W, p, q
        if any(need_weights):
            # A gradient that was not needed is empty and has no cotangent.
            cotangents = [c if n else torch.zeros_like(w) for c, n, w in zip(c_weights, need_weights, weights)]
            terms.append((0, cotangents, p, q))
        if need_p:
            terms.append((1, weights, c_p, q))
        if need_q:
            terms.append((2, weights, p, c_q))
        for replaced, W_k, p_k, q_k in terms:
            needs = ([replaced != 0] * len(weights), replaced != 1, replaced != 2)
            with dispatch.choice(ctx.backend):
                outputs = _Project.apply(p_k, q_k, ctx.entries, grads[0].dtype, *W_k)
                dp, dq, *d_weights = _ProjectBackward.apply(p_k, q_k, ctx.entries, needs, *W_k, *grads)
            add(2 + len(weights), outputs)
            if replaced != 0:
                add(2, d_weights)
            if needs[1]:
                add(0, [dp])
            if needs[2]:
                add(1, [dq])
        return *total[:2], None, None, *total[2:]
