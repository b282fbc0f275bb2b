// Forward on the tensor cores, for row group = column group = 4 or 8, bfloat16 outputs and sixteen tasks or more.
//
//     W_s[b,n,m] = sum over c of T_c[b,m] q[b,m,c],   T_c[b,m] = sum over a of p[b,n,a] W[n,a,m,c]
//
// T_c of a row group is a product of matrices, tasks by outputs: one for each c. So a lane gets T of the same tasks and
// outputs for every c, and the sum over c needs no other lane: it is done as in forward_lanes.cuh, in float32.
//
// The tensor cores take bfloat16. A float is the sum of two, high and low, but for 2^-17 of it, and products of parts
// are summed in float32: about 2^-16 of T is lost, far less than rounding W_s to bfloat16 loses. Products have sums of
// eight or sixteen; a row group with both its parts fills them:
//
//     g = 8    [p_high p_low] [W_low; W_high] + p_high W_high
//     g = 4    [p_high p_high] [W_high; W_low] + [p_low p_low] [W_high; W_low]
//
// and where W is stored in bfloat16, so that it has no low part:
//
//     g = 8    p_high W + p_low W
//     g = 4    [p_high p_low] [W; W]
//
// A warp takes 8 or 16 rows and 16 outputs. All its W stays in registers while it takes sixteen tasks after another.
// The warps of a block are below each other and share q; if they have 16 rows, four of them are beside the others.
#pragma once

#include <type_traits>

#include "forward_steps.cuh"

namespace projkern::cuda {

// Two neighbours along the sum, as the tensor cores take them, in two parts.
struct Parts {
    uint32_t high, low;
};

PROJKERN_DEVICE Parts high_and_low(float first, float second) {
    const uint32_t high = pack_bfloat16(first, second);
    const float first_high = to_float(Bfloat16{uint16_t(high)}), second_high = to_float(Bfloat16{uint16_t(high >> 16)});
    return {high, pack_bfloat16(first - first_high, second - second_high)};
}

// Of a lane (i, j) = (lane / 4, lane % 4): a product's outputs 2j and 2j + 1 are m = 4j and 4j + 1 in the first half of
// a warp's outputs, 4j + 2 and 4j + 3 in the second. So a lane stores four neighbours.
template <int g, class Weight>
struct MatrixLayout {
    static constexpr bool kExact = std::is_same<Weight, Bfloat16>::value;  // W has no low part
    static constexpr bool kTwoParts = g == 8 && !kExact;                   // a lane keeps both

    // Of a warp. Sixteen rows read q half as often as eight, where there are registers for them.
    static constexpr int kTile = 16;  // tasks, and outputs
    static constexpr int kRows = g == 8 && kExact ? 16 : 8, kGroups = kRows / g;

    static constexpr int kBelow = kStripRows / kRows, kBeside = kThreads / 32 / kBelow;
    static constexpr int kCols = kBeside * kTile * g, kTasks = kBeside == 1 ? 32 : 16;
    static constexpr int kRowStride = kStripRows + 8;  // lanes of different i meet different banks

    // q of eight tasks in the order of its use, chunk by chunk of a lane's g: the lanes read 512 bytes in a row
    // together. The gaps are for the copies: a warp's are of neighbouring chunks, and meet different banks too.
    static constexpr int kChunkSlots = 32 + 8 / g, kEightSlots = g * kChunkSlots;
    static constexpr int kBesideSlots = kTasks / 8 * kEightSlots, kSlots = kBeside * kBesideSlots;

    PROJKERN_DEVICE static int slot(int task, int chunk) {
        const int beside = chunk / (4 * g), j = chunk / g % 4;
        return beside * kBesideSlots + task / 8 * kEightSlots + chunk % g * kChunkSlots + task % 8 * 4 + j;
    }
};

// One lane's part of T_c. Its neighbours a, a + 1 are 2j % g and the next: with g = 4 the lanes of j < 2 and the others
// have the same, and bring different parts.
template <int g, class Weight>
struct Product {
    using Layout = MatrixLayout<g, Weight>;

