"""The Triton kernels that `triton.py` launches. Importing this module needs Triton.

All sizes, offsets and groups come from tables, as int64; so do addresses. A program handles one tile of one
matrix. Two numbers of a tile shape its code and are constants of it (a *variant*): how many rows of a row group
are summed at a time, and how many columns of a column group stand side by side. A plan's variants are compiled
into one kernel, and each tile says which is its own.

Lanes run along the source's columns, 16 bytes to each, and all rows of a tile belong to the same lane. So sums over
rows stay in a thread's registers, and sums over a column group meet its nearest neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["table", "addresses"])
def _write_addresses_kernel(table, addresses):
    """Write addresses that travel in the kernel's arguments: no copy from the host, no lifetime to mind."""
    for i in tl.static_range(len(addresses)):
        tl.store(table + i, addresses[i])


@triton.jit
def _pointer(table, index, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(table + index).to(tl.pointer_type(TYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _forward_tile(
    W, N, M, row_group, col_group, n0, m0, p, q, out, batch, p_width, q_width,
    A: tl.constexpr, C: tl.constexpr, WHOLE: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
):  # fmt: skip
    """`A` rows of a group at a time, `C` columns of it side by side; WHOLE: C is all of it."""
    NS: tl.constexpr = ROWS // A
    MS: tl.constexpr = COLS // C
    cols = M * col_group
    if ALIGNED:
        cols = tl.multiple_of(cols, 8)
    lane = tl.arange(0, COLS)
    n = n0 + tl.arange(0, NS)
    m = m0 + lane // C
    for first in range(tl.program_id(1) * TASKS, batch, tl.num_programs(1) * TASKS):
        b = (first + tl.arange(0, TASKS)).to(tl.int64)
        task = b < batch
        total = tl.zeros([TASKS, NS, MS], tl.float32)
        for c0 in range(0, col_group, C):
            if WHOLE:
                i = m0 * C + lane
                inside = i < cols
            else:
                c = c0 + lane % C
                i = m * col_group + c
                inside = (m < M) & (c < col_group)
            q_b = tl.load(q + b[:, None] * q_width + i, task[:, None] & inside, 0.0)  # [tasks, cols]
            T = tl.zeros([TASKS, NS, COLS], tl.float32)
            for a0 in range(0, row_group, A):
                j = n[:, None] * row_group + a0 + tl.arange(0, A)  # [n, a]
                here = task[:, None, None] & (n < N)[:, None]
                p_b = tl.load(p + b[:, None, None] * p_width + j, here, 0.0)  # [tasks, n, a]
                here = (n < N)[:, None, None] & inside
                W_a = tl.load(W + j[:, :, None] * cols + i, here, 0.0).to(tl.float32)  # [n, a, cols]
                T += tl.sum(p_b[:, :, :, None] * W_a, 2)
            total += tl.sum(tl.reshape(T * q_b[:, None], [TASKS, NS, MS, C]), 3)
        m_out = m0 + tl.arange(0, MS)
        place = (b[:, None, None] * N + n[:, None]) * M + m_out  # [tasks, n, m]
        here = task[:, None, None] & (n < N)[:, None] & (m_out < M)
        tl.store(out + place, total.to(out.dtype.element_ty), here)


@triton.jit(do_not_specialize=["batch"])
def _project_forward_kernel(
    addresses, tiles, matrices, offsets, p, q, out, batch, p_width, q_width,
    W_TYPE: tl.constexpr, VARIANTS: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
):  # fmt: skip
    """W_s[b,n,m] = sum_{a,c} p[b,n,a] W[n,a,m,c] q[b,m,c], for one tile of (n, m) and every b.

    Args:
        addresses: of each weight. tiles: (matrix, n, m) of each program. offsets: of each matrix in ``out``.
        matrices: (weight, offset in it, N, M, row_group, col_group, p_offset, q_offset, variant) of each.
    """
    tile = tiles + 3 * tl.program_id(0)
    k, n0, m0 = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    matrix = matrices + 9 * k
    W = _pointer(addresses, tl.load(matrix), W_TYPE, ALIGNED)
    W_offset, N, M = tl.load(matrix + 1), tl.load(matrix + 2), tl.load(matrix + 3)
    row_group, col_group = tl.load(matrix + 4), tl.load(matrix + 5)
    p_offset, q_offset, variant = tl.load(matrix + 6), tl.load(matrix + 7), tl.load(matrix + 8)
    if ALIGNED:
        W_offset, p_offset, q_offset = tl.multiple_of(W_offset, 8), tl.multiple_of(p_offset, 8), tl.multiple_of(q_offset, 8)
        M = tl.multiple_of(M, 8)
    out += tl.multiple_of(tl.load(offsets + k), 64)
    for v in tl.static_range(len(VARIANTS)):
        if variant == v:
            _forward_tile(
                W + W_offset, N, M, row_group, col_group, n0, m0, p + p_offset, q + q_offset, out,
                batch, p_width, q_width, VARIANTS[v][0], VARIANTS[v][1], VARIANTS[v][2], ALIGNED, ROWS, COLS, TASKS,
            )  # fmt: skip


@triton.jit
def _backward_tile(
    W, dW, G, p, q, p_parts, q_parts, first_of_band, row0, col0, rows, cols, row_group, col_group, batch,
    p_width, q_width,
    A: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
    NEED_W: tl.constexpr, NEED_P: tl.constexpr, NEED_Q: tl.constexpr,
):  # fmt: skip
    """Adds one matrix's part to dW [rows, cols], and writes its partial sums; runs of `A` rows share their row of G."""
    NS: tl.constexpr = ROWS // A
    N, M = rows // row_group, cols // col_group
    j = row0 + tl.arange(0, NS)[:, None] * A + tl.arange(0, A)  # [n, a]
    n = (row0 + tl.arange(0, NS) * A) // row_group
    i = col0 + tl.arange(0, COLS)
    m = i // col_group
    W = tl.reshape(W, [NS, A, COLS])
    dW = tl.reshape(dW, [NS, A, COLS])
    for first in range(0, batch, TASKS):
        b = (first + tl.arange(0, TASKS)).to(tl.int64)
        task = b < batch
        q_b = tl.load(q + b[:, None] * q_width + i, task[:, None] & (i < cols), 0.0)  # [tasks, cols]
        p_b = tl.load(p + b[:, None, None] * p_width + j, task[:, None, None] & (j < rows), 0.0)  # [tasks, n, a]
        here = task[:, None, None] & (n < N)[:, None] & (i < cols)
        g = tl.load(G + (b[:, None, None] * N + n[:, None]) * M + m, here, 0.0).to(tl.float32)  # [tasks, n, cols]
        U = g * q_b[:, None]
        if NEED_W:
            dW += tl.sum(p_b[:, :, :, None] * U[:, :, None], 0)
        if NEED_P:
            dp = tl.sum(U[:, :, None] * W, 3)  # [tasks, n, a]
            tl.store(p_parts + b[:, None, None] * rows + j, dp, task[:, None, None] & (j < rows))
        if NEED_Q:
            dq = tl.sum(g * tl.sum(p_b[:, :, :, None] * W, 2), 1)  # [tasks, cols]
            part = q_parts + b[:, None] * cols + i
            here = task[:, None] & (i < cols)
            dq += tl.load(part, here & (row0 > first_of_band), 0.0)
            tl.store(part, dq, here)
    return tl.reshape(dW, [ROWS, COLS])


@triton.jit(do_not_specialize=["batch", "addresses", "d_addresses", "grads"])
def _project_backward_kernel(
    addresses, d_addresses, grads, tiles, sources, matrices, p, q, p_parts, q_parts, batch, p_width, q_width,
    W_TYPE: tl.constexpr, G_TYPE: tl.constexpr, VARIANTS: tl.constexpr, ALIGNED: tl.constexpr,
    BAND: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
    NEED_W: tl.constexpr, NEED_P: tl.constexpr, NEED_Q: tl.constexpr,
):  # fmt: skip
    """dW for one tile of a source, BAND rows of COLS columns, and its parts of dp and dq, from one read of W.

    A source that is projected to several scales is one source of several matrices: dW is their sum.

    Args:
        addresses, d_addresses, grads: of each W, dW (0: not wanted) and G. tiles: (source, row, column) of each program.
        sources: (weight, offset in it, rows, cols, first matrix, matrix after the last) of each.
        matrices: (gradient, row_group, col_group, p_offset, q_offset, parts of dp, of dq, variant), by source.
        p_parts: (column tiles, batch, rows) of each matrix. q_parts: (bands, batch, cols).
    """
    tile = tiles + 3 * tl.program_id(0)
    source, band, col0 = sources + 6 * tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    weight, offset = tl.load(source), tl.load(source + 1)
    rows, cols = tl.load(source + 2), tl.load(source + 3)
    if ALIGNED:
        offset, cols = tl.multiple_of(offset, 8), tl.multiple_of(cols, 8)
    col0 = tl.multiple_of(col0, COLS)
    W = _pointer(addresses, weight, W_TYPE, ALIGNED) + offset
    i = col0 + tl.arange(0, COLS)
    batch_64 = batch.to(tl.int64)
    for row0 in range(band, min(band + BAND, rows), ROWS):
        j = row0 + tl.arange(0, ROWS)
        here = (j < rows)[:, None] & (i < cols)
        place = j[:, None] * cols + i
        W_tile = tl.load(W + place, here, 0.0).to(tl.float32)  # [rows, cols]
        dW = tl.zeros([ROWS, COLS], tl.float32)
        for k in range(tl.load(source + 4), tl.load(source + 5)):
            matrix = matrices + 8 * k
            G = tl.load(grads + tl.load(matrix)).to(tl.pointer_type(G_TYPE))
            row_group, col_group = tl.load(matrix + 1), tl.load(matrix + 2)
            p_offset, q_offset = tl.load(matrix + 3), tl.load(matrix + 4)
            if ALIGNED:
                p_offset, q_offset = tl.multiple_of(p_offset, 8), tl.multiple_of(q_offset, 8)
            p_part = p_parts + batch_64 * (tl.load(matrix + 5) + col0 // COLS * rows)
            q_part = q_parts + batch_64 * (tl.load(matrix + 6) + band // BAND * cols)
            variant = tl.load(matrix + 7)
            for v in tl.static_range(len(VARIANTS)):
                if variant == v:
                    dW = _backward_tile(
                        W_tile, dW, G, p + p_offset, q + q_offset, p_part, q_part, band, row0, col0,
                        rows, cols, row_group, col_group, batch, p_width, q_width,
                        VARIANTS[v], ROWS, COLS, TASKS, NEED_W, NEED_P, NEED_Q,
                    )  # fmt: skip
        if NEED_W:
            d_address = tl.load(d_addresses + weight)
            if d_address != 0:
                d_pointer = d_address.to(tl.pointer_type(W_TYPE))
                if ALIGNED:
                    d_pointer = tl.multiple_of(d_pointer, 16)
                tl.store(d_pointer + offset + place, dW.to(W_TYPE), here)
        if NEED_Q:
            # The next rows add to the part of dq that other threads of this program may have written.
            tl.debug_barrier()


@triton.jit(do_not_specialize=["batch"])
def _sum_parts_kernel(parts, runs, out, batch, width, BLOCK: tl.constexpr):
    """out[b, to + i] = sum over t, in order, of parts[t, b, i].

    Args:
        runs: (offset of the parts, count of t, length of i, to, first i) of each; every run for each b.
    """
    run = runs + 5 * (tl.program_id(0) // batch)
    b = (tl.program_id(0) % batch).to(tl.int64)
    count, length, to = tl.load(run + 1), tl.load(run + 2), tl.load(run + 3)
    i = tl.load(run + 4) + tl.arange(0, BLOCK)
    parts += tl.load(run) * batch + b * length
    total = tl.zeros([BLOCK], tl.float32)
    for t in range(0, count):
        total += tl.load(parts + t * batch * length + i, i < length, 0.0)
    tl.store(out + b * width + to + i, total, i < length)
