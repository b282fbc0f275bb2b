// Backward on the tensor cores, for row group = column group = 2, 4 or 8, 16-byte accesses and G in bfloat16.
//
//     dp[b,j] = sum over m of G[b,n,m] V[b,j,m]      V[b,j,m] = sum over the columns i of m of q[b,i] W[j,i]
//     dq[b,i] = sum over n of G[b,n,m] T[b,n,i]      T[b,n,i] = sum over the rows j of n of p[b,j] W[j,i]
//     dW[j,i] = sum over b of S[b,j,m] q[b,i]        S[b,j,m] = p[b,j] G[b,n,m]
//
// V, T and the sum over b are matrix products; G comes in on the ordinary cores, in float32 for dp and dq. The tensor
// cores multiply bfloat16, so each float32 is split into two, hi + lo, and all products but lo lo are made: about
// sixteen bits of each term. For V and T the parts lie along the sum, so that no product is with a zero (g = 4:
// sixteen places are [hi, lo, hi, lo] of q against [hi, hi, lo, lo] of W). S is split without leaving bfloat16:
// of a product of two bfloat16 rounded to one, the rest is again one.
//
// A tile is 64 rows by 64 columns, and a step takes 16 tasks of it. For dp and dq half of the warps take 16 rows
// each, the others 16 columns, with the same code: their part of W stays in registers for all tasks. For dW a warp
// takes 16 rows by 32 columns. p and q are split once a step, by all warps, and laid out in shared memory as the
// products read them. W and G of what comes next are copied during the arithmetic. Every sum has one order.
#pragma once

#include <type_traits>

#include "gradients.cuh"
#include "strip.cuh"

namespace projkern::cuda {

constexpr int kMatrixCols = 64;
constexpr int kMatrixTasks = 16;
constexpr uint32_t kBothSigns = 0x80008000u;  // of a pair; the pair -0, -0

// The thread's index, without a sign: a division is then a shift. Which groups save registers by asking for it afresh
// was found by trying: all kernels fit without spilling, on every architecture that is built for.
template <bool recompute>
PROJKERN_DEVICE uint32_t own_index() {
    return recompute ? opaque(thread_index()) : thread_index();
}

// Where a thread is, asked for each part of a step: registers are scarce. Warps 0 to 3 have 16 rows of the tile each,
// p and dp, warps 4 to 7 have 16 columns each, q and dq.
struct Place {
    int lane, i, j;  // i = lane / 4, j = lane % 4
    int first;       // of the 16
    bool of_rows;
};

template <int g>
PROJKERN_DEVICE Place find_place() {
    const uint32_t thread = own_index<g != 8>(), lane = thread % 32;
    return {int(lane), int(lane / 4), int(lane % 4), int(thread / 32 % 4 * 16), thread < kThreads / 2};
}

struct SplitPair {
    uint32_t hi, lo;
};

PROJKERN_DEVICE float first_of(uint32_t pair) { return to_float(Bfloat16{uint16_t(pair)}); }
PROJKERN_DEVICE float second_of(uint32_t pair) { return to_float(Bfloat16{uint16_t(pair >> 16)}); }
PROJKERN_DEVICE float element_of(uint32_t pair, int place) { return place == 0 ? first_of(pair) : second_of(pair); }
PROJKERN_DEVICE uint32_t firsts(uint32_t a, uint32_t b) { return choose_bytes(a, b, 0x5410); }
PROJKERN_DEVICE uint32_t seconds(uint32_t a, uint32_t b) { return choose_bytes(a, b, 0x7632); }

template <int n>
PROJKERN_DEVICE Pack<uint32_t, n> load_pairs(const Bfloat16* address) {
    return load<uint32_t, n>(reinterpret_cast<const uint32_t*>(address));
}

PROJKERN_DEVICE SplitPair split(float first, float second) {
    const uint32_t hi = pack_bfloat16(first, second);
    return {hi, pack_bfloat16(first - first_of(hi), second - second_of(hi))};
}

// p and q: 64 elements of 16 tasks, by octets of elements, each 128 words.
struct Operands {
    uint32_t along[kStripRows / 8][128];   // A of the products over elements: see stage
    uint32_t across[kStripRows / 8][128];  // for those over tasks: a lane's {hi, hi of tasks 8.., lo, lo of tasks 8..}
};

// G of a step. Rows of 64/g are moved by 16 bytes, and for g = 2 their pieces exchanged, against bank conflicts.
template <int g>
struct GradTile {
    static constexpr int kWidth = 64 / g, kTask = kWidth * kWidth + 8;
    Bfloat16 x[kMatrixTasks * kTask];