    // W[a, a + 1][m, c]
    struct Right {
        uint32_t part[Layout::kTwoParts ? 2 : 1];
    };
    PROJKERN_DEVICE static Right right(Weight first, Weight second) {
        if constexpr (Layout::kExact) {
            return {first.bits | uint32_t(second.bits) << 16};
        } else {
            const Parts W = high_and_low(to_float(first), to_float(second));
            if constexpr (Layout::kTwoParts) return {W.low, W.high};
            return {lane_index() % 4 < 2 ? W.high : W.low};
        }
    }

    // p[b, a], p[b, a + 1], for tasks b = i and i + 8
    struct Left {
        uint32_t part[4];
    };
    PROJKERN_DEVICE static Left left(const Pack<float, 2>& x, const Pack<float, 2>& y) {
        const Parts p = high_and_low(x.x[0], x.x[1]), p_8 = high_and_low(y.x[0], y.x[1]);
        if (g == 8 || !Layout::kExact) return {p.high, p_8.high, p.low, p_8.low};
        const bool high = lane_index() % 4 < 2;
        return {high ? p.high : p.low, high ? p_8.high : p_8.low};
    }

    PROJKERN_DEVICE static void multiply(float (&T)[4], const Left& p, const Right& W) {
        if constexpr (Layout::kTwoParts) {
            multiply_k16(T, p.part, W.part);
            multiply_k8(T, {p.part[0], p.part[1]}, W.part[1]);
        } else {
            multiply_k8(T, {p.part[0], p.part[1]}, W.part[0]);
            if (g == 8 || !Layout::kExact) multiply_k8(T, {p.part[2], p.part[3]}, W.part[0]);
        }
    }
};

// W of a lane for one row group, half of its warp's outputs and every c.
template <int g, class Weight>
PROJKERN_DEVICE void load_right(typename Product<g, Weight>::Right (&right)[g], const Weight* W, int64_t cols,
                                bool there) {
    constexpr int kAtOnce = 16 / sizeof(Weight) < g ? 16 / sizeof(Weight) : g;
    Pack<Weight, kAtOnce> stored[2][g / kAtOnce] = {};
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int i = 0; i < g / kAtOnce; ++i)
            if (there) stored[a][i] = load<Weight, kAtOnce>(W + a * cols + i * kAtOnce);
#pragma unroll
    for (int c = 0; c < g; ++c)
        right[c] =
            Product<g, Weight>::right(stored[0][c / kAtOnce].x[c % kAtOnce], stored[1][c / kAtOnce].x[c % kAtOnce]);
}

// Where a lane is in its block. Found afresh for each step: registers are for W.
template <int g, class Weight>
struct Position {
    int i, j;           // of the lane
    int below, beside;  // the first of the warp's rows and outputs
    int a;              // the first of the lane's two rows in each row group

    PROJKERN_DEVICE static Position here() {
        using Layout = MatrixLayout<g, Weight>;
        const unsigned thread = opaque(thread_index()), lane = thread % 32, warp = thread / 32 % (kThreads / 32);
        return {int(lane / 4), int(lane % 4), int(warp % Layout::kBelow * Layout::kRows),
                int(warp / Layout::kBelow * Layout::kTile), int(lane % 4 * 2 % g)};
    }
};

