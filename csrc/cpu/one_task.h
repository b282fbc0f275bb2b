// One row group for one task: W, dW and q are used as they lie. To turn W into planes would be of no use to a second.
//
// Lanes are i = m * group + c. The forward turns T into planes and adds them up as the blocks for many tasks do: to the
// same bits. The backward repeats G over its group.
#pragma once

#include "interleave.h"
#include "operands.h"

namespace projkern::cpu::PROJKERN_TARGET {

// Vectors of float32 that fill a line of the cache, or two of it.
constexpr int kLineVectors = kLanes >= 8 ? 2 : 4;

// Whether there are functions for a matrix here.
inline bool is_for_one_task(const Matrix& x, int64_t batch) {
    const int64_t g = x.row_group;
    return batch == 1 && x.col_group == g && (g == 1 || g == 2 || g == 4 || g == 8);
}

// What is read soon and later, from column i of a row group, whose rows are read together.
template <int Group, class In>
Ahead ahead_of(int64_t i, int64_t cols) {
    const auto at = [&](int64_t bytes) {
        const int64_t columns = bytes / int64_t(sizeof(In)) / Group;
        return columns + (i + columns) / cols * (Group - 1) * cols;
    };
    return {at(8 << 10), at(32 << 10)};
}

// One row of W_s. `q` has planes, [vector][c][lane].
template <int Group, class In, class Sink>
void project_row(const In* w, int64_t cols, const float* p, const float* q, const Sink& out) {
    for (int64_t i = 0; i < cols; i += Group * kLanes, q += Group * kLanes) {
        const bool full = cols - i >= Group * kLanes;
        const Ahead ahead = ahead_of<Group, In>(i, cols);
        Vec t[Group] = {}, planes[Group], sum{};
        for (int a = 0; a < Group; ++a) {
            const In* row = w + a * cols + i;
            for (int j = 0; j < Group; ++j) {
                if (starts_line<In>(j)) ahead.ask(row + j * kLanes);
                const Vec x = full ? load(row + j * kLanes)
                                   : load_part(row + j * kLanes, std::clamp<int64_t>(cols - i - j * kLanes, 0, kLanes));
                t[j] += p[a] * x;
            }
        }
        detail::split<Group>(t, planes, 1);
        for (int c = 0; c < Group; ++c) sum += planes[c] * load(q + c * kLanes);
        full ? out.full(i / Group, sum) : out.part(i / Group, sum, (cols - i) / Group);
    }
}

// A sink of dW where nothing wants it.
struct Drop {
    void full(int64_t, Vec) const {}
    void part(int64_t, Vec, int64_t) const {}
};

namespace detail {

// The gradients of one row of G, with q and dq as they lie; those of its row group of W go to `dw`, from element `at`.
template <int Group, class In, class Sink>
struct RowOfOne {
    const In* w;
    int64_t cols;
    const float *p, *q;
    const Sink& dw;
    int64_t at;
    float* dq;
    Vec dp[Group];

    // Vectors First, First + 1, ... of those that belong to `grad`, all there or cut off at the end of the row.
    template <bool Full, int First, int... J>
    void add(Vec grad, int64_t i, std::integer_sequence<int, J...>) {
        constexpr int kVectors = sizeof...(J);
        const Vec g[kVectors] = {repeat<Group, First + J>(grad)...};
        const Ahead ahead = ahead_of<Group, In>(i, cols);
        i += First * kLanes;
        const auto left = [&](int j) { return std::clamp<int64_t>(cols - i - j * kLanes, 0, kLanes); };
        const auto take = [&](const auto* x, int j) {
            return Full ? load(x + i + j * kLanes) : load_part(x + i + j * kLanes, left(j));
        };
        Vec u[kVectors], t[kVectors] = {};
        for (int j = 0; j < kVectors; ++j) u[j] = g[j] * take(q, j);
        for (int a = 0; a < Group; ++a) {
            const In* row = w + a * cols;
            for (int j = 0; j < kVectors; ++j) {
                if (starts_line<In>(First + j)) ahead.ask(row + i + j * kLanes);
                const Vec x = take(row, j), dx = p[a] * u[j];
                t[j] += p[a] * x;
                dp[a] += u[j] * x;
                const int64_t to = at + a * cols + i + j * kLanes;
                Full ? dw.full(to, dx) : dw.part(to, dx, left(j));
            }
        }
        for (int j = 0; j < kVectors; ++j) {
            float* to = dq + i + j * kLanes;
            Full ? store(to, load(to) + g[j] * t[j]) : store_part(to, load_part(to, left(j)) + g[j] * t[j], left(j));
        }
    }

    template <bool Full, int First = 0>
    void add(Vec grad, int64_t i) {
        constexpr int kVectors = std::min(kLineVectors, Group);
        add<Full, First>(grad, i, std::make_integer_sequence<int, kVectors>{});
        if constexpr (First + kVectors < Group) add<Full, First + kVectors>(grad, i);
    }
};

}  // namespace detail

// The gradients of one row of W_s. Those of W go to a sink, from element `at` on; dp is written, dq added to.
template <int Group, class In, class Grad, class Sink>
void project_row_backward(const In* w, int64_t cols, const float* p, const float* q, const Grad* g, const Sink& dw,
                          int64_t at, float* dp, float* dq) {
    detail::RowOfOne<Group, In, Sink> row{w, cols, p, q, dw, at, dq, {}};
    int64_t i = 0;
    for (; i + Group * kLanes <= cols; i += Group * kLanes) row.template add<true>(load(g + i / Group), i);
    if (i < cols) row.template add<false>(load_part(g + i / Group, (cols - i) / Group), i);
    Vec sums[kLanes + Group] = {};
    for (int a = 0; a < Group; ++a) sums[a] = row.dp[a];
    for (int first = 0; first < Group; first += kLanes)
        store_part(dp + first, sum_each(sums + first), std::min(kLanes, Group - first));
}

}  // namespace projkern::cpu::PROJKERN_TARGET
