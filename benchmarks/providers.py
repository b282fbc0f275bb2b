"""Who is measured: the projection in plain torch, four ways, each also compiled, and our kernels.

A baseline projects one matrix, W (N, M) with p (B, N) and q (B, M), and takes one matrix after another: the
intermediate results of all 24 layers at once would not fit into most machines.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import projkern as pk

Baseline = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def dense(W: Tensor, p: Tensor, q: Tensor, g: int) -> Tensor:
    """P @ W @ Q with full matrices."""
    N, M = W.shape
    rows = torch.eye(N // g, dtype=W.dtype).repeat_interleave(g, 1)
    cols = torch.eye(M // g, dtype=W.dtype).repeat_interleave(g, 0)
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


BASELINES: dict[str, Baseline] = {
    "dense": dense,
    "broadcast": broadcast,
    "einsum": einsum,
    "column bmm": column_bmm,
}


class Case:
    """One cell of the table: the linear operators of a GPT, p and q of a batch, and a gradient for each result.

    Args:
        layers, width: of the source.
        batch: B tasks.
        group: g.
    """

    def __init__(self, layers: int, width: int, batch: int, group: int) -> None:
        d, self.group, self.batch = width, group, batch
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).requires_grad_()

        shapes = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]
        self.weights = [make(layers, *shape) for shape in shapes]
        self.p = make(batch, layers * sum(n for n, _ in shapes))
        self.q = make(batch, layers * sum(m for _, m in shapes))
        self.size = sum(w.numel() for w in self.weights)
        self.grads = [torch.randn(batch, n // group, m // group) for n, m in shapes for _ in range(layers)]

    def matrices(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """W, p, q and the gradient of each matrix, as leaves of their own."""
        flat = [w for stack in self.weights for w in stack.detach().unbind(0)]
        p = self.p.detach().split([w.shape[0] for w in flat], 1)
        q = self.q.detach().split([w.shape[1] for w in flat], 1)
        return [
            (w.requires_grad_(), a.contiguous().requires_grad_(), b.contiguous().requires_grad_(), grad)
            for w, a, b, grad in zip(flat, p, q, self.grads)
        ]

    def fused_forward(self) -> list[Tensor]:
        return pk.project_layers(self.weights, self.p, self.q, self.group)

    def fused_backward(self, outputs: list[Tensor]) -> None:
        torch.autograd.grad(outputs, [*self.weights, self.p, self.q], self.grads, retain_graph=True)

    def fused(self) -> None:
        self.fused_backward(self.fused_forward())

    def baseline(self, project: Baseline) -> Callable[[], None]:
        """Forward and backward of all matrices, one after another."""
        matrices = self.matrices()

        def run() -> None:
            for W, p, q, grad in matrices:
                torch.autograd.grad(project(W, p, q, self.group), (W, p, q), grad)

        return run

    def forward_multiply_adds(self) -> float:
        """B |W| for the rows, 1/g of it for the columns."""
        return self.batch * self.size * (1 + 1 / self.group)

    def backward_multiply_adds(self) -> float:
        """B |W| each for dW, dp and the recomputed T; 1/g of it each for U and dq."""
        return self.batch * self.size * (3 + 2 / self.group)

    def forward_bytes(self) -> float:
        """W read, W_s written; float32."""
        return 4 * (self.size + self.batch * self.size / self.group**2)

    def backward_bytes(self) -> float:
        """W and G read, dW written; float32."""
        return 4 * (2 * self.size + self.batch * self.size / self.group**2)
