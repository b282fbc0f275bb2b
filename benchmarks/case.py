"""The tensors of one cell, and the truth about them."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from .machine import Machine
from .roofline import Cell

Matrix = tuple[Tensor, Tensor, Tensor, Tensor]
"""One matrix: W (N, M), p (B, N), q (B, M) and G; or W_s, dW, dp and dq."""


class Case:
    """A source's linear operators, p and q of a batch, and a gradient for each result; all random.

    Args:
        cell: what is measured.
        device: where.
        seed: of the random numbers.
    """

    def __init__(self, cell: Cell, device: torch.device | str = "cpu", seed: int = 0) -> None:
        self.cell, self.group = cell, cell.group
        self.output_dtype: torch.dtype = getattr(torch, cell.outputs)
        weight_dtype = getattr(torch, cell.weights)
        generator = torch.Generator(device).manual_seed(seed)

        def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        shapes, layers, g = cell.shapes(), cell.layers, cell.group
        self.weights = [make(layers, *shape, dtype=weight_dtype).requires_grad_() for shape in shapes]
        self.p = make(cell.batch, layers * sum(n for n, _ in shapes)).requires_grad_()
        self.q = make(cell.batch, layers * sum(m for _, m in shapes)).requires_grad_()
        self._stacked_grads = [make(layers, cell.batch, n // g, m // g, dtype=self.output_dtype) for n, m in shapes]
        self.grads = [grad for stack in self._stacked_grads for grad in stack.unbind(0)]

    @cached_property
    def matrices(self) -> list[Matrix]:
        """W, p, q and the gradient of each matrix."""
        return [matrix for stack in self.stacks for matrix in zip(*(x.detach().unbind(0) for x in stack))]

    @cached_property
    def stacks(self) -> list[Matrix]:
        """W, p, q and the gradient of all layers of an operator, each with a first axis of layers; leaves."""
        layers, shapes = self.cell.layers, self.cell.shapes()
        p_parts = self.p.detach().split([layers * n for n, _ in shapes], 1)
        q_parts = self.q.detach().split([layers * m for _, m in shapes], 1)
        return [
            (
                W.detach().requires_grad_(),
                *(x.unflatten(1, (layers, -1)).transpose(0, 1).contiguous().requires_grad_() for x in factors),
                grads,
            )
            for W, grads, *factors in zip(self.weights, self._stacked_grads, p_parts, q_parts)
        ]

    @cached_property
    def single(self) -> list[Matrix]:
        """The same as stacks of one layer each, leaves of their own."""
        return [
            (*(x.detach()[k : k + 1].requires_grad_() for x in (W, p, q)), G[k : k + 1])
            for W, p, q, G in self.stacks
            for k in range(self.cell.layers)
        ]

    def checked(self) -> list[int]:
        """The matrices that results are verified on: the first of each shape, and the last of all."""
        layers = self.cell.layers
        return sorted({*range(0, len(self.grads), layers), len(self.grads) - 1})


def make_cases(cell: Cell, machine: Machine) -> list[Case]:
    """As many sets of inputs as no cache holds: one, where that alone is larger than what has to be passed."""
    bytes_of_one = cell.weight_bytes + cell.result_bytes
    count = max(1, min(8, math.ceil(machine.cache_bytes / bytes_of_one)))
    return [Case(cell, machine.device, seed) for seed in range(count)]


def needed_bytes(cell: Cell) -> float:
    """Memory to measure a cell: W, dW, W_s and G of one set, a fifth of it more for the rest, and 4 GB for limits."""
    return 1.2 * 2 * (cell.weight_bytes + cell.result_bytes) + 4e9


@torch.no_grad()
def truth(matrix: Matrix, group: int, most: int = 1 << 26) -> Matrix:
    """W_s, dW, dp and dq of one matrix by the definition, in float64; returned in float32, which is exact enough.

    Args:
        most: numbers in an intermediate result; larger matrices are taken in bands of rows.
    """
    W, p, q, G = matrix
    (N, M), g, batch = W.shape, group, len(p)
    q64 = q.double()
    rows = max(g, most // (batch * M) * g)
    outputs, dWs, dps = [], [], []
    dq = torch.zeros_like(q64)
    for start in range(0, N, rows):
        band = slice(start, min(start + rows, N))
        W_n = W[band].double().view(-1, g, M)  # [n, a, i]
        p_n = p[:, band].double().view(batch, -1, g)  # [b, n, a]
        G_n = G[:, band.start // g : band.stop // g].double().repeat_interleave(g, 2)  # [b, n, i]
        T = torch.einsum("bna,nai->bni", p_n, W_n)
        outputs.append((T * q64[:, None]).view(batch, -1, M // g, g).sum(3).float())
        dq += (G_n * T).sum(1)
        U = G_n * q64[:, None]
        dWs.append(torch.einsum("bna,bni->nai", p_n, U).reshape(-1, M).float())
        dps.append(torch.einsum("bni,nai->bna", U, W_n).reshape(batch, -1).float())
    return torch.cat(outputs, 1), torch.cat(dWs), torch.cat(dps, 1), dq.float()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖; NaN where anything is."""
    return float((actual.detach().float() - expected).norm() / expected.norm())


def tolerance(dtype: torch.dtype, computed_in: torch.dtype) -> float:
    """The largest relative error of a result of this dtype, far above rounding and far below TF32's or a mistake's."""
    if computed_in == torch.bfloat16:
        return 2e-2  # a torch form that computes in bfloat16 rounds its intermediate results too
    return 2e-5 if dtype == torch.float32 else 4e-3
