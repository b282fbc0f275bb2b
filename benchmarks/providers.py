"""Who is measured: the projection in torch, in every form that may be the fastest somewhere, and our kernels.

A baseline projects L matrices of one shape, W (L, N, M) with p (L, B, N) and q (L, B, M). Each form takes one matrix
after another, or the stack of all layers at once, as it is or under torch.compile. It computes in W's dtype, the
fastest that a user could write: with bfloat16 weights it is less exact than our kernels, which sum in float32. All
results (W_s, dW, dp and dq of every matrix) are kept until the last one is there, as a training step needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import projkern as pk
from projkern.kernels import dispatch

from .case import Case, Matrix
from .machine import Card

Baseline = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def row_sums(W: Tensor, p: Tensor, g: int) -> Tensor:
    """T (L, n, B, M) = sum_a p[b, n, a] W[n, a, i]: one product for each group of rows."""
    L, N, M = W.shape
    return p.view(L, -1, N // g, g).transpose(1, 2) @ W.view(L, N // g, g, M)


def bmm_sum(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Rows as products; then multiply by q and sum each group of columns."""
    return (row_sums(W, p, g) * q[:, None]).unflatten(3, (-1, g)).sum(4).transpose(1, 2)


def bmm_dot(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Rows as products; then multiply by q, and sum by a product with ones: torch's sum over 2 numbers is slow."""
    T = row_sums(W, p, g) * q[:, None]
    return (T.view(-1, g) @ T.new_ones(g)).view(*T.shape[:3], -1).transpose(1, 2)


def bmm_strided(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Rows as products; then multiply by q, and add every g-th column to its neighbours."""
    planes = (row_sums(W, p, g) * q[:, None]).unflatten(3, (-1, g)).unbind(4)
    return reduce(torch.add, planes).transpose(1, 2)


def bmm_einsum(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Rows as products; the columns as an einsum."""
    T = row_sums(W, p, g).unflatten(3, (-1, g))
    return torch.einsum("lnbmc,lbmc->lbnm", T, q.unflatten(2, (-1, g)))


class _ByHand(torch.autograd.Function):
    """As ``bmm_strided``, but without its intermediate results, and with a gradient that is four operations."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
        ctx.group, T = g, row_sums(W, p, g)
        ctx.save_for_backward(W, p, q, T)
        planes = zip(T.unflatten(3, (-1, g)).unbind(4), q[:, None].unflatten(3, (-1, g)).unbind(4))
        first, second = next(planes)
        out = first * second
        for plane, factor in planes:
            out.addcmul_(plane, factor)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Any:
        (W, p, q, T), g = ctx.saved_tensors, ctx.group
        G = G.transpose(1, 2).contiguous()[..., None]
        U = (G * q[:, None].unflatten(3, (-1, g))).flatten(3)
        dW = p.unflatten(2, (-1, g)).permute(0, 2, 3, 1) @ U
        dp = U @ W.unflatten(1, (-1, g)).mT
        dq = (T.unflatten(3, (-1, g)) * G).sum(1)
        return dW.view_as(W), dp.transpose(1, 2).reshape_as(p), dq.view_as(q), None


def by_hand(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Rows as products, columns added in place, and a gradient of its own."""
    out: Tensor = _ByHand.apply(W, p, q, g)
    return out


def einsum(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Two grouped einsums: rows, then columns."""
    L, N, M = W.shape
    T = torch.einsum("lbna,lnai->lbni", p.view(L, -1, N // g, g), W.view(L, N // g, g, M))
    return torch.einsum("lbnmc,lbmc->lbnm", T.unflatten(3, (-1, g)), q.unflatten(2, (-1, g)))


def column_bmm(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """One product for each group of columns; then the rows."""
    L, N, M = W.shape
    V = W.view(L, N, M // g, g).transpose(1, 2) @ q.view(L, -1, M // g, g).permute(0, 2, 3, 1)  # [l, m, N, b]
    return (V * p.mT[:, None]).view(L, M // g, N // g, g, -1).sum(3).permute(0, 3, 2, 1)


def broadcast(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Multiply everything by everything, then sum the groups."""
    L, N, M = W.shape
    return (p[..., None] * W[:, None] * q[:, :, None]).view(L, -1, N // g, g, M // g, g).sum((3, 5))


def dense(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """P @ W @ Q with full matrices."""
    N, M = W.shape[1:]
    rows = torch.eye(N // g, dtype=W.dtype, device=W.device).repeat_interleave(g, 1)
    cols = torch.eye(M // g, dtype=W.dtype, device=W.device).repeat_interleave(g, 0)
    return (p[:, :, None] * rows) @ W[:, None] @ (q[..., None] * cols)


BASELINES: dict[str, Baseline] = {
    "bmm by hand": by_hand,
    "bmm and dot": bmm_dot,
    "bmm and sum": bmm_sum,
    "bmm, strided": bmm_strided,
    "broadcast": broadcast,
    "einsum": einsum,
    "column bmm": column_bmm,
    "bmm and einsum": bmm_einsum,
    "dense": dense,
}
"""The likely best first: what is far from the best so far is not measured."""

COMPILED = ("bmm and sum", "broadcast", "bmm, strided", "column bmm", "einsum")
"""What is compiled too: of the others the compiler makes the same as of one of these, or they cannot be fused."""

BACKENDS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
"""Our kernels, by the device they are for."""


@dataclass(frozen=True)
class Provider:
    """One way to do a cell: its forward, forward and backward, and where it can be had alone, backward.

    The functions take a case. ``both`` returns results that ``per_matrix`` sorts into W_s, dW, dp, dq of each matrix.
    """

    name: str
    fused: bool
    forward: Callable[[Case], Any]
    both: Callable[[Case], Any]
    per_matrix: Callable[[Case, Any], list[Matrix]]
    backward: Callable[[Case, Any], Any] | None = None
    """Takes the result of ``forward`` too. A baseline's would have to hold the intermediate results of all matrices."""
    verified: Callable[[], None] = lambda: None
    """To be called once results have been looked at: those of a graph are kept until then."""


def backends(device: str) -> list[str]:
    """Our backends that can run on this device, here."""
    return [name for name in BACKENDS[device] if name in pk.available_backends()]


def fused(backend: str) -> Provider:
    """Our kernels: all matrices in one call each way."""

    def forward(case: Case) -> list[Tensor]:
        with pk.use_backend(backend):
            return pk.project_layers(case.weights, case.p, case.q, case.group, dtype=case.output_dtype)

    def backward(case: Case, outputs: list[Tensor]) -> tuple[Tensor, ...]:
        with pk.use_backend(backend):
            return torch.autograd.grad(outputs, [*case.weights, case.p, case.q], case.grads, retain_graph=True)

    def both(case: Case) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        outputs = forward(case)
        return outputs, backward(case, outputs)

    def per_matrix(case: Case, results: tuple[list[Tensor], tuple[Tensor, ...]]) -> list[Matrix]:
        outputs, (*stacks, dp, dq) = results
        d_weights = [d for stack in stacks for d in stack.unbind(0)]
        dps = dp.split([d.shape[0] for d in d_weights], 1)
        dqs = dq.split([d.shape[1] for d in d_weights], 1)
        return list(zip(outputs, d_weights, dps, dqs))

    return Provider(backend, True, forward, both, per_matrix, backward)


@contextmanager
def serving() -> Iterator[set[str]]:
    """The backends that serve the calls made inside; a backward may run in a thread that knows no use_backend."""
    names: set[str] = set()
    select = dispatch.select

    def record(*arguments: Any) -> Any:
        backend = select(*arguments)
        names.add(backend.__name__.rpartition(".")[2])
        return backend

    with patch.object(dispatch, "select", record):
        yield names


def baseline(name: str, stacked: bool = False, compiled: bool = False) -> Provider:
    """A form in torch, one matrix after another or all layers at once; its forward keeps what a backward would need."""
    plain = BASELINES[name]

    def project(W: Tensor, p: Tensor, q: Tensor, g: int, dtype: torch.dtype) -> Tensor:
        return plain(W, p.to(W.dtype), q.to(W.dtype), g).to(dtype)

    if compiled:
        project = torch.compile(project, dynamic=False)

    def stacks_of(case: Case) -> list[Matrix]:
        return case.stacks if stacked else case.single

    def forward(case: Case) -> list[Tensor]:
        # Without detach, every matrix's intermediate results would stay until the last one's.
        return [project(W, p, q, case.group, case.output_dtype).detach() for W, p, q, _ in stacks_of(case)]

    def both(case: Case) -> list[Matrix]:
        results = []
        for W, p, q, grad in stacks_of(case):
            out = project(W, p, q, case.group, case.output_dtype)
            results.append((out.detach(), *torch.autograd.grad(out, (W, p, q), grad)))
        return results

    def per_matrix(case: Case, results: list[Matrix]) -> list[Matrix]:
        return [matrix for stack in results for matrix in zip(*(x.unbind(0) for x in stack))]

    label = f"{name}{', stacked' * stacked}{', compiled' * compiled}"
    return Provider(label, False, forward, both, per_matrix)


def in_graphs(provider: Provider, cases: list[Case], machine: Card, pool: Any) -> Provider:
    """A provider recorded as CUDA graphs, one for each set of inputs and direction.

    Their results share memory. Those of ``both`` on the first case last until ``verified`` is called.
    """
    forward, both = {}, {}
    for graphs, run in ((forward, provider.forward), (both, provider.both)):
        for case in reversed(cases):
            graphs[case] = machine.graph(partial(run, case), pool)
            if run is provider.forward or case is not cases[0]:
                graphs[case].release()
    return Provider(
        f"{provider.name}, graph",
        provider.fused,
        lambda case: forward[case](),
        lambda case: both[case](),
        provider.per_matrix,
        verified=both[cases[0]].release,
    )


def baselines(compiled: bool) -> Iterator[Provider]:
    """All plain forms, then the compiled ones; each by matrix and stacked."""
    for names, is_compiled in ((BASELINES, False), (COMPILED if compiled else (), True)):
        for name in names:
            for stacked in (False, True):
                yield baseline(name, stacked, is_compiled)
