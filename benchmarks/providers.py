"""Who is measured: the projection in plain torch, four ways, each also compiled, and our kernels.

A baseline projects one matrix, W (N, M) with p (B, N) and q (B, M), and takes one matrix after another: the
intermediate results of all 24 layers at once would not fit into most machines. It computes in W's dtype, the fastest
that a user could write: with bfloat16 weights it is less exact than our kernels, which sum in float32. All results
(W_s, dW, dp and dq of every matrix) are kept until the last one is there, as a training step needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import projkern as pk
from projkern.kernels import dispatch

from .case import Case, Matrix
from .machine import Card

Baseline = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def dense(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """P @ W @ Q with full matrices."""
    N, M = W.shape
    rows = torch.eye(N // g, dtype=W.dtype, device=W.device).repeat_interleave(g, 1)
    cols = torch.eye(M // g, dtype=W.dtype, device=W.device).repeat_interleave(g, 0)
    return (p[:, None] * rows) @ W @ (q[:, :, None] * cols)


def broadcast(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Multiply everything by everything, then sum the groups."""
    N, M = W.shape
    return (p[:, :, None] * W * q[:, None]).view(len(p), N // g, g, M // g, g).sum((2, 4))


def einsum(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """Two grouped einsums: rows, then columns."""
    N, M = W.shape
    T = torch.einsum("bna,nai->bni", p.view(-1, N // g, g), W.view(N // g, g, M))
    return torch.einsum("bnmc,bmc->bnm", T.view(-1, N // g, M // g, g), q.view(-1, M // g, g))


def column_bmm(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """One GEMM for each group of columns, batched; then the rows."""
    N, M = W.shape
    V = torch.bmm(W.view(N, M // g, g).transpose(0, 1), q.view(-1, M // g, g).permute(1, 2, 0))  # [m, N, B]
    return (V * p.T).view(M // g, N // g, g, -1).sum(2).permute(2, 1, 0)


BASELINES: dict[str, Baseline] = {"einsum": einsum, "column bmm": column_bmm, "broadcast": broadcast, "dense": dense}
"""In the order in which they are compiled, the likely best first."""

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


def baseline(name: str, compiled: bool = False) -> Provider:
    """A form in torch: all matrices, one after another. Its forward keeps what a backward would need."""
    plain = BASELINES[name]

    def project(W: Tensor, p: Tensor, q: Tensor, g: int, dtype: torch.dtype) -> Tensor:
        return plain(W, p.to(W.dtype), q.to(W.dtype), g).to(dtype)

    if compiled:
        project = torch.compile(project, dynamic=False)

    def forward(case: Case) -> list[Tensor]:
        # Without detach, every matrix's intermediate results would stay until the last one's.
        return [project(W, p, q, case.group, case.output_dtype).detach() for W, p, q, _ in case.matrices]

    def both(case: Case) -> list[Matrix]:
        results = []
        for W, p, q, grad in case.matrices:
            out = project(W, p, q, case.group, case.output_dtype)
            results.append((out.detach(), *torch.autograd.grad(out, (W, p, q), grad)))
        return results

    label = f"{name}, compiled" if compiled else name
    return Provider(label, False, forward, both, lambda case, results: results)


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
    """All plain forms, then all compiled ones."""
    for name in BASELINES:
        yield baseline(name)
    if compiled:
        for name in BASELINES:
            yield baseline(name, compiled=True)
