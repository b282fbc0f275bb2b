// Forward on the ordinary cores, for row group = column group = 2, 4 or 8 and 16-byte accesses.
//
//     W_s[b,n,m] = sum over c of T_c q[b,m,c],   T_c = sum over a of p[b,n,a] W[n,a,m,c]
//
// A thread keeps 8 x 8 elements of W in registers, 8/g row groups of 8/g outputs, and takes one task after another: 64
// multiply-adds for the rows and 64/g for the columns, for four loads of p and q. A warp takes eight rows and 256
// columns, a block the eight warps below each other, which share q. All of a thread's W is on its way before the first
// of it is used: with few tasks this is a copy with some arithmetic.
#pragma once

#include "forward_steps.cuh"

namespace projkern::cuda {

// q[task][lower or upper half of a lane's eight columns][lane][4]: a warp reads 512 bytes in a row, and the gap between
// the halves keeps neighbouring copies in different banks.
struct Lanes {
    static constexpr int kCols = 8 * 32, kTasks = 16, kRowStride = kStripRows;
    static constexpr int kUpper = 32 + 4, kTaskSlots = 2 * kUpper, kSlots = kTasks * kTaskSlots;

    PROJKERN_DEVICE static int slot(int task, int chunk) { return task * kTaskSlots + chunk % 2 * kUpper + chunk / 2; }
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

// What a thread has of a strip. Found afresh for each step: registers are for W.
struct Eights {
    int col, first_row, rows;  // first of eight; the rows that are there, none if the columns are not
    int warp, lane;

    PROJKERN_DEVICE static Eights here(const Strip& strip, int col) {
        const unsigned thread = opaque(thread_index());
        const int warp = thread / 32 % (kThreads / 32), lane = thread % 32, first_row = strip.first + 8 * warp;
        col += 8 * lane;
        return {col, first_row, col < strip.source.cols ? strip.end - first_row : 0, warp, lane};
    }
};

template <int g, class Weight, class Output>
PROJKERN_DEVICE void forward_lanes(const Table& table, const Strip& strip, const Projection& projection) {
    constexpr int kAtOnce = 16 / sizeof(Weight);
    float w[8][8];  // zero beyond the strip and the columns

    const auto enter = [&](int first_col) {
        const Eights at = Eights::here(strip, first_col);
        const int64_t cols = strip.source.cols;
        const Weight* W = static_cast<const Weight*>(strip.source.W) + at.first_row * cols + at.col;
        Pack<Weight, kAtOnce> stored[8][8 / kAtOnce] = {};
#pragma unroll
        for (int a = 0; a < 8; ++a)
#pragma unroll
            for (int i = 0; i < 8 / kAtOnce; ++i)
                if (a < at.rows) stored[a][i] = load_once<Weight, kAtOnce>(W + a * cols + i * kAtOnce);
#pragma unroll
        for (int a = 0; a < 8; ++a)
#pragma unroll
            for (int i = 0; i < 8; ++i) w[a][i] = to_float(stored[a][i / kAtOnce].x[i % kAtOnce]);
    };

    const auto work = [&](int first_col, int task, int place) {
        const Eights at = Eights::here(strip, first_col);
        if (at.rows <= 0) return;
        const int out_cols = strip.source.cols / g, tasks = Staged<Lanes>::tasks_from(table, task);
        const int64_t task_outputs = int64_t(strip.source.rows / g) * out_cols;
        const float *q = Staged<Lanes>::q(place) + 4 * at.lane, *p = Staged<Lanes>::p(place) + 8 * at.warp;
        Output* out = static_cast<Output*>(projection.projected) + task * task_outputs +
                      int64_t(unsigned(at.first_row) / g) * out_cols + unsigned(at.col) / g;
#pragma unroll 2
        for (int t = 0; t < tasks; ++t) {
            const Eight p_t{load<float, 4>(p), load<float, 4>(p + 4)};
            const Eight q_t{load<float, 4>(q), load<float, 4>(q + 4 * Lanes::kUpper)};
#pragma unroll
            for (int n = 0; n < 8 / g; ++n) {
                const Pack<Output, 8 / g> projected = combine<g, Output>(w, n, p_t, q_t);
                if (n == 0 || n * g < at.rows) store<Output, 8 / g>(out + n * out_cols, projected);
            }
            p += Lanes::kRowStride;
            q += 4 * Lanes::kTaskSlots;
            out += task_outputs;
        }
    };

    each_step<Lanes>(table, strip, projection, enter, work);
}

}  // namespace projkern::cuda
