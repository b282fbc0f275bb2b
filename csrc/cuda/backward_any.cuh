// Backward for any group, shape and alignment, straight from the formulas.
#pragma once

#include "gradients.cuh"
#include "strip.cuh"

namespace projkern::cuda {

// dW[j,i]  = sum over b of p[b,j] G[b,n,m] q[b,i]        n = j / row_group, m = i / col_group
// dp[b,j]  = sum over i of G[b,n,m] q[b,i] W[j,i]
// dq[b,i] += sum over the strip's j of G[b,n,m] p[b,j] W[j,i]
template <class Weight, class Grad>
PROJKERN_DEVICE void backward_any(const Table& table, const Strip& strip, const Projection& projection) {
    const int row_group = projection.row_group, col_group = projection.col_group;
    const int64_t rows = strip.source.rows, cols = strip.source.cols;
    const int64_t out_cols = cols / col_group, out_rows = rows / row_group;
    const Weight* W = static_cast<const Weight*>(strip.source.W);
    const Grad* G = static_cast<const Grad*>(projection.grad);
    const float* p = table.p + projection.p_offset;
    const float* q = table.q + projection.q_offset;

    if (strip.source.dW != nullptr)
        for (int64_t element = thread_index(); element < strip.rows() * cols; element += kThreads) {
            const int64_t j = strip.first + element / cols, i = element % cols;
            const Grad* g = G + (j / row_group) * out_cols + i / col_group;
            float sum = 0;
            for (int64_t b = 0; b < table.batch; ++b)
                sum += p[b * table.p_width + j] * (to_float(g[b * out_rows * out_cols]) * q[b * table.q_width + i]);
            put_dW<Weight>(table, strip.source, j * cols + i, sum, projection.adds_to_dW);
        }

    if (table.dp != nullptr)
        for (int64_t element = warp_index(); element < table.batch * strip.rows(); element += kThreads / 32) {
            const int64_t b = element / strip.rows(), j = strip.first + element % strip.rows();
            const Grad* g = G + (b * out_rows + j / row_group) * out_cols;
            float sum = 0;
            for (int64_t i = lane_index(); i < cols; i += 32)
                sum += to_float(g[i / col_group]) * q[b * table.q_width + i] * to_float(W[j * cols + i]);
            for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
            if (lane_index() == 0) table.dp[b * table.p_width + projection.p_offset + j] = sum;
        }

    if (table.dq != nullptr)
        for (int64_t element = thread_index(); element < table.batch * cols; element += kThreads) {
            const int64_t b = element / cols, i = element % cols;
            float sum = 0;
            for (int64_t j = strip.first; j < strip.end; ++j)
                sum += to_float(G[(b * out_rows + j / row_group) * out_cols + i / col_group]) *
                       p[b * table.p_width + j] * to_float(W[j * cols + i]);
            put_dq(table, strip, projection, b, i, sum);
        }
}

}  // namespace projkern::cuda