    static PROJKERN_DEVICE int place(int t, int n, int m) {
        return t * kTask + n * kWidth + (g == 2 ? m ^ (n / 2 % 4 * 8) : m);
    }
};

// What the block works on, kept where it takes no registers.
struct Job {
    int source, projection;  // in the table
    int strip, first, end;
    const float* vector[2];  // q from the first column on, p from the strip's first row
    int64_t width[2];        // from one task to the next
    int turn;                // which of its two buffers G has in this step

    PROJKERN_DEVICE Strip strip_of(const Table& table) const { return {table.source[source], strip, first, end}; }
    PROJKERN_DEVICE const Projection& projection_of(const Table& table) const { return table.projection[projection]; }
};

template <int g, class Weight>
struct MatrixShared {
    static constexpr int kPitch = kMatrixCols + 16 / sizeof(Weight);
    Weight W[kStripRows][kPitch];
    Operands p, q;
    GradTile<g> G[2];  // this step's and the next's
    Job job;
};

// A warp's part of W, as B of the products over elements. `x` are the 16 rows (or columns) of the warp in two halves:
// in half o element t is 4 (t / 2) + 2 o + t % 2, so that a lane ends with four neighbours. `k` are the 64 columns (or
// rows) that are summed, in groups. multiply gives V (or T) of one group k.
template <int g, class Weight>
class Fragments {
  public:
    // The element (x, k) of the warp's part is at from[x * x_step + k * k_step].
    template <int x_step, int k_step>
    PROJKERN_DEVICE void read(const Weight* from, int i, int j) {
#pragma unroll
        for (int o = 0; o < 2; ++o)
#pragma unroll
            for (int group = 0; group < 64 / g; ++group) {
                const Weight* at = from + (4 * (i / 2) + 2 * o + i % 2) * x_step + (group * g + 2 * j % g) * k_step;
                const SplitPair pair = split(to_float(at[0]), to_float(at[k_step]));
                if (g > 2)
                    hi_[o][group] = pair.hi;
                else
                    hi_[o][group] = j < 2 ? pair.hi : pair.lo;
                if (g > 2 && !kExact) lo_[o][group] = pair.lo;
            }
    }

    // a: {hi, lo} of p or q, as Operands::along has it.
    PROJKERN_DEVICE void multiply(float (&d)[4], const uint32_t* a, int o, int group) const {
        for (int e = 0; e < 4; ++e) d[e] = 0;
        multiply_k8(d, {a[0], a[1]}, hi_[o][group]);
        if (g == 8) multiply_k8(d, {a[2], a[3]}, hi_[o][group]);
        if (g > 2 && !kExact) multiply_k8(d, {a[0], a[1]}, lo_[o][group]);
    }

