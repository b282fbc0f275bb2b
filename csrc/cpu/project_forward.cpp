// W_s[b, n, m] = sum_c q[b, m, c] T[b, n, m, c]          T = sum_a p[b, n, a] W[n, a, m, c]
//
// Lanes are m. A block of b and vectors shares each load of W and each broadcast of p, and keeps T and W_s in
// registers: one multiply-add for each (a, c), and one more for each c. A tile of W_s is collected in the first-level
// cache and then written row by row: written as it is computed, a line of each b at a time, it takes up to twice as
// long.
#include "list.h"
#include "one_task.h"
#include "operands.h"
#include "project.h"
#include "scratch.h"
#include "threads.h"

namespace projkern::cpu::PROJKERN_TARGET {
namespace {

constexpr int kBatchBlock = kRegisters == 32 ? 4 : 3, kVectorBlock = 2;

// The panel of q stays in the second-level cache: longer rows of W and W_s are worth more than the first.
constexpr int64_t kPanelBytes = 64 << 10;

// The groups are those that are known to the compiler, and 0 where they are not.
template <int RowGroup, int ColGroup, int Batches, int Vectors>
inline void combine(const float* w, const float* q, const float* p, const Shape& shape, float* out, int64_t vectors,
                    int64_t b, int64_t vector) {
    const int64_t row_group = RowGroup ? RowGroup : shape.row_group, col_group = ColGroup ? ColGroup : shape.col_group;
    const int64_t w_vector = row_group * col_group * kLanes, q_vector = shape.q_vector();
    w += vector * w_vector;
    q += vector * q_vector + b * kLanes;
    p += b * row_group;
    // Sums start at zero: of a sum of two products the compiler would choose which one to round before it adds.
    Vec sum[Batches][Vectors] = {};
    for (int64_t c = 0; c < col_group; ++c) {
        Vec t[Batches][Vectors] = {};
        for (int64_t a = 0; a < row_group; ++a) {
            Vec x[Vectors];
            for (int v = 0; v < Vectors; ++v) x[v] = load(w + v * w_vector + a * kLanes);
            for (int i = 0; i < Batches; ++i) {
                const float scale = p[i * row_group + a];
                for (int v = 0; v < Vectors; ++v) t[i][v] += scale * x[v];
            }
        }
        for (int i = 0; i < Batches; ++i)
            for (int v = 0; v < Vectors; ++v) sum[i][v] += t[i][v] * load(q + v * q_vector + i * kLanes);
        w += row_group * kLanes;
        q += shape.batch * kLanes;
    }
    out += (b * vectors + vector) * kLanes;
    for (int i = 0; i < Batches; ++i, out += vectors * kLanes)
        for (int v = 0; v < Vectors; ++v) store(out + v * kLanes, sum[i][v]);
}

template <int RowGroup, int ColGroup, int Vectors>
inline void combine_batch(const float* w, const float* q, const float* p, const Shape& shape, float* out,
                          int64_t vectors, int64_t vector) {
    int64_t b = 0;
    for (; b + kBatchBlock <= shape.batch; b += kBatchBlock)
        combine<RowGroup, ColGroup, kBatchBlock, Vectors>(w, q, p, shape, out, vectors, b, vector);
    switch (shape.batch - b) {
        case 3: return combine<RowGroup, ColGroup, 3, Vectors>(w, q, p, shape, out, vectors, b, vector);
        case 2: return combine<RowGroup, ColGroup, 2, Vectors>(w, q, p, shape, out, vectors, b, vector);
        case 1: return combine<RowGroup, ColGroup, 1, Vectors>(w, q, p, shape, out, vectors, b, vector);
    }
}

template <int RowGroup, int ColGroup>
void combine_tile(const float* w, const float* q, const float* p, const Shape& shape, float* out, int64_t vectors) {
    int64_t v = 0;
    for (; v + kVectorBlock <= vectors; v += kVectorBlock)
        combine_batch<RowGroup, ColGroup, kVectorBlock>(w, q, p, shape, out, vectors, v);
    if (v < vectors) combine_batch<RowGroup, ColGroup, 1>(w, q, p, shape, out, vectors, v);
}

template <int Group>
void combine_tile(const float* w, const float* q, const float* p, const Shape& shape, float* out, int64_t vectors) {
    return shape.col_group == Group ? combine_tile<Group, Group>(w, q, p, shape, out, vectors)
                                    : combine_tile<Group, 0>(w, q, p, shape, out, vectors);
}

void combine_tile(const float* w, const float* q, const float* p, const Shape& shape, float* out, int64_t vectors) {
    switch (shape.row_group) {
        case 1: return combine_tile<1, 0>(w, q, p, shape, out, vectors);
        case 2: return combine_tile<2>(w, q, p, shape, out, vectors);
        case 4: return combine_tile<4>(w, q, p, shape, out, vectors);
        case 8: return combine_tile<8>(w, q, p, shape, out, vectors);
        default: return combine_tile<0, 0>(w, q, p, shape, out, vectors);
    }
}

// A row of `columns` numbers, padded to whole vectors, to its place.
template <class Out>
void write_row(const float* row, int64_t columns, bool streamed, Out* out) {
    int64_t m = 0;
    if (streamed) {
        for (; m < columns; m += kLanes) stream(out + m, load(row + m));
    } else {
        for (; m + kLanes <= columns; m += kLanes) store(out + m, load(row + m));
        if (m < columns) store_part(out + m, load(row + m), columns - m);
    }
}

struct Workspace {
    List<float*> q;  // of each matrix of the source
    float *p, *w, *out;

