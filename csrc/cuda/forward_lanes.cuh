// Forward on the ordinary cores, for row group = column group = 2, 4 or 8 and 16-byte accesses.
//
//     W_s[b,n,m] = sum over c of T_c q[b,m,c],   T_c = sum over a of p[b,n,a] W[n,a,m,c]
//
// A thread keeps 8 x 8 elements of W in registers, 8/g row groups of 8/g outputs, and takes one task after another: 64
// multiply-adds for the rows and 64/g for the columns, for four loads of p and q. A warp takes eight rows and 256 columns,
// a block the eight warps below each other, which share q. All of a thread's W is on its way before the first of it is
// used: with few tasks this is a copy with some arithmetic.
#pragma once

#include "forward_steps.cuh"

namespace projkern::cuda {

struct Lanes {
    static constexpr int kCols = 8 * 32, kTasks = 16;

    // p[task][row] and q[task][upper or lower half of a lane's eight columns][lane][4]: a warp reads 512 bytes in a row.
    // The gap between the halves keeps eight neighbouring copies in different banks.
    static constexpr int kUpper = kCols / 2 + 16, kTaskFloats = 2 * kUpper;
    static constexpr int kFloats = kTasks * (kTaskFloats + kStripRows), kBytes = 2 * kFloats * sizeof(float);

    PROJKERN_DEVICE static float* q(int half) { return reinterpret_cast<float*>(shared_memory()) + half * kFloats; }
    PROJKERN_DEVICE static float* p(int half) { return q(half) + kTasks * kTaskFloats; }

    PROJKERN_DEVICE static void copy(const Table& table, const Strip& strip, const Scale& scale, int64_t col,
                                     int64_t task, int half) {
        constexpr int kChunks = kCols / 4, kRowChunks = kStripRows / 4;
        const int chunk = thread_index() % kChunks, row = 4 * (thread_index() % kRowChunks);
        float* to = q(half) + chunk % 2 * kUpper + chunk / 2 * 4;
        const float* from = table.q + scale.q_offset + col + 4 * chunk;
#pragma unroll
        for (int k = 0; k < kTasks; k += kThreads / kChunks) {
            const int t = k + thread_index() / kChunks;
            if (task + t < table.batch && col + 4 * chunk < strip.source.cols)
                copy_async(to + t * kTaskFloats, from + (task + t) * table.q_width, true);
        }
        static_assert(kThreads == kTasks * kRowChunks, "a copy of p for each thread");
        const int t = thread_index() / kRowChunks;
        if (task + t < table.batch && row < strip.rows())
            copy_async(p(half) + t * kStripRows + row,
                       table.p + (task + t) * table.p_width + scale.p_offset + strip.first + row, true);
    }
};

// p of a thread's eight rows, or q of its eight columns, for one task.
struct Eight {
    Pack<float, 4> half[2];

    PROJKERN_DEVICE float operator[](int i) const { return half[i / 4].x[i % 4]; }
};

// W_s[b, m to m + 8/g] of row group n.
template <int g, class Output>
PROJKERN_DEVICE Pack<Output, 8 / g> combine(const float (&w)[8][8], int n, const Eight& p, const Eight& q) {
    Pack<Output, 8 / g> rounded;
#pragma unroll
    for (int m = 0; m < 8 / g; ++m) {
        float sum = 0;
#pragma unroll
        for (int c = 0; c < g; ++c) {
            float t = 0;
#pragma unroll
            for (int a = 0; a < g; ++a) t += p[n * g + a] * w[n * g + a][m * g + c];
            sum += t * q[m * g + c];
        }
        rounded.x[m] = from_float<Output>(sum);
    }
    return rounded;
}

template <int g, class Weight, class Output>
PROJKERN_DEVICE void forward_lanes(const Table& table, const Strip& strip, const Scale& scale) {
    constexpr int kAtOnce = 16 / sizeof(Weight);
    const int64_t cols = strip.source.cols, out_cols = cols / g, out_rows = strip.source.rows / g;
    const int first_row = strip.first + 8 * warp_index(), rows = strip.end - first_row, lane = lane_index();
    float w[8][8];  // zero beyond the strip and the columns

    const auto copy = [&](int64_t col, int64_t task, int half) { Lanes::copy(table, strip, scale, col, task, half); };

    const auto enter = [&](int64_t col) {
        const Weight* W = static_cast<const Weight*>(strip.source.W) + first_row * cols + col + 8 * lane;
        Pack<Weight, kAtOnce> stored[8][8 / kAtOnce] = {};
#pragma unroll
        for (int a = 0; a < 8; ++a)
#pragma unroll
            for (int i = 0; i < 8 / kAtOnce; ++i)
                if (a < rows && col + 8 * lane < cols) stored[a][i] = load_once<Weight, kAtOnce>(W + a * cols + i * kAtOnce);
#pragma unroll
        for (int a = 0; a < 8; ++a)
#pragma unroll
            for (int i = 0; i < 8; ++i) w[a][i] = to_float(stored[a][i / kAtOnce].x[i % kAtOnce]);
    };

    const auto work = [&](int64_t col, int64_t task, int half) {
        if (rows <= 0 || col + 8 * lane >= cols) return;
        const int tasks = table.batch - task < Lanes::kTasks ? int(table.batch - task) : Lanes::kTasks;
        const float *q = Lanes::q(half) + 4 * lane, *p = Lanes::p(half) + 8 * warp_index();
        Output* out = static_cast<Output*>(scale.projected) + (task * out_rows + first_row / g) * out_cols + col / g + 8 / g * lane;
#pragma unroll 2
        for (int t = 0; t < tasks; ++t) {
            const Eight p_t{load<float, 4>(p), load<float, 4>(p + 4)};
            const Eight q_t{load<float, 4>(q), load<float, 4>(q + Lanes::kUpper)};
#pragma unroll
            for (int n = 0; n < 8 / g; ++n) {
                const Pack<Output, 8 / g> projected = combine<g, Output>(w, n, p_t, q_t);
                if (n == 0 || n * g < rows) store<Output, 8 / g>(out + n * out_cols, projected);
            }
            p += kStripRows;
            q += Lanes::kTaskFloats;
            out += out_rows * out_cols;
        }
    };

    each_step<Lanes::kCols, Lanes::kTasks>(cols, table.batch, copy, enter, work);
}

}  // namespace projkern::cuda