  private:
    static constexpr bool kExact = std::is_same_v<Weight, Bfloat16>;  // there is no lo then
    uint32_t hi_[2][64 / g], lo_[2][64 / g];
};

// Splits 16 of the 64 elements of p or q for all tasks of a step, and lays them out. value[h][o] holds elements
// 8 o + 2 j and the next of task i + 8 h. In `across`, interleaved, half o has elements 8 (t % 2) + t / 2 * 2 + o:
// neighbours in both halves, of one group for any g.
template <int g>
PROJKERN_DEVICE void lay_out(Operands& operands, const Pack<float, 2> (&value)[2][2], const Place& place) {
    const int lane = place.lane, i = place.i, j = place.j, octet = place.first / 8;
    const bool interleaved = place.of_rows;
    SplitPair pair[2][2];
    for (int h = 0; h < 2; ++h)
        for (int o = 0; o < 2; ++o) pair[h][o] = split(value[h][o].x[0], value[h][o].x[1]);
    for (int o = 0; o < 2; ++o) {
        uint32_t* along = operands.along[octet + o];
        const Pack<uint32_t, 2> hi{pair[0][o].hi, pair[1][o].hi}, lo{pair[0][o].lo, pair[1][o].lo};
        if (g == 8) {  // a lane's {hi, hi of tasks 8.., lo, lo of tasks 8..}
            store<uint32_t, 4>(along + 4 * lane, {hi.x[0], hi.x[1], lo.x[0], lo.x[1]});
        } else if (g == 4) {  // of each group {hi, hi of tasks 8..} in lanes j < 2, {lo, lo of tasks 8..} in the others
            store<uint32_t, 2>(along + 4 * (4 * i + j % 2) + 2 * (j / 2), hi);
            store<uint32_t, 2>(along + 4 * (4 * i + j % 2 + 2) + 2 * (j / 2), lo);
        } else {  // the same for even and odd j, and two lanes read each
            store<uint32_t, 2>(along + 64 * (j / 2) + 4 * (2 * i) + 2 * (j % 2), hi);
            store<uint32_t, 2>(along + 64 * (j / 2) + 4 * (2 * i + 1) + 2 * (j % 2), lo);
        }
    }
    uint32_t part[2][4];
    for (int e = 0; e < 4; ++e) {
        const uint32_t a = e < 2 ? pair[e][0].hi : pair[e - 2][0].lo, b = e < 2 ? pair[e][1].hi : pair[e - 2][1].lo;
        part[0][e] = transpose_8x8(interleaved ? firsts(a, b) : a);
        part[1][e] = transpose_8x8(interleaved ? seconds(a, b) : b);
    }
    for (int o = 0; o < 2; ++o)
        store<uint32_t, 4>(operands.across[octet + o] + 4 * lane, {part[o][0], part[o][1], part[o][2], part[o][3]});
}

// sum[h][e] = sum over k of G (V or T), of task i + 8 h and element 4 j + e of the warp's 16.
template <int g, bool of_rows, class Weight>
PROJKERN_DEVICE void contract(Pack<float, 4> (&sum)[2], const Fragments<g, Weight>& W, const Operands& operands,
                              const GradTile<g>& G) {
    constexpr int kHalves = g == 2 ? 2 : 1;  // of a lane's four elements, in groups of their own
    constexpr int kAtOnce = g == 8 ? 1 : 2;  // groups of k in 16 bytes of `along`
    const Place place = find_place<g>();
    const int lane = place.lane, i = place.i, j = place.j, x = (place.first + 4 * j) / g;
    const int at = g == 2 ? 4 * (2 * i + j % 2) : 4 * lane;
    sum[0] = sum[1] = {};
#pragma unroll
    for (int four = 0; four < 64 / g; four += 4) {
        Pack<uint32_t, 2> row[2][kHalves];  // of G: four groups of columns
        if (of_rows)
            for (int h = 0; h < 2; ++h)
                for (int o = 0; o < kHalves; ++o) row[h][o] = load_pairs<2>(&G.x[G.place(i + 8 * h, x + o, four)]);
        Pack<uint32_t, 4> a;
#pragma unroll
        for (int k = four; k < four + 4; ++k) {
            hold_later_loads();
            if (k % kAtOnce == 0) a = load<uint32_t, 4>(operands.along[k * g / 8] + (g == 2 ? k / 2 % 2 * 64 : 0) + at);
            float grad[2][2];
            for (int h = 0; h < 2; ++h)
                for (int o = 0; o < 2; ++o) {
                    if (of_rows)
                        grad[h][o] = element_of(row[h][o % kHalves].x[k % 4 / 2], k % 2);
                    else if (g == 2)
                        grad[h][o] = element_of(load_pairs<1>(&G.x[G.place(i + 8 * h, k, x)]).x[0], o);
                    else
                        grad[h][o] = to_float(G.x[G.place(i + 8 * h, k, x)]);
                }
            for (int o = 0; o < 2; ++o) {
                float d[4];
                W.multiply(d, a.x + k % kAtOnce * 2, o, k);
                for (int h = 0; h < 2; ++h)
                    for (int e = 0; e < 2; ++e) sum[h].x[2 * o + e] += grad[h][o] * d[2 * h + e];
            }
        }
    }
}

// dW of 16 rows and 32 columns: d[octet] has columns 2 j and 2 j + 1 of rows 8 (i % 2) + i / 2 * 2 and the next.
template <int g>
PROJKERN_DEVICE void accumulate_dW(float (&d)[4][4], const Operands& p, const Operands& q, const GradTile<g>& G) {
    const Place place = find_place<g>();
    const int lane = place.lane, i = place.i, j = place.j;
    const int row = place.first, col = place.of_rows ? 0 : 32, n = (row + 8 * (i % 2) + i / 2 * 2) / g;
    const Pack<uint32_t, 4> p_of[2] = {load<uint32_t, 4>(p.across[row / 8] + 4 * lane),
                                       load<uint32_t, 4>(p.across[row / 8 + 1] + 4 * lane)};
#pragma unroll
    for (int two = 0; two < 32 / g; two += 2) {
        hold_later_loads();
        uint32_t grads[4];  // two column groups, of tasks 2 j, 2 j + 1, and these + 8
        for (int t = 0; t < 4; ++t)
            grads[t] = load_pairs<1>(&G.x[G.place(2 * j + t % 2 + t / 2 * 8, n, col / g + two)]).x[0];
#pragma unroll
        for (int m = two; m < two + 2; ++m) {
            const int octet = m * g / 8;
            uint32_t S_hi[4], minus_S_lo[4];  // as A: {half 0 of the rows, half 1} for tasks 0.., then for tasks 8..
            for (int h = 0; h < 2; ++h) {
                const uint32_t a = grads[2 * h], b = grads[2 * h + 1];
                const uint32_t grad = m % 2 == 0 ? firsts(a, b) : seconds(a, b);
                const uint32_t minus_grad = grad ^ kBothSigns;
                for (int o = 0; o < 2; ++o) {
                    const uint32_t S = multiply_add_bfloat16(grad, p_of[o].x[h], kBothSigns);
                    const uint32_t minus_rest = multiply_add_bfloat16(minus_grad, p_of[o].x[h], S);
                    S_hi[2 * h + o] = S;
                    minus_S_lo[2 * h + o] = multiply_add_bfloat16(minus_grad, p_of[o].x[2 + h], minus_rest);
                }
            }
            Pack<uint32_t, 4> part = load<uint32_t, 4>(q.across[col / 8 + octet] + 4 * lane);
            if (g < 8 && i / g != m * g % 8 / g) part = {};  // the octet's columns that are not of m
            multiply_k16(d[octet], S_hi, {part.x[2], part.x[3]});
            multiply_k16(d[octet], S_hi, {part.x[0], part.x[1]});
            multiply_k16(d[octet], minus_S_lo, {part.x[0] ^ kBothSigns, part.x[1] ^ kBothSigns});
        }
    }
}

// Neighbouring lanes exchange halves of two octets, so that each has four neighbours of one to store.
template <int g, class Weight>
PROJKERN_DEVICE void put_dW_tile(const Table& table, const Strip& strip, const Projection& projection,
                                 const float (&d)[4][4], int tile) {
    const Place place = find_place<g>();
    const int i = place.i, j = place.j, row = place.first + 8 * (i % 2) + i / 2 * 2,
              col = tile + (place.of_rows ? 0 : 32);
    const Source& source = strip.source;
    for (int octet = 0; octet < 4; octet += 2)
        for (int o = 0; o < 2; ++o) {
            float mine[2], others[2];
            for (int e = 0; e < 2; ++e) {
                mine[e] = j % 2 == 0 ? d[octet][2 * o + e] : d[octet + 1][2 * o + e];
                others[e] = shuffle_xor(j % 2 == 0 ? d[octet + 1][2 * o + e] : d[octet][2 * o + e], 1);
            }
            const int c = col + 8 * (octet + j % 2) + j / 2 * 4;
            const Pack<float, 4> four = j % 2 == 0 ? Pack<float, 4>{mine[0], mine[1], others[0], others[1]}
                                                   : Pack<float, 4>{others[0], others[1], mine[0], mine[1]};
            if (row + o < strip.rows() && c < source.cols)
                put_dW<Weight>(table, source, int64_t(strip.first + row + o) * source.cols + c, four,
                               projection.adds_to_dW);
        }
}

// The elements of p or q that lay_out takes; zeros beyond their end.
PROJKERN_DEVICE void load_values(Pack<float, 2> (&value)[2][2], const Table& table, const Job& job, int tile, int b0,
                                 const Place& place) {
    const Strip strip = job.strip_of(table);
    const float* from = job.vector[place.of_rows];
    const int64_t width = job.width[place.of_rows];
    const int elements = place.of_rows ? strip.rows() : strip.source.cols;
    for (int h = 0; h < 2; ++h)
        for (int o = 0; o < 2; ++o) {
            const int b = b0 + place.i + 8 * h, x = (place.of_rows ? 0 : tile) + place.first + 8 * o + 2 * place.j;
            value[h][o] = {};
            if (b < int(table.batch) && x < elements) value[h][o] = load<float, 2>(from + b * width + x);
        }
}

template <int g>
PROJKERN_DEVICE void put_dp_sums(const Table& table, const Strip& strip, const Projection& projection,
                                 const Pack<float, 4> (&sum)[2], int tile, int b0) {
    const Place place = find_place<g>();
    const int row = place.first + 4 * place.j;
    for (int h = 0; h < 2; ++h) {
        const int b = b0 + place.i + 8 * h;
        if (b < int(table.batch) && row < strip.rows())  // what is there was written by this thread
            put_four(table.dp + b * table.p_width + projection.p_offset + strip.first + row, sum[h], tile > 0);
    }
}

template <int g>
PROJKERN_DEVICE void put_dq_sums(const Table& table, const Strip& strip, const Projection& projection,
                                 const Pack<float, 4> (&sum)[2], int tile, int b0) {
    const Place place = find_place<g>();
    const int col = tile + place.first + 4 * place.j;
    for (int h = 0; h < 2; ++h) {
        const int b = b0 + place.i + 8 * h;
        if (b < int(table.batch) && col < strip.source.cols) put_dq(table, strip, projection, b, col, sum[h]);
    }
}

template <int g, class Weight>
PROJKERN_DEVICE void backward_matrix(const Table& table, const Strip& strip, const Projection& projection) {
    using Shared = MatrixShared<g, Weight>;
    auto& shared = *reinterpret_cast<Shared*>(shared_memory());
    const int batch = int(table.batch);
    if (thread_index() == 0)
        shared.job = {int(&strip.source - table.source),
                      int(&projection - table.projection),
                      strip.index,
                      strip.first,
                      strip.end,
                      {table.q + projection.q_offset, table.p + projection.p_offset + strip.first},
                      {table.q_width, table.p_width},
                      1};
    barrier();
    Job& job = shared.job;

    const auto copy_W = [&](int tile) {  // each thread copies at one column
        constexpr int kAtOnce = 16 / sizeof(Weight), kChunks = kMatrixCols / kAtOnce, kRows = kThreads / kChunks;
        const Strip strip = job.strip_of(table);
        const uint32_t thread = own_index<g != 4>(), row = thread / kChunks, col = thread % kChunks * kAtOnce;
        const int64_t cols = strip.source.cols;
        const Weight* from = static_cast<const Weight*>(strip.source.W) + (strip.first + int(row)) * cols + tile + col;
        const bool wanted = (table.dp != nullptr || table.dq != nullptr) && tile + col < cols;
        for (int more = 0; more < kStripRows; more += kRows, from += kRows * cols) {
            const bool valid = wanted && int(row) + more < strip.rows();
            copy_async(&shared.W[row + more][col], valid ? from : strip.source.W, valid);
        }
    };
    const auto copy_G = [&](int tile, int b0, int buffer) {  // each thread copies at one place of some tasks
        constexpr int kWidth = 64 / g, kChunks = kWidth / 8, kTasks = kThreads / (kWidth * kChunks);
        const Strip strip = job.strip_of(table);
        const uint32_t thread = own_index<g != 4>();
        const int t = thread / (kWidth * kChunks), n = thread / kChunks % kWidth, m = thread % kChunks * 8;
        const int out_cols = strip.source.cols / g;
        const int64_t task = int64_t(strip.source.rows / g) * out_cols;
        const Bfloat16* G = static_cast<const Bfloat16*>(job.projection_of(table).grad);
        const Bfloat16* from = G + (b0 + t) * task + int64_t(strip.first / g + n) * out_cols + tile / g + m;
        const bool wanted = n * g < strip.rows() && tile / g + m < out_cols;
        for (int more = 0; more < kMatrixTasks; more += kTasks, from += kTasks * task) {
            const bool valid = wanted && b0 + t + more < batch;
            if (t + more < kMatrixTasks)
                copy_async(&shared.G[buffer].x[GradTile<g>::place(t + more, n, m)], valid ? from : G, valid);
        }
    };

    copy_W(0);
    copy_G(0, 0, 0);
    commit_copies();

    Fragments<g, Weight> part_of_W;
    for (int tile = 0; tile < job.strip_of(table).source.cols; tile += kMatrixCols) {
        float dW[4][4] = {};
        for (int b0 = 0; b0 < batch; b0 += kMatrixTasks) {
            const Place place = find_place<g>();
            Pack<float, 2> value[2][2];
            load_values(value, table, job, tile, b0, place);
            wait_copies<0>();
            barrier();  // W and G have arrived, and the last step has read p and q
            lay_out<g>(place.of_rows ? shared.p : shared.q, value, place);
            if (b0 == 0 && place.of_rows)
                part_of_W.template read<Shared::kPitch, 1>(shared.W[place.first], place.i, place.j);
            if (b0 == 0 && !place.of_rows)
                part_of_W.template read<1, Shared::kPitch>(&shared.W[0][place.first], place.i, place.j);
            if (thread_index() == 0) job.turn ^= 1;
            barrier();  // p and q are there, and W is free for the next tile
            const bool last = b0 + kMatrixTasks >= batch;
            copy_G(last ? tile + kMatrixCols : tile, last ? 0 : b0 + kMatrixTasks, 1 - job.turn);
            if (b0 == 0) copy_W(tile + kMatrixCols);
            commit_copies();

            Pack<float, 4> sum[2];
            if (table.dp != nullptr && find_place<g>().of_rows) {
                contract<g, true>(sum, part_of_W, shared.q, shared.G[job.turn]);
                put_dp_sums<g>(table, job.strip_of(table), job.projection_of(table), sum, tile, b0);
            }
            if (table.dq != nullptr && !find_place<g>().of_rows) {
                contract<g, false>(sum, part_of_W, shared.p, shared.G[job.turn]);
                put_dq_sums<g>(table, job.strip_of(table), job.projection_of(table), sum, tile, b0);
            }
            if (job.strip_of(table).source.dW != nullptr) accumulate_dW<g>(dW, shared.p, shared.q, shared.G[job.turn]);
        }
        if (job.strip_of(table).source.dW != nullptr)
            put_dW_tile<g, Weight>(table, job.strip_of(table), job.projection_of(table), dW, tile);
    }
    wait_copies<0>();
}

}  // namespace projkern::cuda
