"""The projection in plain torch: the definition that every other backend is held to.

For one source matrix W, viewed as (n, g_r, m, g_c), with p (B, n, g_r) and q (B, m, g_c):

    W_s[b,n,m] = sum_{a,c} p[b,n,a] W[n,a,m,c] q[b,m,c]             (paper, Eq. 1 and Fig. 2)

Runs on any device and in float64 too. Arithmetic is in float32 at the least, whatever the storage.
"""

import torch
from torch import Tensor

from ..plan import Matrix, Plan
from .backend import Backward, Forward

SERVES = "every floating type on every device"


def why_unavailable() -> str | None:
    return None


def serves(device: torch.device, weight_dtype: torch.dtype, output_dtype: torch.dtype) -> bool:
    return True


def _operands(matrix: Matrix, weights: list[Tensor], p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    W = weights[matrix.weight][matrix.layer].to(p.dtype)
    rows = slice(matrix.p_offset, matrix.p_offset + matrix.rows)
    cols = slice(matrix.q_offset, matrix.q_offset + matrix.cols)
    return (
        W.reshape(matrix.out_rows, matrix.row_group, matrix.cols),
        p[:, rows].reshape(len(p), matrix.out_rows, matrix.row_group),
        q[:, None, cols],
    )


def _combine_rows(W: Tensor, p: Tensor) -> Tensor:
    return torch.einsum("bna,nai->bni", p, W)  # T [B, n, M]


def project_forward(plan: Plan, call: Forward) -> None:
    weights, p, q, flat = call
    for matrix, out in zip(plan.matrices, plan.output_views(flat, p.shape[0])):
        W, p_m, q_m = _operands(matrix, weights, p, q)
        scaled = _combine_rows(W, p_m) * q_m
        out.copy_(scaled.reshape(*out.shape, matrix.col_group).sum(-1))


def project_backward(plan: Plan, call: Backward) -> None:
    weights, p, q, grads, d_weights, dp, dq = call
    sums = [None if d is None else torch.zeros_like(d, dtype=p.dtype) for d in d_weights]
    for matrix, grad in zip(plan.matrices, grads):
        W, p_m, q_m = _operands(matrix, weights, p, q)
        G = grad.to(p.dtype).repeat_interleave(matrix.col_group, dim=2)  # [B, n, M]
        U = G * q_m
        total = sums[matrix.weight]
        if total is not None:
            dW = torch.einsum("bna,bni->nai", p_m, U)
            total[matrix.layer] += dW.reshape(matrix.rows, matrix.cols)
        if dp is not None:
            dp_m = torch.einsum("bni,nai->bna", U, W)
            dp[:, matrix.p_offset : matrix.p_offset + matrix.rows] = dp_m.reshape(len(p), matrix.rows)
        if dq is not None:
            dq[:, matrix.q_offset : matrix.q_offset + matrix.cols] = (G * _combine_rows(W, p_m)).sum(1)
    for d, summed in zip(d_weights, sums):
        if d is not None and summed is not None:
            d.copy_(summed)
