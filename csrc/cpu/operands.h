// The operands of one matrix as the kernels read them, and the tiles in which they are read.
//
//     q, dq, U   [vector][c][b][lane]      W, dW   [vector][c][a][lane]      p, dp   [n][b][a]
//
// A vector holds kLanes neighbouring m. Columns are taken in panels, few enough for the panel of q to
// stay in cache while all rows n of a chunk pass, and a panel in tiles, few enough for one row group of W
// to stay in the first-level cache while all b pass.
#pragma once

#include <algorithm>

#include "../plan.h"
#include "interleave.h"

namespace projkern::cpu::PROJKERN_TARGET {

constexpr int64_t kTileBytes = 16 << 10;

struct Shape {
    int64_t batch;
    int64_t row_group, col_group;
    int64_t out_rows, out_cols;
    int64_t vectors;      // that cover out_cols
    int64_t panel, tile;  // in vectors

    // A panel's share of q takes up to `panel_bytes`, a tile's share of W up to kTileBytes.
    Shape(const Matrix& x, int64_t batch, int64_t panel_bytes)
        : batch(batch),
          row_group(x.row_group),
          col_group(x.col_group),
          out_rows(x.out_rows()),
          out_cols(x.out_cols()),
          vectors((out_cols + kLanes - 1) / kLanes) {
        const int64_t floats = std::max<int64_t>(q_vector(), 1);
        panel = std::clamp<int64_t>(panel_bytes / 4 / floats, 1, std::max<int64_t>(vectors, 1));
        tile = std::clamp<int64_t>(kTileBytes / 4 / w_vector(), 1, panel);
    }

    // Floats between one vector of an operand and the next.
    int64_t q_vector() const { return col_group * batch * kLanes; }
    int64_t w_vector() const { return col_group * row_group * kLanes; }

    Planes q_planes() const { return {q_vector(), batch * kLanes}; }
    Planes w_planes() const { return {w_vector(), row_group * kLanes}; }

    int64_t q_floats() const { return vectors * q_vector(); }
    int64_t w_tile_floats() const { return tile * w_vector(); }

    // Columns m that vectors [first, first + count) hold.
    int64_t columns(int64_t first, int64_t count) const { return std::min(count * kLanes, out_cols - first * kLanes); }
};

inline void pack_q(const float* q, int64_t q_width, const Matrix& x, const Shape& shape, float* planes) {
    for (int64_t b = 0; b < shape.batch; ++b)
        split_row(q + b * q_width + x.q_offset, shape.out_cols, shape.col_group, shape.q_planes(), planes + b * kLanes);
}

// Rows [first_row, first_row + rows) of the matrix, whole groups.
inline void pack_p(const float* p, int64_t p_width, const Matrix& x, int64_t batch, int64_t first_row, int64_t rows,
                   float* packed) {
    const int64_t group = x.row_group;
    for (int64_t b = 0; b < batch; ++b) {
        const float* from = p + b * p_width + x.p_offset + first_row;
        for (int64_t n = 0; n < rows / group; ++n)
            for (int64_t a = 0; a < group; ++a) packed[(n * batch + b) * group + a] = from[n * group + a];
    }
}

inline void unpack_dp(const float* packed, int64_t p_width, const Matrix& x, int64_t batch, int64_t first_row,
                      int64_t rows, float* dp) {
    const int64_t group = x.row_group;
    for (int64_t b = 0; b < batch; ++b) {
        float* to = dp + b * p_width + x.p_offset + first_row;
        for (int64_t n = 0; n < rows / group; ++n)
            for (int64_t a = 0; a < group; ++a) to[n * group + a] = packed[(n * batch + b) * group + a];
    }
}

// Row group i of a chunk, vectors [v, v + vectors).
struct Tile {
    int64_t i, v, vectors;
};

// Calls visit(tile, next, after) for the tiles of a chunk of row groups, panel by panel, with the two that follow each:
// the processor does not see where a tile's rows go on. The last have themselves instead.
template <class Visit>
void each_tile(const Shape& shape, int64_t row_groups, const Visit& visit) {
    Tile now{-1, 0, 0}, next{-1, 0, 0};
    for (int64_t panel = 0; panel < shape.vectors; panel += shape.panel) {
        const int64_t end = std::min(panel + shape.panel, shape.vectors);
        for (int64_t i = 0; i < row_groups; ++i)
            for (int64_t v = panel; v < end; v += shape.tile) {
                const Tile after{i, v, std::min(shape.tile, end - v)};
                if (now.i >= 0) visit(now, next, after);
                now = next, next = after;
            }
    }
    if (now.i >= 0) visit(now, next, next);
    if (next.i >= 0) visit(next, next, next);
}

// `rows` points at the first row of the chunk. Asks for what comes half a tile later, and two tiles later.
template <class T>
void load_tile(const T* rows, int64_t cols, const Shape& shape, const Tile& tile, const Tile& next, const Tile& after,
               float* planes) {
    const auto start = [&](const Tile& x) { return x.i * shape.row_group * cols + x.v * kLanes * shape.col_group; };
    const int64_t here = start(tile), columns = shape.columns(tile.v, tile.vectors), half = (shape.row_group + 1) / 2;
    const int64_t wrap = start(next) - here - shape.row_group * cols;
    for (int64_t a = 0; a < shape.row_group; ++a) {
        const Ahead ahead{half * cols + (a + half < shape.row_group ? 0 : wrap), start(after) - here};
        split_row(rows + here + a * cols, columns, shape.col_group, shape.w_planes(), planes + a * kLanes, ahead);
    }
}

}  // namespace projkern::cpu::PROJKERN_TARGET