template <int g, class Weight>
PROJKERN_DEVICE void forward_matrix(const Table& table, const Strip& strip, const Projection& projection) {
    using Layout = MatrixLayout<g, Weight>;
    using Product = Product<g, Weight>;
    constexpr int kTile = Layout::kTile, kGroups = Layout::kGroups;
    typename Product::Right w[kGroups][2][g];  // zero beyond the strip and the columns

    const auto enter = [&](int col) {
        const auto at = Position<g, Weight>::here();
        const int cols = strip.source.cols, first_row = strip.first + at.below;
        col += (at.beside + at.i / 2 * 4 + at.i % 2) * g;
        const Weight* W = static_cast<const Weight*>(strip.source.W) + int64_t(first_row + at.a) * cols + col;
#pragma unroll
        for (int n = 0; n < kGroups; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                load_right<g>(w[n][half], W + int64_t(n * g) * cols + half * 2 * g, cols,
                              first_row + n * g < strip.end && col + half * 2 * g < cols);
    };

    const auto work = [&](int col, int task, int place) {
        const auto at = Position<g, Weight>::here();
        const int i = at.i, rows = strip.end - strip.first - at.below;
        const int tasks = Staged<Layout>::tasks_from(table, task) - i;
        const int out_cols = unsigned(strip.source.cols) / g, m = unsigned(col) / g + at.beside + 4 * at.j;
        if (rows <= 0 || m - 4 * at.j >= out_cols) return;
        // As far as the compiler knows, any row group may be missing: so it does not take two at a time, which would
        // need more registers than there are.
        const int unknown_rows = opaque(rows);
        const int64_t task_outputs = int64_t(strip.source.rows / g) * out_cols;
        const float* p = Staged<Layout>::p(place) + i * Layout::kRowStride + at.below + at.a;
        const float* q = Staged<Layout>::q(place) + 4 * (at.beside / kTile * Layout::kBesideSlots + 4 * i + at.j);
        Bfloat16* out = static_cast<Bfloat16*>(projection.projected) + (task + i) * task_outputs +
                        int64_t(unsigned(strip.first + at.below) / g) * out_cols + m;

        for (int t = 0; t - i < tasks; t += kTile) {
            typename Product::Left left[kGroups];
#pragma unroll
            for (int n = 0; n < kGroups; ++n)
                left[n] = Product::left(load<float, 2>(p + n * g), load<float, 2>(p + n * g + 8 * Layout::kRowStride));

            uint32_t projected[kGroups][2][2];  // [row group][task i or i + 8][two outputs]
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float sum[kGroups][4] = {};
#pragma unroll
                for (int c = 0; c < g; c += 4) {
                    Pack<float, 4> q_c[2][2];  // [task i or i + 8][output], for four c
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const int chunk = ((half * 2 + k % 2) * g + c) / 4;
                        q_c[k / 2][k % 2] =
                            load<float, 4>(q + 4 * (k / 2 * Layout::kEightSlots + chunk * Layout::kChunkSlots));
                    }
#pragma unroll
                    for (int n = 0; n < kGroups; ++n) {
                        if (n * g >= unknown_rows) continue;
#pragma unroll
                        for (int k = 0; k < 4; ++k) {
                            float T[4] = {};
                            Product::multiply(T, left[n], w[n][half][c + k]);
#pragma unroll
                            for (int d = 0; d < 4; ++d) sum[n][d] += T[d] * q_c[d / 2][d % 2].x[k];
                        }
                        if (c + 4 == g)
#pragma unroll
                            for (int k = 0; k < 2; ++k)
                                projected[n][k][half] = pack_bfloat16(sum[n][2 * k], sum[n][2 * k + 1]);
                    }
                }
            }

#pragma unroll
            for (int k = 0; k < 2; ++k)
#pragma unroll
                for (int n = 0; n < kGroups; ++n)
                    if (n * g < rows && m < out_cols && t + 8 * k < tasks)
                        store<uint32_t, 2>(reinterpret_cast<uint32_t*>(out + 8 * k * task_outputs + n * out_cols),
                                           {projected[n][k][0], projected[n][k][1]});
            p += kTile * Layout::kRowStride;
            q += 4 * 2 * Layout::kEightSlots;
            out += kTile * task_outputs;
        }
    };

    each_step<Layout>(table, strip, projection, enter, work);
}

}  // namespace projkern::cuda
