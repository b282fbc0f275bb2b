// The gradients of one tile for a block of tasks, in two passes, with i = m * col_group + c and lanes m.
//
// The first keeps the rows of W and dW in registers while b passes, so that each broadcast of p feeds T and dW; the
// second is a small product of U and W. Neither T nor U is ever stored: to multiply G and q again costs less than a
// store and the room in the first-level cache.
#pragma once

#include "operands.h"

namespace projkern::cpu::PROJKERN_TARGET {

// One block of batches [b, b + batches) of one tile.
struct Block {
    const float* w;  // [vector][c][a][lane]
    const float* q;  // [vector][c][b][lane], from the block's first b
    const float* p;  // [b][a]
    const float* g;
    int64_t g_batch, g_vector;  // floats from one b to the next, and from one vector to the next
    float* dw;
    float* dp;
    float* dq;
    int64_t batches, vectors;
    bool first;  // no block has written to dw yet
};

// Rows a .. a + Rows and planes c .. c + Planes of vector v, all b of the block.
template <int Rows, int Planes, bool WantDW, bool WantDQ>
inline void first_pass(const Block& k, const Shape& shape, int64_t v, int64_t c, int64_t a) {
    const int64_t row_group = shape.row_group, vc = v * shape.col_group + c;
    const int64_t w_plane = row_group * kLanes, q_plane = shape.batch * kLanes;
    const float* w = k.w + vc * w_plane + a * kLanes;
    const float* q = k.q + vc * q_plane;
    const float* g = k.g + v * k.g_vector;
    const float* p = k.p + a;
    float* dw = k.dw + vc * w_plane + a * kLanes;
    float* dq = k.dq + vc * q_plane;

    Vec x[Planes][Rows], dx[Planes][Rows];
    for (int j = 0; j < Planes; ++j)
        for (int i = 0; i < Rows; ++i) {
            if (WantDQ) x[j][i] = load(w + j * w_plane + i * kLanes);
            if (WantDW) dx[j][i] = k.first ? Vec{} : load(dw + j * w_plane + i * kLanes);
        }
    for (int64_t b = 0; b < k.batches; ++b) {
        const Vec grad = load(g);
        Vec ub[Planes], t[Planes] = {};
        for (int j = 0; j < Planes; ++j) ub[j] = grad * load(q + j * q_plane);
        for (int i = 0; i < Rows; ++i) {
            const float scale = p[i];
            for (int j = 0; j < Planes; ++j) {
                if (WantDW) dx[j][i] += scale * ub[j];
                if (WantDQ) t[j] += scale * x[j][i];
            }
        }
        if (WantDQ)
            for (int j = 0; j < Planes; ++j) store(dq + j * q_plane, load(dq + j * q_plane) + grad * t[j]);
        g += k.g_batch, q += kLanes, dq += kLanes, p += row_group;
    }
    if (WantDW)
        for (int j = 0; j < Planes; ++j)
            for (int i = 0; i < Rows; ++i) store(dw + j * w_plane + i * kLanes, dx[j][i]);
}

// W and dW of this many rows fill the registers; of fewer, two planes share the broadcasts of p.
constexpr int kMostRows = kRegisters / 4;

template <int Rows, bool WantDW, bool WantDQ>
inline void first_pass(const Block& k, const Shape& shape, int64_t v, int64_t a) {
    int64_t c = 0;
    if constexpr (2 * Rows <= kMostRows)
        for (; c + 2 <= shape.col_group; c += 2) first_pass<Rows, 2, WantDW, WantDQ>(k, shape, v, c, a);
    for (; c < shape.col_group; ++c) first_pass<Rows, 1, WantDW, WantDQ>(k, shape, v, c, a);
}

template <bool WantDW, bool WantDQ, class Meanwhile>
void first_pass(const Block& k, const Shape& shape, const Meanwhile& meanwhile) {
    const int64_t group = shape.row_group;
    for (int64_t v = 0; v < k.vectors; ++v) {
        int64_t a = 0;
        for (; a + kMostRows <= group; a += kMostRows) first_pass<kMostRows, WantDW, WantDQ>(k, shape, v, a);
        if (group - a >= 4) first_pass<4, WantDW, WantDQ>(k, shape, v, a), a += 4;
        if (group - a >= 2) first_pass<2, WantDW, WantDQ>(k, shape, v, a), a += 2;
        if (group - a >= 1) first_pass<1, WantDW, WantDQ>(k, shape, v, a);
        meanwhile(v);
    }
}

// Sums that are kept in registers.
constexpr int kSums = kRegisters / 2;

// dp of Batches b and Rows a, over all i of the tile.
template <int Batches, int Rows>
void second_pass(const Block& k, const Shape& shape, int64_t b, int64_t a) {
    static_assert(Batches * Rows <= kSums);
    const int64_t row_group = shape.row_group;
    const float* g = k.g + b * k.g_batch;
    const float* q = k.q + b * kLanes;
    const float* w = k.w + a * kLanes;
    Vec sum[Batches][Rows] = {};
    for (int64_t v = 0; v < k.vectors; ++v) {
        Vec grad[Batches];
        for (int i = 0; i < Batches; ++i) grad[i] = load(g + i * k.g_batch);
        for (int64_t c = 0; c < shape.col_group; ++c) {
            Vec x[Rows];
            for (int j = 0; j < Rows; ++j) x[j] = load(w + j * kLanes);
            for (int i = 0; i < Batches; ++i) {
                const Vec ub = grad[i] * load(q + i * kLanes);
                for (int j = 0; j < Rows; ++j) sum[i][j] += ub * x[j];
            }
            q += shape.batch * kLanes, w += row_group * kLanes;
        }
        g += k.g_vector;
    }
    Vec flat[kSums + kLanes - 1] = {};
    for (int j = 0; j < Batches * Rows; ++j) flat[j] = sum[j / Rows][j % Rows];
    for (int first = 0; first < Batches * Rows; first += kLanes) {
        float total[kLanes];
        store(total, sum_each(flat + first));
        for (int j = first; j < std::min(first + kLanes, Batches * Rows); ++j)
            k.dp[(b + j / Rows) * row_group + a + j % Rows] += total[j - first];
    }
}

template <int Rows>
void second_pass(const Block& k, const Shape& shape, int64_t a) {
    int64_t b = 0;
    if constexpr (8 * Rows <= kSums)
        for (; b + 8 <= k.batches; b += 8) second_pass<8, Rows>(k, shape, b, a);
    if constexpr (4 * Rows <= kSums)
        for (; b + 4 <= k.batches; b += 4) second_pass<4, Rows>(k, shape, b, a);
    if constexpr (2 * Rows <= kSums)
        for (; b + 2 <= k.batches; b += 2) second_pass<2, Rows>(k, shape, b, a);
    for (; b < k.batches; ++b) second_pass<1, Rows>(k, shape, b, a);
}

inline void second_pass(const Block& k, const Shape& shape) {
    const int64_t group = shape.row_group;
    int64_t a = 0;
    for (; a + kMostRows <= group; a += kMostRows) second_pass<kMostRows>(k, shape, a);
    if (group - a >= 4) second_pass<4>(k, shape, a), a += 4;
    if (group - a >= 2) second_pass<2>(k, shape, a), a += 2;
    if (group - a >= 1) second_pass<1>(k, shape, a);
}

struct Wanted {
    bool dw, dp, dq;
};

// Calls meanwhile(v) after each vector v of a pass for dW or dq.
template <class Meanwhile>
void project_block(const Block& k, const Shape& shape, const Wanted& wanted, const Meanwhile& meanwhile) {
    if (wanted.dw && wanted.dq) {
        first_pass<true, true>(k, shape, meanwhile);
    } else if (wanted.dw) {
        first_pass<true, false>(k, shape, meanwhile);
    } else if (wanted.dq) {
        first_pass<false, true>(k, shape, meanwhile);
    }
    if (wanted.dp) second_pass(k, shape);
}

}  // namespace projkern::cpu::PROJKERN_TARGET