    Workspace(Arena& arena, const List<Shape>& shapes, const Source& source) {
        int64_t tile = 0, out_tile = 0;
        for (const Shape& shape : shapes) {
            q.push_back(arena.floats(shape.q_floats()));
            tile = std::max(tile, shape.w_tile_floats());
            out_tile = std::max(out_tile, shape.tile * shape.batch * kLanes);
        }
        p = arena.floats(source.chunk_rows * shapes.front().batch);
        w = arena.floats(tile);
        out = arena.floats(out_tile);
    }
};

// Rows of a chunk; `w` and `out` point at its first.
template <class In, class Out>
void project_rows(const In* w, const Matrix& x, const Shape& shape, Out* out, bool streamed, int64_t rows,
                  const float* q, const Workspace& space) {
    each_tile(shape, rows / x.row_group, [&](const Tile& tile, const Tile& next, const Tile& after) {
        load_tile(w, x.cols, shape, tile, next, after, space.w);
        combine_tile(space.w, q + tile.v * shape.q_vector(), space.p + tile.i * shape.batch * x.row_group, shape,
                     space.out, tile.vectors);
        Out* to = out + tile.i * shape.out_cols + tile.v * kLanes;
        for (int64_t b = 0; b < shape.batch; ++b, to += shape.out_rows * shape.out_cols)
            write_row(space.out + b * tile.vectors * kLanes, shape.columns(tile.v, tile.vectors), streamed, to);
    });
}

// The same for one task, whose p lies in memory as it is used.
template <int Group, class In, class Out>
void project_rows_of_one(const In* w, int64_t cols, Out* out, bool streamed, int64_t rows, const float* p,
                         const float* q) {
    for (int64_t row = 0; row < rows; row += Group, w += Group * cols, out += cols / Group) {
        streamed ? project_row<Group>(w, cols, p + row, q, Stream<Out>{out})
                 : project_row<Group>(w, cols, p + row, q, Write<Out>{out});
    }
}

template <class In, class Out>
void project_rows_of_one(const In* w, const Matrix& x, Out* out, bool streamed, int64_t rows, const float* p,
                         const float* q) {
    switch (x.row_group) {
        case 1: return project_rows_of_one<1>(w, x.cols, out, streamed, rows, p, q);
        case 2: return project_rows_of_one<2>(w, x.cols, out, streamed, rows, p, q);
        case 4: return project_rows_of_one<4>(w, x.cols, out, streamed, rows, p, q);
        case 8: return project_rows_of_one<8>(w, x.cols, out, streamed, rows, p, q);
    }
}

template <class In, class Out>
void project_unit(const Plan& plan, const Partition& partition, const Forward& call, bool large, const Unit& unit) {
    const Source& source = partition.sources[unit.source];
    if (source.matrices.empty()) return;

    List<Shape> shapes;
    for (int64_t k : source.matrices) shapes.emplace_back(plan.matrices[k], call.batch, kPanelBytes);
    static thread_local Buffer memory;
    Arena sizes;
    Workspace(sizes, shapes, source);
    Arena arena(memory.reserve(sizes.used()));
    const Workspace space(arena, shapes, source);

    const In* w = static_cast<const In*>(call.weights[source.weight]) + source.layer * source.rows * source.cols;
    for (size_t s = 0; s < shapes.size(); ++s)
        pack_q(call.q, plan.q_width, plan.matrices[source.matrices[s]], shapes[s], space.q[s]);

    const int64_t end = unit.first_row + unit.rows;
    for (int64_t row = unit.first_row; row < end; row += source.chunk_rows) {
        const int64_t rows = std::min(source.chunk_rows, end - row);
        for (size_t s = 0; s < shapes.size(); ++s) {
            const Matrix& x = plan.matrices[source.matrices[s]];
            Out* out = static_cast<Out*>(call.outputs[source.matrices[s]]) + row / x.row_group * shapes[s].out_cols;
            const bool streamed = large && can_stream(out, shapes[s].out_cols);
            const In* from = w + row * x.cols;
            if (is_for_one_task(x, call.batch)) {
                project_rows_of_one(from, x, out, streamed, rows, call.p + x.p_offset + row, space.q[s]);
                continue;
            }
            pack_p(call.p, plan.p_width, x, call.batch, row, rows, space.p);
            project_rows(from, x, shapes[s], out, streamed, rows, space.q[s], space);
        }
    }
    if (large) finish_streams();
}

template <class In, class Out>
void project(const Plan& plan, const Partition& partition, const Forward& call) {
    int64_t elements = 0;
    for (const Matrix& x : plan.matrices) elements += call.batch * x.out_rows() * x.out_cols();
    if (elements == 0) return;
    const bool large = elements * int64_t(sizeof(Out)) > kStreamBytes;
    const int threads = useful_threads(partition, call.batch, call.threads);
    parallel_for(int64_t(partition.units.size()), threads,
                 [&](int64_t i) { project_unit<In, Out>(plan, partition, call, large, partition.units[i]); });
}

}  // namespace

void project_forward(const Plan& plan, const Partition& partition, const Forward& call) {
    const bool in_float = call.weight_dtype == DType::float32, out_float = call.output_dtype == DType::float32;
    if (in_float && out_float) return project<float, float>(plan, partition, call);
    if (in_float) return project<float, bfloat16>(plan, partition, call);
    if (out_float) return project<bfloat16, float>(plan, partition, call);
    return project<bfloat16, bfloat16>(plan, partition, call);
}

}  // namespace projkern::cpu::PROJKERN_TARGET
