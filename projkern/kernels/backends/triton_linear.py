"""The projected linear layer in Triton: a tile of W_s, or of its gradient G, lives inside the kernel that uses it.

For one task b, with W viewed as (n, g_r, m, g_c) and i = (m, c):

    y[s,n]   = sum_m x[s,m] W_s[n,m]               W_s[n,m] = sum_c q[i] T[n,i]       T[n,i] = sum_a p[n,a] W[n,a,i]
    dx[s,m]  = sum_n dy[s,n] W_s[n,m]
    dp[n,a]  = sum_i U[n,i] W[n,a,i]               U[n,i] = G[n,m] q[i]               G[n,m] = sum_s dy[s,n] x[s,m]
    dq[i]    = sum_n G[n,m] T[n,i]
    dW[n,a,i] = sum_b p[b,n,a] U[b,n,i]

W_s = P W Q is Eq. 1 of arXiv 2506.05641. Each result has one owner, which sums in a fixed order: no atomics, and
bit-equal over repeats. Sums are in float32; a tile of W_s is rounded to the type of x, as if it had been stored.

What does not fit is read or made again: each program of a kernel reads its strip of W for its own task. Tasks
follow each other within a strip, so that all but the first of them find it in the cache.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..limits import TOKEN_TILE


@triton.jit
def _columns(m0, M, GC: tl.constexpr, BM: tl.constexpr, C: tl.constexpr):
    """Source columns i of BM groups, C >= GC places for each group, and which places are real."""
    k = tl.arange(0, BM * C)
    if C == GC:  # seen to be contiguous, hence loaded 16 bytes at a time
        i = m0 * GC + k
        real = i < M
    else:
        i = (m0 + k // C) * GC + k % C
        real = (k % C < GC) & (i < M)
    return i, real


INTERPRETED = not isinstance(_columns, triton.runtime.JITFunction)

_WIDEN = tl.constexpr(INTERPRETED)
"""The interpreter multiplies the bits of bfloat16 operands. Widened, their products are the same as on a card."""


@triton.jit
def _dot(a, b, sums):
    if _WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def _combine_rows(W, p, rows, real_rows, i, real_i, M, GR: tl.constexpr):
    """T [n, i]; ``rows`` holds the first source row of each n, as int64."""
    T = tl.zeros([rows.shape[0], i.shape[0]], tl.float32)
    for a in tl.static_range(GR):
        w = tl.load(W + (rows + a)[:, None] * M + i[None, :], mask=real_rows[:, None] & real_i[None, :], other=0.0)
        T += tl.load(p + rows + a, mask=real_rows, other=0.0)[:, None] * w.to(tl.float32)
    return T


@triton.jit
def _weight_tile(
    W, p, q, m0, rows, real_rows, M, GR: tl.constexpr, GC: tl.constexpr, BM: tl.constexpr, C: tl.constexpr
):
    """W_s [n, m] for BM columns from m0."""
    i, real_i = _columns(m0, M, GC, BM, C)
    T = _combine_rows(W, p, rows, real_rows, i, real_i, M, GR)
    T *= tl.load(q + i, mask=real_i, other=0.0)[None, :]
    return tl.sum(tl.reshape(T, [rows.shape[0], BM, C]), axis=2)


@triton.jit
def _token_tile(x, s, columns, S, width):
    """x [s, column] of one task, zero outside."""
    mask = (s < S)[:, None] & (columns < width)[None, :]
    return tl.load(x + s[:, None] * width + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _gradient_tile(dy, x, n, m, S, n_total, m_total, BS: tl.constexpr):
    """G [n, m] of one task."""
    G = tl.zeros([n.shape[0], m.shape[0]], tl.float32)
    for s0 in range(0, S, BS):
        s = (s0 + tl.arange(0, BS)).to(tl.int64)
        dy_tile = _token_tile(dy, s, n, S, n_total)
        x_tile = _token_tile(x, s, m, S, m_total)
        G = _dot(tl.trans(dy_tile), x_tile, G)
    return G


@triton.jit
def _spread(G, C: tl.constexpr):
    """G [n, m] -> [n, i]: the same value for all columns of a group."""
    wide = tl.broadcast_to(G[:, :, None], [G.shape[0], G.shape[1], C])
    return tl.reshape(wide, [G.shape[0], G.shape[1] * C])


@triton.jit
def _linear_forward_kernel(
    x, W, p, q, y, B, S, N, M,
    GR: tl.constexpr, GC: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    n_total, m_total = N // GR, M // GC
    pid = tl.program_id(0)
    b = (pid % B).to(tl.int64)
    token_tiles = tl.cdiv(S, BS)
    s = (pid // B % token_tiles * BS + tl.arange(0, BS)).to(tl.int64)
    n = (pid // B // token_tiles).to(tl.int64) * BN + tl.arange(0, BN)
    x += b * S * m_total
    sums = tl.zeros([BS, BN], tl.float32)
    for m0 in range(0, m_total, BM):
        W_s = _weight_tile(W, p + b * N, q + b * M, m0, n * GR, n < n_total, M, GR, GC, BM, C)  # [n, m]
        m = m0 + tl.arange(0, BM)
        x_tile = _token_tile(x, s, m, S, m_total)
        sums = _dot(x_tile, tl.trans(W_s.to(x_tile.dtype)), sums)
    offsets = (b * S + s)[:, None] * n_total + n[None, :]
    tl.store(y + offsets, sums.to(y.dtype.element_ty), mask=(s < S)[:, None] & (n < n_total)[None, :])


@triton.jit
def _input_gradient_kernel(
    dy, W, p, q, dx, B, S, N, M,
    GR: tl.constexpr, GC: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    n_total, m_total = N // GR, M // GC
    pid = tl.program_id(0)
    b = (pid % B).to(tl.int64)
    token_tiles = tl.cdiv(S, BS)
    s = (pid // B % token_tiles * BS + tl.arange(0, BS)).to(tl.int64)
    m0 = pid // B // token_tiles * BM
    dy += b * S * n_total
    sums = tl.zeros([BS, BM], tl.float32)
    for n0 in range(0, n_total, BN):
        n = n0 + tl.arange(0, BN).to(tl.int64)
        W_s = _weight_tile(W, p + b * N, q + b * M, m0, n * GR, n < n_total, M, GR, GC, BM, C)  # [n, m]
        dy_tile = _token_tile(dy, s, n, S, n_total)
        sums = _dot(dy_tile, W_s.to(dy_tile.dtype), sums)
    m = m0 + tl.arange(0, BM)
    offsets = (b * S + s)[:, None] * m_total + m[None, :]
    tl.store(dx + offsets, sums.to(dx.dtype.element_ty), mask=(s < S)[:, None] & (m < m_total)[None, :])


@triton.jit
def _row_gradient_kernel(
    dy, x, W, q, dp, B, S, N, M,
    GR: tl.constexpr, GC: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, C: tl.constexpr,
    A: tl.constexpr,
):  # fmt: skip
    n_total, m_total = N // GR, M // GC
    pid = tl.program_id(0)
    b = (pid % B).to(tl.int64)
    n = (pid // B).to(tl.int64) * BN + tl.arange(0, BN)
    dy += b * S * n_total
    x += b * S * m_total
    lane = tl.arange(0, A)[None, :]
    sums = tl.zeros([BN, A], tl.float32)
    for m0 in range(0, m_total, BM):
        i, real_i = _columns(m0, M, GC, BM, C)
        U = _spread(_gradient_tile(dy, x, n, m0 + tl.arange(0, BM), S, n_total, m_total, BS), C)
        U *= tl.load(q + b * M + i, mask=real_i, other=0.0)[None, :]
        for a in tl.static_range(GR):
            w = tl.load(
                W + (n * GR + a)[:, None] * M + i[None, :], mask=(n < n_total)[:, None] & real_i[None, :], other=0.0
            )
            sums += tl.where(lane == a, tl.sum(U * w.to(tl.float32), axis=1)[:, None], 0.0)
    offsets = b * N + (n * GR)[:, None] + lane
    tl.store(dp + offsets, sums, mask=(n < n_total)[:, None] & (lane < GR))


@triton.jit
def _column_gradient_kernel(
    dy, x, W, p, dq, B, S, N, M,
    GR: tl.constexpr, GC: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    n_total, m_total = N // GR, M // GC
    pid = tl.program_id(0)
    b = (pid % B).to(tl.int64)
    m0 = pid // B * BM
    i, real_i = _columns(m0, M, GC, BM, C)
    dy += b * S * n_total
    x += b * S * m_total
    sums = tl.zeros([BN, BM * C], tl.float32)
    for n0 in range(0, n_total, BN):
        n = n0 + tl.arange(0, BN).to(tl.int64)
        G = _gradient_tile(dy, x, n, m0 + tl.arange(0, BM), S, n_total, m_total, BS)
        sums += _spread(G, C) * _combine_rows(W, p + b * N, n * GR, n < n_total, i, real_i, M, GR)
    tl.store(dq + b * M + i, tl.sum(sums, axis=0), mask=real_i)


@triton.jit
def _weight_gradient_kernel(
    dy, x, p, q, dW, B, S, N, M, x_step, dy_step,
    GR: tl.constexpr, GC: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, C: tl.constexpr,
    A: tl.constexpr,
):  # fmt: skip
    n_total, m_total = N // GR, M // GC
    pid = tl.program_id(0)
    row_parts: tl.constexpr = (GR + A - 1) // A
    a = pid % row_parts * A + tl.arange(0, A)
    m0 = pid // row_parts % tl.cdiv(m_total, BM) * BM
    n = (pid // row_parts // tl.cdiv(m_total, BM)).to(tl.int64) * BN + tl.arange(0, BN)
    i, real_i = _columns(m0, M, GC, BM, C)
    rows = (n * GR)[:, None] + a[None, :]  # [n, a]
    real_rows = (n < n_total)[:, None] & (a < GR)[None, :]
    sums = tl.zeros([BN, A, BM * C], tl.float32)
    for _ in range(B):
        U = _spread(_gradient_tile(dy, x, n, m0 + tl.arange(0, BM), S, n_total, m_total, BS), C)
        U *= tl.load(q + i, mask=real_i, other=0.0)[None, :]
        sums += tl.load(p + rows, mask=real_rows, other=0.0)[:, :, None] * U[:, None, :]
        dy += dy_step
        x += x_step
        p += N
        q += M
    offsets = rows[:, :, None] * M + i[None, None, :]
    tl.store(dW + offsets, sums.to(dW.dtype.element_ty), mask=real_rows[:, :, None] & real_i[None, None, :])


def _meta(tokens: int, row_group: int, col_group: int, weight_bytes: int, x_bytes: int) -> dict[str, int]:
    """Tile sizes (powers of two, at least 16 on each side of a product), threads and stages of the main kernels."""
    C = triton.next_power_of_2(col_group)
    BN = 32 if max(row_group, col_group) <= 8 else 16
    BM = min(max(128 // C, 16), 128 // x_bytes)
    source_tile = BN * row_group * BM * C * weight_bytes
    return {
        "GR": row_group,
        "GC": col_group,
        "BS": min(max(triton.next_power_of_2(tokens), 16), TOKEN_TILE),
        "BN": BN,
        "BM": BM,
        "C": C,
        "num_warps": 8,
        # Tiles of W on their way wait in shared memory, of which the smallest of today's cards give 99 KB.
        "num_stages": min(3, 1 + 64 * 1024 // source_tile),
        "enable_fp_fusion": True,  # Triton's default up to 3.9, which warns that it will change
    }


def _weight_gradient_meta(meta: dict[str, int]) -> dict[str, int]:
    """Here the sums for all tasks stay in registers: 64 float32 of each thread at the most."""
    rows = triton.next_power_of_2(meta["GR"])
    side = 32 if rows * meta["C"] <= 16 else 16
    return {**meta, "BN": side, "BM": side, "A": min(rows, 64 // meta["C"]), "num_stages": 2}


def linear_forward(x: Tensor, weight: Tensor, p: Tensor, q: Tensor, row_group: int, col_group: int, y: Tensor) -> None:
    """Write y (B, S, N / row_group); see ``projkern.project_linear`` for the arguments, all contiguous here."""
    B, S, _ = x.shape
    N, M = weight.shape
    sizes = B, S, N, M
    meta = _meta(S, row_group, col_group, weight.element_size(), x.element_size())
    grid = (B * triton.cdiv(S, meta["BS"]) * triton.cdiv(N // row_group, meta["BN"]),)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if grid[0]:
            _linear_forward_kernel[grid](x, weight, p, q, y, *sizes, **meta)


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    p: Tensor,
    q: Tensor,
    row_group: int,
    col_group: int,
    dx: Tensor | None,
    d_weight: Tensor | None,
    dp: Tensor | None,
    dq: Tensor | None,
) -> None:
    """Write the gradients that are not None; the others cost nothing. All tensors are contiguous."""
    B, S, _ = x.shape
    N, M = weight.shape
    sizes = B, S, N, M
    meta = _meta(S, row_group, col_group, weight.element_size(), x.element_size())
    n_tiles = triton.cdiv(N // row_group, meta["BN"])
    m_tiles = triton.cdiv(M // col_group, meta["BM"])
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if dx is not None and dx.numel():
            grid = (B * triton.cdiv(S, meta["BS"]) * m_tiles,)
            _input_gradient_kernel[grid](dy, weight, p, q, dx, *sizes, **meta)
        if dp is not None and dp.numel():
            lanes = triton.next_power_of_2(row_group)
            _row_gradient_kernel[(B * n_tiles,)](dy, x, weight, q, dp, *sizes, **meta, A=lanes)
        if dq is not None and dq.numel():
            _column_gradient_kernel[(B * m_tiles,)](dy, x, weight, p, dq, *sizes, **meta)
        if d_weight is not None and d_weight.numel():
            meta = _weight_gradient_meta(meta)
            parts = triton.cdiv(row_group, meta["A"])
            grid = (parts * triton.cdiv(N // row_group, meta["BN"]) * triton.cdiv(M // col_group, meta["BM"]),)
            steps = x[0].numel() if B else 0, dy[0].numel() if B else 0
            _weight_gradient_kernel[grid](dy, x, p, q, d_weight, *sizes, *steps, **meta)
