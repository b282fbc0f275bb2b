// The argument of a kernel: one call's share of a plan, with its addresses, passed by value. So
// nothing is uploaded, nothing has to outlive the launch, and CUDA graphs capture it as it is.
//
// A unit of work is a strip: some rows of one source matrix over their whole length, at every scale that the matrix is
// projected to. The strips depend on the plan alone, so results do not depend on the card.
#pragma once

#include <cstdint>

namespace projkern::cuda {

// How a strip is computed at one scale.
enum class Path : int32_t {
    any,     // any group, any alignment
    lanes,   // row_group = col_group = 2, 4 or 8, 16-byte accesses
    matrix,  // the same on tensor cores
};

// One source matrix W (rows, cols) and its strips.
struct Source {
    const void* W;
    void* dW;  // null where not needed
    int32_t rows, cols;
    int32_t strip_rows;
    int32_t first_strip;
    int32_t first_projection, projections;
};

// One projection of a source.
struct Projection {
    void* projected;     // forward: W_s, written
    const void* grad;    // backward: G = dL/dW_s
    int64_t partial_dq;  // floats into Table::partial_dq: (strips, batch, cols)
    int32_t p_offset, q_offset;
    int32_t row_group, col_group;
    Path path;
    bool adds_to_dW;  // backward: dW of this source is there already, of another scale
};

struct Table {
    static constexpr int capacity = 320;  // sources, and scales; all of it has to stay below 32,764 bytes

    const float* p;     // (batch, p_width)
    const float* q;     // (batch, q_width)
    float* dp;          // null where not needed
    float* dq;          // null where not needed
    float* partial_dq;  // null: dq is summed with atomics, in no fixed order
    int64_t batch, p_width, q_width;
    int32_t strips, sources;
    bool wide_dW;  // dW is float32 whatever W is
    Source source[capacity];
    Projection projection[capacity];
};
static_assert(sizeof(Table) <= 32764, "a kernel takes no larger argument");

}  // namespace projkern::cuda
