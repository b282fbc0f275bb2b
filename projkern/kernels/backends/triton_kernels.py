"""The Triton kernels that `triton.py` launches. Importing this module needs Triton.

All sizes, offsets and groups come from tables, as int64; so do addresses. A program handles one tile of one
matrix. Two numbers of a tile shape its code and are constants of it (a *variant*): how many rows of a row group
are summed at a time, and how many columns of a column group stand side by side. A plan's variants are compiled
into one kernel, and each tile says which is its own.

Lanes run along the source's columns, 16 bytes to each, and all rows of a tile belong to the same lane. So sums over
rows stay in a thread's registers, and sums over a column group meet its nearest neighbours.

Hints (``tl.multiple_of``) stand on scalars only, where the plan and the addresses guarantee them (ALIGNED). On a tensor
with axes of one element they crash the compiler; on a parameter they are lost when the function is inlined.
"""

# mypy: disable-error-code="no-untyped-def"

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
    W, N, M, row_group, col_group, down, across, p, q, out, batch, p_width, q_width,
    A: tl.constexpr, C: tl.constexpr, WHOLE: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
):  # fmt: skip
    """`A` rows of a group at a time, `C` columns of it side by side; WHOLE: C is all of it."""
    NS: tl.constexpr = ROWS // A
    MS: tl.constexpr = COLS // C
    cols = M * col_group
    if ALIGNED:
        cols = tl.multiple_of(cols, 8)
    m0 = across * MS
    n = (down * NS + tl.arange(0, NS))[None, :, None]
    m = (m0 + tl.arange(0, MS))[None, None, :]
    lane = tl.arange(0, COLS)[None, None, :]
    for first in range(tl.program_id(1) * TASKS, batch, tl.num_programs(1) * TASKS):
        b = (first + tl.arange(0, TASKS)).to(tl.int64)[:, None, None]
        total = tl.zeros([TASKS, NS, MS], tl.float32)
        for c0 in range(0, col_group, C):
            if WHOLE:
                i = m0 * C + lane
                inside = i < cols
            else:
                c = c0 + lane % C
                i = (m0 + lane // C) * col_group + c
                inside = (i < cols) & (c < col_group)
            T = tl.zeros([TASKS, NS, COLS], tl.float32)
            for run in range(0, row_group // A):
                j = (n * (row_group // A) + run) * A + tl.arange(0, A)
                p_b = tl.load(p + b * p_width + j, (b < batch) & (n < N), 0.0)  # [tasks, n, a]
                # Read with the axis of tasks: an axis that is added later moves the elements to other threads.
                mask = (n < N)[:, :, :, None] & inside[:, :, None]
                W_a = tl.load(W + j[:, :, :, None] * cols + i[:, :, None], mask, 0.0)  # [1, n, a, cols]
                T += tl.sum(p_b[:, :, :, None] * W_a.to(tl.float32), 2)
            q_b = tl.load(q + b * q_width + i, (b < batch) & inside, 0.0)  # [tasks, 1, cols]
            total += tl.sum(tl.reshape(T * q_b, [TASKS, NS, MS, C]), 3)
        mask = (b < batch) & (n < N) & (m < M)
        tl.store(out + (b * N + n) * M + m, total.to(out.dtype.element_ty), mask)  # [tasks, n, m]


@triton.jit(do_not_specialize=["batch"])
def _project_forward_kernel(
    addresses, tiles, matrices, offsets, p, q, out, batch, p_width, q_width,
    W_TYPE: tl.constexpr, VARIANTS: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
):  # fmt: skip
    """W_s[b,n,m] = sum_{a,c} p[b,n,a] W[n,a,m,c] q[b,m,c], for one tile of (n, m) and every b.

    Args:
        addresses: of each weight. tiles: (matrix, how far down, and across). offsets: of each matrix in ``out``.
        matrices: (weight, offset in it, N, M, row_group, col_group, p_offset, q_offset, variant) of each.
    """
    tile = tiles + 3 * tl.program_id(0)
    k, down, across = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    matrix = matrices + 9 * k
    W = _pointer(addresses, tl.load(matrix), W_TYPE, ALIGNED)
    W_offset, N, M = tl.load(matrix + 1), tl.load(matrix + 2), tl.load(matrix + 3)
    row_group, col_group = tl.load(matrix + 4), tl.load(matrix + 5)
    p_offset, q_offset, variant = tl.load(matrix + 6), tl.load(matrix + 7), tl.load(matrix + 8)
    if ALIGNED:
        W_offset, M = tl.multiple_of(W_offset, 8), tl.multiple_of(M, 8)
        p_offset, q_offset = tl.multiple_of(p_offset, 8), tl.multiple_of(q_offset, 8)
    out += tl.multiple_of(tl.load(offsets + k), 64)
    for v in tl.static_range(len(VARIANTS)):
        if variant == v:
            _forward_tile(
                W + W_offset, N, M, row_group, col_group, down, across, p + p_offset, q + q_offset, out,
                batch, p_width, q_width, VARIANTS[v][0], VARIANTS[v][1], VARIANTS[v][2], ALIGNED, ROWS, COLS, TASKS,
            )  # fmt: skip


@triton.jit
def _matrix(matrix, grads, G_TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """What the backward's table says of a matrix, with the address of its gradient."""
    G = _pointer(grads, tl.load(matrix), G_TYPE, False)
    p_offset, q_offset = tl.load(matrix + 3), tl.load(matrix + 4)
    if ALIGNED:
        p_offset, q_offset = tl.multiple_of(p_offset, 8), tl.multiple_of(q_offset, 8)
    row_group, col_group = tl.load(matrix + 1), tl.load(matrix + 2)
    return G, row_group, col_group, p_offset, q_offset, tl.load(matrix + 5), tl.load(matrix + 6), tl.load(matrix + 7)


@triton.jit
def _gradient(
    G, b, task, row0, col0, rows, cols, row_group, col_group,
    NS: tl.constexpr, A: tl.constexpr, C: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
):  # fmt: skip
    """G of a tile [tasks, n, 1, cols] for each source column; runs of `A` rows and of `C` columns share an element."""
    MS: tl.constexpr = COLS // C
    N, M = rows // row_group, cols // col_group
    n = ((row0 + tl.arange(0, NS) * A) // row_group)[None, :, None, None]
    m = ((col0 + tl.arange(0, MS) * C) // col_group)[None, None, :, None]
    g = tl.load(G + (b * N + n) * M + m, task & (n < N) & (m < M), 0.0).to(tl.float32)  # [tasks, n, m, 1]
    return tl.reshape(tl.broadcast_to(g, [TASKS, NS, MS, C]), [TASKS, NS, 1, COLS])


@triton.jit
def _backward_rows(
    W, dW, G, p, q, p_parts, row0, col0, rows, cols, row_group, col_group, batch, p_width, q_width,
    A: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
    NEED_W: tl.constexpr, NEED_P: tl.constexpr,
):  # fmt: skip
    """Adds one matrix's share of dW, for a few rows and every task, and writes these rows' parts of dp."""
    NS: tl.constexpr = ROWS // A
    W = tl.reshape(W, [1, NS, A, COLS])
    dW = tl.reshape(dW, [1, NS, A, COLS])
    i = (col0 + tl.arange(0, COLS))[None, None, None, :]
    j = row0 + (tl.arange(0, NS) * A)[None, :, None] + tl.arange(0, A)  # [1, n, a]
    for first in range(0, batch, TASKS):
        b = (first + tl.arange(0, TASKS)).to(tl.int64)[:, None, None]
        b_4 = b[:, :, :, None]
        g = _gradient(G, b_4, b_4 < batch, row0, col0, rows, cols, row_group, col_group, NS, A, C, COLS, TASKS)
        mask = (b < batch) & (j < rows)
        p_b = tl.load(p + b * p_width + j, mask, 0.0)  # [tasks, n, a]
        q_b = tl.load(q + b_4 * q_width + i, (b_4 < batch) & (i < cols), 0.0)  # [tasks, 1, 1, cols]
        U = g * q_b
        if NEED_W:
            dW += tl.sum(p_b[:, :, :, None] * U, 0, keep_dims=True)
        if NEED_P:
            tl.store(p_parts + b * rows + j, tl.sum(U * W, 3), mask)
    return tl.reshape(dW, [ROWS, COLS])


@triton.jit
def _backward_cols(
    W, G, p, q_parts, first_row, last_row, band, col0, rows, cols, row_group, col_group, batch, p_width,
    A: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
):  # fmt: skip
    """Adds the rows from `first_row` to `last_row` to one matrix's part of dq for the band."""
    NS: tl.constexpr = ROWS // A
    i = (col0 + tl.arange(0, COLS))[None, None, None, :]
    # A mask made of one comparison of numbers is an integer in the interpreter of Triton 3.9, so a number decides.
    written = tl.where(first_row > band, batch, 0)
    for first in range(0, batch, TASKS):
        b = (first + tl.arange(0, TASKS)).to(tl.int64)[:, None, None]
        b_4 = b[:, :, :, None]
        place = q_parts + b_4 * cols + i
        mask = (b_4 < batch) & (i < cols)
        dq = tl.load(place, mask & (b_4 < written), 0.0)  # [tasks, 1, 1, cols]
        for row0 in range(first_row, last_row, ROWS):
            j = row0 + (tl.arange(0, NS) * A)[None, :, None] + tl.arange(0, A)  # [1, n, a]
            j_4 = j[:, :, :, None]
            p_b = tl.load(p + b * p_width + j, (b < batch) & (j < rows), 0.0)  # [tasks, n, a]
            W_a = tl.load(W + j_4 * cols + i, (j_4 < rows) & (i < cols), 0.0).to(tl.float32)  # [1, n, a, cols]
            g = _gradient(G, b_4, b_4 < batch, row0, col0, rows, cols, row_group, col_group, NS, A, C, COLS, TASKS)
            T = tl.sum(p_b[:, :, :, None] * W_a, 2, keep_dims=True)
            dq += tl.sum(g * T, 1, keep_dims=True)
        tl.store(place, dq, mask)


@triton.jit(do_not_specialize=["batch", "addresses", "d_addresses", "grads"])
def _project_backward_kernel(
    addresses, d_addresses, grads, tiles, sources, matrices, p, q, p_parts, q_parts, batch, p_width, q_width,
    W_TYPE: tl.constexpr, G_TYPE: tl.constexpr, VARIANTS: tl.constexpr, ALIGNED: tl.constexpr,
    BAND: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, TASKS: tl.constexpr,
    NEED_W: tl.constexpr, NEED_P: tl.constexpr, NEED_Q: tl.constexpr,
):  # fmt: skip
    """dW for one tile of a source, BAND rows of COLS columns, and its parts of dp and dq.

    dW sums over tasks and dq over rows: to keep both sums in registers, a block of rows is passed over twice, rows
    outside and tasks inside, then the other way round. The second pass finds W in the cache.
    A source that is projected to several scales is one source of several matrices: dW is their sum.

    Args:
        addresses, d_addresses, grads: of each W, dW (0: not needed) and G. tiles: (source, how far down, and across).
        sources: (weight, offset in it, rows, cols, first matrix, matrix after the last) of each.
        matrices: (gradient, row_group, col_group, p_offset, q_offset, parts of dp, of dq, variant), by source.
        p_parts: (tiles across, batch, rows) of each matrix. q_parts: (bands, batch, cols).
    """
    tile = tiles + 3 * tl.program_id(0)
    source, down, across = sources + 6 * tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    weight, offset = tl.load(source), tl.load(source + 1)
    rows, cols = tl.load(source + 2), tl.load(source + 3)
    first_matrix, last_matrix = tl.load(source + 4), tl.load(source + 5)
    band, col0 = down * BAND, across * COLS
    if ALIGNED:
        offset, cols = tl.multiple_of(offset, 8), tl.multiple_of(cols, 8)
    W = _pointer(addresses, weight, W_TYPE, ALIGNED) + offset
    i = col0 + tl.arange(0, COLS)
    batch_64 = batch.to(tl.int64)
    for block in range(band, min(band + BAND, rows), BLOCK):
        last_row = min(block + BLOCK, rows)
        if NEED_W or NEED_P:
            for row0 in range(block, last_row, ROWS):
                j = row0 + tl.arange(0, ROWS)
                mask = (j < rows)[:, None] & (i < cols)
                place = j[:, None] * cols + i
                W_tile = tl.load(W + place, mask, 0.0).to(tl.float32)  # [rows, cols]
                dW = tl.zeros([ROWS, COLS], tl.float32)
                for k in range(first_matrix, last_matrix):
                    G, row_group, col_group, p_offset, q_offset, p_part, _, variant = _matrix(
                        matrices + 8 * k, grads, G_TYPE, ALIGNED
                    )
                    p_place = p_parts + batch_64 * (p_part + across * rows)
                    for v in tl.static_range(len(VARIANTS)):
                        if variant == v:
                            dW = _backward_rows(
                                W_tile, dW, G, p + p_offset, q + q_offset, p_place, row0, col0, rows, cols,
                                row_group, col_group, batch, p_width, q_width,
                                VARIANTS[v][0], VARIANTS[v][1], ROWS, COLS, TASKS, NEED_W, NEED_P,
                            )  # fmt: skip
                if NEED_W:  # noqa: SIM102
                    if tl.load(d_addresses + weight) != 0:
                        d_weight = _pointer(d_addresses, weight, W_TYPE, ALIGNED) + offset
                        tl.store(d_weight + place, dW.to(W_TYPE), mask)
        if NEED_Q:
            for k in range(first_matrix, last_matrix):
                G, row_group, col_group, p_offset, _, _, q_part, variant = _matrix(
                    matrices + 8 * k, grads, G_TYPE, ALIGNED
                )
                q_place = q_parts + batch_64 * (q_part + down * cols)
                for v in tl.static_range(len(VARIANTS)):
                    if variant == v:
                        _backward_cols(
                            W, G, p + p_offset, q_place, block, last_row, band, col0, rows, cols,
                            row_group, col_group, batch, p_width,
                            VARIANTS[v][0], VARIANTS[v][1], ROWS, COLS, TASKS,
                        )  # fmt: skip
            # The next block adds to what other threads of this program may have written.
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
