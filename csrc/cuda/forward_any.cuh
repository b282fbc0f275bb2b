// Forward for any group, shape and alignment: a thread makes one element of W_s after another, straight from the
// formula.
#pragma once

#include "strip.cuh"

namespace projkern::cuda {

// W_s[b,n,m] = sum over a, c of p[b,n,a] W[n,a,m,c] q[b,m,c]
template <class Weight, class Output>
PROJKERN_DEVICE void forward_any(const Table& table, const Strip& strip, const Projection& projection) {
    const int row_group = projection.row_group, col_group = projection.col_group;
    const int64_t cols = strip.source.cols, out_cols = cols / col_group, out_rows = strip.source.rows / row_group;
    const Weight* W = static_cast<const Weight*>(strip.source.W);
    Output* projected = static_cast<Output*>(projection.projected);
    const int64_t first_row = strip.first / row_group, outputs = strip.rows() / row_group * out_cols;
    for (int64_t output = thread_index(); output < outputs; output += kThreads) {
        const int64_t n = first_row + output / out_cols, m = output % out_cols;
        for (int64_t b = 0; b < table.batch; ++b) {
            const float* p = table.p + b * table.p_width + projection.p_offset + n * row_group;
            const float* q = table.q + b * table.q_width + projection.q_offset + m * col_group;
            float sum = 0;
            for (int a = 0; a < row_group; ++a) {
                const Weight* w = W + (n * row_group + a) * cols + m * col_group;
                float row = 0;
                for (int c = 0; c < col_group; ++c) row += to_float(w[c]) * q[c];
                sum += p[a] * row;
            }
            projected[(b * out_rows + n) * out_cols + m] = from_float<Output>(sum);
        }
    }
}

}  // namespace projkern::cuda
