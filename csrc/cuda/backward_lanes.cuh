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

#include <type_traits>

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
    static constexpr bool kPairs = kCols * sizeof(Grad) == 4 && kCols == 2;  // of bfloat16, kept as one word
    using Piece = std::conditional_t<kPairs, Pack<uint32_t, 1>, Pack<Grad, kCols>>;
    using Block = Piece[kRows];

    static PROJKERN_DEVICE float element(const Piece& piece, int m) {
        if constexpr (kPairs)
            return to_float(Bfloat16{uint16_t(m == 0 ? piece.x[0] : piece.x[0] >> 16)});
        else
            return to_float(piece.x[m]);
    }

    // Tasks come in fours, with zeros for those that are missing in the last; `swapped` as in backward_lanes.
    PROJKERN_DEVICE GradStream(const Table& table, const Strip& strip, const Projection& projection, bool swapped)
        : cols_(strip.source.cols), batch_(int(table.batch)), col_(4 * lane_index()) {
        const int row = 8 * warp_index() + 4 * swapped;
        first_valid_ = row < strip.rows();
        second_valid_ = (row ^ 4) < strip.rows();
        const int64_t out_cols = cols_ / g;
        row_ = out_cols;
        second_ = int(swapped ? -out_cols * (4 / g) : out_cols * (4 / g));
        task_ = strip.source.rows / g * out_cols;
        next_ = static_cast<const Grad*>(projection.grad) + (strip.first / g + row / g) * out_cols + col_ / g;
    }

    PROJKERN_DEVICE void take(Block& block) {
        const bool valid = b_ < batch_ && col_ < cols_;
        for (int n = 0; n < kRows; ++n) {
            const bool second = n * g >= 4;
            block[n] = {};
            if (valid && (second ? second_valid_ : first_valid_))
                block[n] =
                    *reinterpret_cast<const Piece*>(next_ + (second ? n - 4 / g : n) * row_ + (second ? second_ : 0));
        }
        next_ += task_;
        if (++b_ >= batch_ && b_ % 4 == 0) {
            next_ += kLanesCols / g - b_ * task_;
            col_ += kLanesCols;
            b_ = 0;
        }
    }

  private:
    int cols_, batch_, col_, b_ = 0;
    int row_, second_;  // distances in elements: of a row, and of the half of the rows that comes second
    int64_t task_;
    const Grad* next_;
    bool first_valid_, second_valid_;
};

