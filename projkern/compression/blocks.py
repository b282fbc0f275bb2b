"""Stacks: parameters of one shape and kind, in several layers, that are merged and trained together. A block makes one:

    W_C = P_out W P_in + A        (Projected Compression, Sec. 2), for L matrices at once

W is frozen; P_out (axis 0), P_in (axis 1) and A are trained. A side is projected only where it shrinks. A block without
projections (norms, biases, all of hard pruning) is its own value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.projection import project_layers
from .projections import Projection


class Stack:
    """L parameters of the small model, side by side: their values, and the gradients of these.

    Args:
        names: of the parameters, one a layer.
        shape: of each.
        value: (L', *). L' is a multiple of L where several matrices lie end to end in a parameter.
    """

    def __init__(self, names: list[str], shape: tuple[int, ...], value: Tensor) -> None:
        self.names, self.shape, self.value = names, shape, value
        self.gradient = torch.zeros_like(value)

    def by_name(self, stacked: Tensor) -> dict[str, Tensor]:
        """The part of each parameter in a tensor of the stack's shape; views of it where it is contiguous."""
        return dict(zip(self.names, stacked.reshape(len(self.names), *self.shape).unbind(0)))


class Block(nn.Module):
    """What a stack is made of.

    Args:
        names, shape: of its parameters, as in ``Stack``.
        start: (L', *), floating point: A, or the values themselves where nothing is projected.
        frozen: the L' source matrices W, views of the source's own parameters; empty where nothing is projected.
        rows, columns: for each W the projection of its axis 0 and 1; empty for an axis that stays.
        is_grouped: whether projections are grouped diagonals, for the kernels of ``projkern.project``.
    """

    left: nn.Parameter | None
    right: nn.Parameter | None

    def __init__(
        self,
        names: list[str],
        shape: tuple[int, ...],
        start: Tensor,
        frozen: list[Tensor],
        rows: list[Projection],
        columns: list[Projection],
        is_grouped: bool,
    ) -> None:
        super().__init__()
        self.is_grouped = is_grouped
        self.residual = nn.Parameter(start)
        self.left = self._parameter(rows)
        self.right = self._parameter(columns)
        self.frozen = frozen
        self._orders: list[tuple[Tensor | None, ...]] = []  # of the coordinates of each W, where P has blocks
        if any(len(projection.coordinates) > 1 for projection in (*rows[:1], *columns[:1])):
            orders = [[p.coordinates.flatten().to(start.device) for p in side] for side in (rows, columns)]
            self._orders = [tuple(side[i] if side else None for side in orders) for i in range(len(frozen))]
        self.stack = Stack(names, shape, torch.empty_like(start) if frozen else self.residual.detach())

    def _parameter(self, projections: list[Projection]) -> nn.Parameter | None:
        if not projections:
            return None
        return nn.Parameter(torch.stack([p.values for p in projections]).to(self.residual))

    @property
    def projections(self) -> list[nn.Parameter]:
        """P_out and P_in, as far as they are there."""
        return [p for p in (self.left, self.right) if p is not None]

    def product(self) -> Tensor:
        """P_out W P_in, (L', a', b'), differentiable in P."""
        w = self._weights()
        if self.is_grouped:
            return self._grouped_product(w)
        height, width = self.residual.shape[-2:]
        if self._rows_first():
            return _columns(_rows(w, self.left, height), self.right, width)
        return _rows(_columns(w, self.right, width), self.left, height)

    def _weights(self) -> Tensor:
        """W (L', a, b), in the type of P."""
        matrices = self.frozen
        if self._orders:
            matrices = [_sorted(w, *orders) for w, orders in zip(matrices, self._orders)]
        w = matrices[0][None] if len(matrices) == 1 else torch.stack(matrices)
        return w.to(self.residual.dtype)

    def _rows_first(self) -> bool:
        """Whether P_out W before P_in takes fewer multiply-adds than W P_in before P_out."""
        (a, b), (small_a, small_b) = self.frozen[0].shape, self.residual.shape[-2:]  # without what fills blocks up
        reads_a = 0 if self.left is None else self.left.shape[-2]
        reads_b = 0 if self.right is None else self.right.shape[-2]
        rows_first = small_a * reads_a * b + small_a * small_b * reads_b
        return rows_first <= a * small_b * reads_b + small_a * reads_a * small_b

    def _grouped_product(self, w: Tensor) -> Tensor:
        ones = w.new_ones(())
        p = ones.expand(w.shape[:2]) if self.left is None else self.left
        q = ones.expand(w.shape[0], w.shape[2]) if self.right is None else self.right
        group = tuple(1 if x is None else x.shape[-2] for x in (self.left, self.right))
        small = project_layers([w], p.reshape(1, -1), q.reshape(1, -1), group)  # type: ignore[arg-type]
        return torch.cat(small)

    def merged(self) -> Tensor:
        """W_C (L', a', b'), differentiable in P and A; of a block without projections, its own values."""
        return self.product() + self.residual if self.projections else self.residual

    @torch.no_grad()
    def materialise(self) -> None:
        """Write W_C into the stack, where the small model's parameters lie."""
        if self.projections:
            torch.add(self.product(), self.residual, out=self.stack.value)

    def backward(self) -> None:
        """Take the gradients of P and A from the stack's, that of W_C: one vector-Jacobian product."""
        self.residual.grad = self.stack.gradient
        if not self.projections:
            return
        gradients = self._grouped_gradients() if self.is_grouped else self._gradients()
        for parameter, gradient in zip(self.projections, gradients):
            parameter.grad = gradient

    def _grouped_gradients(self) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(self.product(), self.projections, self.stack.gradient)

    @torch.no_grad()
    def _gradients(self) -> list[Tensor]:
        """Of P_out and P_in. Only the first of the two products is made again, and that only where there are two."""
        w, g = self._weights(), self.stack.gradient
        if self.left is None or self.right is None or not self._rows_first():
            left = [] if self.left is None else [_rows_gradient(_columns(w, self.right, g.shape[-1]), self.left, g)]
            back = g if self.left is None else _rows_back(self.left, g)
            right = [] if self.right is None else [_rows_gradient(w.mT, self.right, back.mT)]
            return left + right
        right = [_rows_gradient(_rows(w, self.left, g.shape[-2]).mT, self.right, g.mT)]
        return [_rows_gradient(w, self.left, _rows_back(self.right, g.mT).mT), *right]


def _rows(w: Tensor, p: Tensor | None, size: int) -> Tensor:
    """P_out W: w (L, a, b), p (L, n, s, k) -> (L, size, b)."""
    if p is None:
        return w
    return (p.mT @ w.unflatten(1, p.shape[1:3])).flatten(1, 2)[:, :size]


def _columns(w: Tensor, p: Tensor | None, size: int) -> Tensor:
    """W P_in: w (L, a, b), p (L, n, s, k) -> (L, a, size)."""
    return _rows(w.mT, p, size).mT


def _rows_gradient(w: Tensor, p: Tensor, g: Tensor) -> Tensor:
    """Of p (L, n, s, k) in P_out W, from g (L, size, b), the gradient of that product."""
    return w.unflatten(1, p.shape[1:3]) @ _in_blocks(g, p).mT


def _rows_back(p: Tensor, g: Tensor) -> Tensor:
    """The gradient of W in P_out W: (L, a, b)."""
    return (p @ _in_blocks(g, p)).flatten(1, 2)


def _in_blocks(g: Tensor, p: Tensor) -> Tensor:
    """(L, size, b) -> (L, n, k, b); the last block may be filled up with zeros."""
    n, k = p.shape[1], p.shape[3]
    if g.shape[1] < n * k:
        g = F.pad(g, (0, 0, 0, n * k - g.shape[1]))
    return g.unflatten(1, (n, k))


def _sorted(w: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """A copy of W (a, b) with its coordinates in the order of the blocks; where a block has none (-1), zeros."""
    for axis, order in enumerate((rows, columns)):
        if order is not None:
            is_missing = (order < 0).unsqueeze(1 - axis)
            w = w.index_select(axis, order.clamp(min=0)).masked_fill(is_missing, 0)
    return w
