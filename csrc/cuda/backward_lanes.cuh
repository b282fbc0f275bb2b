// Backward on the ordinary cores, for row group = column group = 2, 4 or 8 and 16-byte accesses.
//
//     U = G[b,n,m] q[b,i]      dW[j,i] += p[b,j] U      dp[b,j] += U W[j,i]      dq[b,i] += G[b,n,m] (p[b,j] W[j,i])
//
// A tile is the strip's 64 rows by 128 columns: eight rows for each warp, four columns of them for each lane. A thread
// keeps its 32 elements of W and of dW in registers and takes one task after another, each with 96 multiply-adds and
// a few more for each group. dW stays where it is. dp is summed over the lanes by halving: four tasks' eight
// rows are 32 sums, and every lane ends with one of them, after 31 shuffles for all four. dq is summed over
// the warps through shared memory, eight tasks at a time. So each sum has one order, whatever the card does first.
//
// The next tile of W and the next p and q are copied to shared memory during the arithmetic. No two threads use
// the same element of G (but for g = 8), so it goes straight to registers, one or a few tasks ahead.
#pragma once

#include "gradients.cuh"
#include "strip.cuh"

namespace projkern::cuda {

constexpr int kLanesCols = 128;
constexpr int kLanesTasks = 8;  // between two meetings of the warps

template <class Weight>
struct LanesShared {
    Weight W[kStripRows][kLanesCols];
    float p[2][kLanesTasks][kStripRows];  // this step's and the next's
    float q[2][kLanesTasks][kLanesCols];
    float dq[kLanesTasks][kStripRows / 8][kLanesCols];  // a share of each warp
};

// Two sums of each lane become one: a of the lanes without the bit, b of those with it.
PROJKERN_DEVICE float halve(float a, float b, int bit) {
    const bool upper = lane_index() & bit;
    return (upper ? b : a) + shuffle_xor(upper ? a : b, bit);
}

// A thread's elements of G, of one task after another, over all tiles.
template <int g, class Grad>
class GradStream {
  public:
    static constexpr int kRows = 8 / g, kCols = g < 4 ? 4 / g : 1;
    using Block = Pack<Grad, kCols>[kRows];

    // Tasks come in fours, with zeros for those that are missing in the last; `swapped` as in backward_lanes.
    PROJKERN_DEVICE GradStream(const Table& table, const Strip& strip, const Scale& scale, bool swapped)
        : cols_(strip.source.cols), out_cols_(cols_ / g), task_(strip.source.rows / g * out_cols_), batch_(table.batch) {
        const int row = 8 * warp_index() + 4 * swapped;
        valid_[0] = row < strip.rows();
        valid_[1] = (row ^ 4) < strip.rows();
        other_half_ = (swapped ? -1 : 1) * (4 / g) * out_cols_;
        first_ = next_ = static_cast<const Grad*>(scale.grad) + (strip.first + row / g * g) / g * out_cols_ + 4 * lane_index() / g;
        col_ = 4 * lane_index();
    }

    PROJKERN_DEVICE void take(Block& block) {
        for (int n = 0; n < kRows; ++n) {
            const bool second = n >= 4 / g && g < 8;
            const Grad* address = next_ + (second ? n - 4 / g : n) * out_cols_ + (second ? other_half_ : 0);
            block[n] = {};
            if (valid_[second] && b_ < batch_ && col_ < cols_) block[n] = load<Grad, kCols>(address);
        }
        next_ += task_;
        if (++b_ >= batch_ && b_ % 4 == 0) {
            b_ = 0;
            col_ += kLanesCols;
            next_ = first_ += kLanesCols / g;
        }
    }

