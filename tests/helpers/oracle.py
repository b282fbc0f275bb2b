"""What the projection must compute, in the two plainest ways: three loops, and dense P @ W @ Q in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def project_by_loops(weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
    """One task, element by element, straight from the definition."""
    N, M = weight.shape
    out = torch.zeros(N // row_group, M // col_group, dtype=torch.float64)
    for j in range(N):
        for i in range(M):
            out[j // row_group, i // col_group] += p[j].double() * weight[j, i].double() * q[i].double()
    return out


def project_dense(weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int) -> Tensor:
    """P @ W @ Q with P_ij = p_j [j // g == i] and Q_ij = q_i [i // g == j], for p (B, N) and q (B, M)."""
    N, M = weight.shape
    row, col = torch.arange(N, device=weight.device), torch.arange(M, device=weight.device)
    member = row[None] // row_group == row[: N // row_group, None]
    P = p.double()[:, None] * member  # [B, n, N]
    member = col[:, None] // col_group == col[None, : M // col_group]
    Q = q.double()[:, :, None] * member  # [B, M, m]
    return P @ weight.double() @ Q


def gradients(
    weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dW, dL/dp, dL/dq of the dense form in float64, for dL/dW_s = grad."""
    leaves = [x.detach().double().requires_grad_() for x in (weight, p, q)]
    out = project_dense(*leaves, row_group, col_group)
    return torch.autograd.grad(out, leaves, grad.double())


def relative_error(value: Tensor, truth: Tensor) -> float:
    """max |value - truth| / max |truth|; 0 where both are empty or zero."""
    assert value.shape == truth.shape, (value.shape, truth.shape)
    if value.numel() == 0:
        return 0.0
    assert value.isfinite().all()
    largest = truth.abs().max().item()
    error = (value.double() - truth).abs().max().item()
    return error / largest if largest else error