template <int g, class Weight, class Grad>
PROJKERN_DEVICE void backward_lanes(const Table& table, const Strip& strip, const Projection& projection) {
    using Grads = GradStream<g, Grad>;
    constexpr int kAhead = g > 2 ? 2 : 1;  // tasks whose G is under way
    constexpr int kAtOnce = 16 / sizeof(Weight);
    auto& shared = *reinterpret_cast<LanesShared<Weight>*>(shared_memory());
    const int warp = warp_index(), lane = lane_index(), rows = strip.rows();
    const int cols = strip.source.cols, batch = int(table.batch);
    const Weight* W = static_cast<const Weight*>(strip.source.W) + int64_t(strip.first) * cols;
    const bool wants_dW = strip.source.dW != nullptr, wants_dp = table.dp != nullptr, wants_dq = table.dq != nullptr;

    // Lanes 16 to 31 keep rows 4 to 7 first, so that the first halving of dp sends the same registers everywhere.
    const bool swapped = lane >= 16;
    const auto row_of = [](int r, int thread) { return thread / 32 * 8 + (r ^ (thread % 32 >= 16 ? 4 : 0)); };

    const auto copy_W = [&](int tile) {  // the warp's own rows
        const int thread = opaque(thread_index()), warp = thread / 32, lane = thread % 32;
        constexpr int kChunks = kLanesCols / kAtOnce;
#pragma unroll 1
        for (int i = lane; i < 8 * kChunks; i += 32) {
            const int row = 8 * warp + i / kChunks, col = i % kChunks * kAtOnce;
            const bool valid = row < rows && tile + col < cols;
            copy_async(&shared.W[row][col], valid ? W + int64_t(row) * cols + tile + col : W, valid);
        }
    };
    const auto copy_vectors = [&](int tile, int b0, int buffer) {
#pragma unroll 1
        for (int i = opaque(thread_index()); i < kLanesTasks * (kStripRows + kLanesCols) / 4; i += kThreads) {
            constexpr int kOfP = kLanesTasks * kStripRows / 4;
            const bool of_p = i < kOfP;
            const int width = of_p ? kStripRows : kLanesCols, place = 4 * (of_p ? i : i - kOfP);
            const int t = place / width, x = place % width;
            const bool valid = b0 + t < batch && (of_p ? x < rows : tile + x < cols);
            const float* p = table.p + (b0 + t) * table.p_width + projection.p_offset + strip.first + x;
            const float* q = table.q + (b0 + t) * table.q_width + projection.q_offset + tile + x;
            copy_async(of_p ? &shared.p[buffer][t][x] : &shared.q[buffer][t][x], valid ? of_p ? p : q : table.p, valid);
        }
    };

    Grads grads(table, strip, projection, swapped);
    typename Grads::Block G[kAhead];
    for (int i = 0; i < kAhead; ++i) grads.take(G[i]);
    copy_W(0);
    copy_vectors(0, 0, 0);
    commit_copies();

    int buffer = 0;
    for (int tile = 0; tile < cols; tile += kLanesCols) {
        float w[8][4], dW[8][4];
        for (int b0 = 0; b0 < batch; b0 += kLanesTasks, buffer ^= 1) {
            wait_copies<0>();
            barrier();  // the copies have arrived, and the last step's shares of dq are used
            if (b0 == 0) {
                const int thread = opaque(thread_index());
                for (int r = 0; r < 8; ++r) {
                    const Pack<Weight, 4> four = load<Weight, 4>(&shared.W[row_of(r, thread)][thread % 32 * 4]);
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

#pragma unroll 1
            for (int half = 0; half < kLanesTasks && b0 + half < batch && 8 * warp < rows; half += 4) {
                float dp_of[4];
#pragma unroll
                for (int u = 0; u < 4; ++u) {
                    const int t = half + u;
                    typename Grads::Block now;
                    for (int n = 0; n < Grads::kRows; ++n) now[n] = G[u % kAhead][n];
                    grads.take(G[u % kAhead]);
                    dp_of[u] = 0;
                    if (b0 + t >= batch) continue;

                    const Pack<float, 4> q = load<float, 4>(&shared.q[buffer][t][4 * lane]);
                    const Pack<float, 4> p[2] = {load<float, 4>(&shared.p[buffer][t][row_of(0, thread_index())]),
                                                 load<float, 4>(&shared.p[buffer][t][row_of(4, thread_index())])};
                    float sum_dp[8] = {};
                    Pack<float, 4> dq = {};
                    for (int n = 0; n < 8 / g; ++n) {
                        float grad[4], U[4];
                        for (int c = 0; c < 4; ++c) grad[c] = Grads::element(now[n], c / g);
                        for (int c = 0; c < 4; ++c) U[c] = grad[c] * q.x[c];
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
                            for (int c = 0; c < 4; ++c) dq.x[c] += grad[c] * T[c];
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
                    const float sum = halve(halve(dp_of[0], dp_of[1], 1), halve(dp_of[2], dp_of[3], 1), 2);
                    const int thread = opaque(thread_index()), b = b0 + half + thread % 4, row = thread / 4;
                    if (b < batch && row < rows) {
                        float* dp = table.dp + b * table.p_width + projection.p_offset + strip.first + row;
                        *dp = tile == 0 ? sum : *dp + sum;  // what is there was written by this thread
                    }
                }
            }

            if (wants_dq) {
                barrier();  // all shares are there: a task for each warp
                const int thread = opaque(thread_index()), t = thread / 32, i = thread % 32 * 4;
                if (b0 + t < batch && tile + i < cols) {
                    Pack<float, 4> sum = load<float, 4>(&shared.dq[t][0][i]);
                    for (int other = 1; 8 * other < rows; ++other) {
                        const Pack<float, 4> share = load<float, 4>(&shared.dq[t][other][i]);
                        for (int c = 0; c < 4; ++c) sum.x[c] += share.x[c];
                    }
                    put_dq(table, strip, projection, b0 + t, tile + i, sum);
                }
            }
        }
        const Source& source = again(table.source, strip.source);
        const bool add = again(table.projection, projection).adds_to_dW;
        const int thread = opaque(thread_index()), col = tile + thread % 32 * 4;
        if (wants_dW && col < source.cols)
            for (int r = 0; r < 8; ++r)
                if (row_of(r, thread) < rows)
                    put_dW<Weight>(table, source, int64_t(strip.first + row_of(r, thread)) * source.cols + col,
                                   {dW[r][0], dW[r][1], dW[r][2], dW[r][3]}, add);
    }
    wait_copies<0>();  // none is under way when the block ends
}

}  // namespace projkern::cuda