  private:
    int64_t cols_, out_cols_, task_, batch_;
    int64_t b_ = 0, col_, other_half_;
    const Grad *first_, *next_;
    bool valid_[2];
};

template <int g, class Weight, class Grad>
PROJKERN_DEVICE void backward_lanes(const Table& table, const Strip& strip, const Scale& scale, bool add_to_dW) {
    using Grads = GradStream<g, Grad>;
    constexpr int kAhead = g > 2 ? 4 : sizeof(Grad) == 2 ? 2 : 1;  // tasks whose G is under way
    constexpr int kAtOnce = 16 / sizeof(Weight);
    auto& shared = *reinterpret_cast<LanesShared<Weight>*>(shared_memory());
    const int warp = warp_index(), lane = lane_index(), rows = strip.rows();
    const int64_t cols = strip.source.cols, batch = table.batch;
    const Weight* W = static_cast<const Weight*>(strip.source.W) + strip.first * cols;
    const bool wants_dW = strip.source.dW != nullptr, wants_dp = table.dp != nullptr, wants_dq = table.dq != nullptr;

    // Lanes 16 to 31 keep rows 4 to 7 first, so that the first halving of dp sends the same registers everywhere.
    const bool swapped = lane >= 16;
    const auto row_of = [&](int r) { return 8 * warp + (r ^ (swapped ? 4 : 0)); };

    const auto copy_W = [&](int64_t tile) {  // the warp's own rows
        constexpr int kChunks = kLanesCols / kAtOnce;
        for (int i = lane; i < 8 * kChunks; i += 32) {
            const int row = 8 * warp + i / kChunks, col = i % kChunks * kAtOnce;
            const bool valid = row < rows && tile + col < cols;
            copy_async(&shared.W[row][col], valid ? W + row * cols + tile + col : W, valid);
        }
    };
    const auto copy_vectors = [&](int64_t tile, int64_t b0, int buffer) {
        for (int i = thread_index(); i < kLanesTasks * (kStripRows + kLanesCols) / 4; i += kThreads) {
            constexpr int kOfP = kLanesTasks * kStripRows / 4;
            const bool of_p = i < kOfP;
            const int width = of_p ? kStripRows : kLanesCols, place = 4 * (of_p ? i : i - kOfP);
            const int t = place / width, x = place % width;
            const bool valid = b0 + t < batch && (of_p ? x < rows : tile + x < cols);
            const float* p = table.p + (b0 + t) * table.p_width + scale.p_offset + strip.first + x;
            const float* q = table.q + (b0 + t) * table.q_width + scale.q_offset + tile + x;
            copy_async(of_p ? &shared.p[buffer][t][x] : &shared.q[buffer][t][x], valid ? of_p ? p : q : table.p, valid);
        }
    };

    Grads grads(table, strip, scale, swapped);
    typename Grads::Block G[kAhead];
    for (int i = 0; i < kAhead; ++i) grads.take(G[i]);
    copy_W(0);
    copy_vectors(0, 0, 0);
    commit_copies();

    int buffer = 0;
    for (int64_t tile = 0; tile < cols; tile += kLanesCols) {
        const int64_t col = tile + 4 * lane;
        float w[8][4], dW[8][4];
        for (int64_t b0 = 0; b0 < batch; b0 += kLanesTasks, buffer ^= 1) {
            wait_copies<0>();
            barrier();  // the copies have arrived, and the last step's shares of dq are used
            if (b0 == 0) {
                for (int r = 0; r < 8; ++r) {
                    const Pack<Weight, 4> four = load<Weight, 4>(&shared.W[row_of(r)][4 * lane]);
                    for (int c = 0; c < 4; ++c) {
                        w[r][c] = to_float(four.x[c]);
                        dW[r][c] = 0;
                    }
                }
                warp_barrier();
                copy_W(tile + kLanesCols);
            }
            const bool last = b0 + kLanesTasks >= batch;
            copy_vectors(last ? tile + kLanesCols : tile, last ? 0 : b0 + kLanesTasks, buffer ^ 1);
            commit_copies();

            for (int half = 0; half < kLanesTasks && b0 + half < batch && 8 * warp < rows; half += 4) {
                // Of the sums of dp that this lane ends with. The same thread has written what it adds to.
                const int64_t my_b = b0 + half + lane % 4;
                const int my_row = 8 * warp + lane / 4;
                float* dp = nullptr;
                if (wants_dp && my_b < batch && my_row < rows)
                    dp = table.dp + my_b * table.p_width + scale.p_offset + strip.first + my_row;
                const float before = dp != nullptr && tile > 0 ? *dp : 0;

                float dp_of[4] = {};
#pragma unroll
                for (int u = 0; u < 4; ++u) {
                    const int t = half + u;
                    float grad[Grads::kRows][Grads::kCols];
                    for (int n = 0; n < Grads::kRows; ++n)
                        for (int m = 0; m < Grads::kCols; ++m) grad[n][m] = to_float(G[u % kAhead][n].x[m]);
                    grads.take(G[u % kAhead]);
                    if (b0 + t >= batch) continue;

                    const Pack<float, 4> q = load<float, 4>(&shared.q[buffer][t][4 * lane]);
                    const Pack<float, 4> p[2] = {load<float, 4>(&shared.p[buffer][t][row_of(0)]),
                                                 load<float, 4>(&shared.p[buffer][t][row_of(4)])};
                    float sum_dp[8] = {};
                    Pack<float, 4> dq = {};
                    for (int n = 0; n < 8 / g; ++n) {
                        float U[4];
                        for (int c = 0; c < 4; ++c) U[c] = grad[n][c / g] * q.x[c];
                        if (wants_dW)
                            for (int r = n * g; r < n * g + g; ++r)
                                for (int c = 0; c < 4; ++c) dW[r][c] += p[r / 4].x[r % 4] * U[c];
                        if (wants_dp)
                            for (int r = n * g; r < n * g + g; ++r)
                                for (int c = 0; c < 4; ++c) sum_dp[r] += U[c] * w[r][c];
                        if (wants_dq) {
                            float T[4] = {};
                            for (int r = n * g; r < n * g + g; ++r)
                                for (int c = 0; c < 4; ++c) T[c] += p[r / 4].x[r % 4] * w[r][c];
                            for (int c = 0; c < 4; ++c) dq.x[c] += grad[n][c / g] * T[c];
                        }
                    }
                    if (wants_dq) store<float, 4>(&shared.dq[t][warp][4 * lane], dq);
                    if (wants_dp) {
                        for (int r = 0; r < 4; ++r) sum_dp[r] += shuffle_xor(sum_dp[r + 4], 16);
                        for (int r = 0; r < 2; ++r) sum_dp[r] = halve(sum_dp[r], sum_dp[r + 2], 8);
                        dp_of[u] = halve(sum_dp[0], sum_dp[1], 4);
                    }
                }
                if (wants_dp) {
                    for (int u = 0; u < 2; ++u) dp_of[u] = halve(dp_of[u], dp_of[u + 2], 2);
                    const float sum = halve(dp_of[0], dp_of[1], 1);
                    if (dp != nullptr) *dp = before + sum;
                }
            }

            if (wants_dq) {
                barrier();  // all shares are there: a task for each warp
                if (b0 + warp < batch && col < cols) {
                    Pack<float, 4> sum = load<float, 4>(&shared.dq[warp][0][4 * lane]);
                    for (int other = 1; 8 * other < rows; ++other) {
                        const Pack<float, 4> share = load<float, 4>(&shared.dq[warp][other][4 * lane]);
                        for (int c = 0; c < 4; ++c) sum.x[c] += share.x[c];
                    }
                    put_dq(table, strip, scale, b0 + warp, col, sum);
                }
            }
        }
        if (wants_dW && col < cols)
            for (int r = 0; r < 8; ++r)
                if (row_of(r) < rows)
                    put_dW<Weight>(table, strip.source, (strip.first + row_of(r)) * cols + col,
                                   {dW[r][0], dW[r][1], dW[r][2], dW[r][3]}, add_to_dW);
    }
    wait_copies<0>();  // none is left for the scale that comes next
}

}  // namespace projkern::cuda
