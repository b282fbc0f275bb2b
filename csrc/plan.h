// The plan: one table that says which matrices a call projects, with which groups, from and to where.
//
//     W_s[b, n, m] = sum over a, c of  p[b, n, a] W[n, a, m, c] q[b, m, c]
//
// W is matrix (weight, layer), viewed as (rows / row_group, row_group, cols / col_group, col_group);
// p and q are slices of two wide arrays, (batch, p_width) and (batch, q_width). Nothing here depends on
// the batch or on addresses: those come with each call.
#pragma once

#include <cstdint>
#include <vector>

namespace projkern {

// Counts the changes of the interface between backends/cpu.py or cuda.py and their library, so that a library of
// another version is refused, not called.
constexpr int kInterface = 2;

enum class DType { float32, bfloat16, float16 };  // of storage; sums are float32

inline int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// A contiguous stack of matrices, (layers, rows, cols).
struct Weight {
    int64_t layers, rows, cols;

    int64_t size() const { return layers * rows * cols; }
};

struct Matrix {
    int64_t weight, layer;
    int64_t rows, cols;
    int64_t row_group, col_group;
    int64_t p_offset, q_offset;

    int64_t out_rows() const { return rows / row_group; }
    int64_t out_cols() const { return cols / col_group; }
};

struct Plan {
    std::vector<Weight> weights;
    std::vector<Matrix> matrices;
    int64_t p_width, q_width;
};

// Throws std::invalid_argument and says which matrix is wrong. Slices of p and q have to be disjoint:
// their gradients are written, not added.
void validate(const Plan& plan);

}  // namespace projkern
