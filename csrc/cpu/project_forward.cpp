// W_s[b, n, m] = sum_c q[b, m, c] T_c,   T_c = sum_a p[b, n, a] W[n, a, m, c]
//
// Lanes are m. A block of 4 b and 2 vectors shares each load of W and each broadcast of p, and keeps T
// and W_s in registers: one multiply-add for each (a, c), and one more for each c.
#include "operands.h"
#include "project.h"
#include "scratch.h"
#include "threads.h"

namespace projkern::cpu {
namespace {

constexpr int kBatchBlock = 4, kVectorBlock = 2;

// q is what a tile reads most of: its panel stays in the first-level cache.
constexpr int64_t kPanelBytes = 16 << 10;

// Where W_s[b, n, m] of one n and the first m of a tile goes.
template <class Out>
struct Target {
    Out* at;
    int64_t batch_stride;
    int64_t columns;
    bool streamed;

    void put(int64_t b, int64_t vector, Vec x) const {
        Out* to = at + b * batch_stride + vector * kLanes;
        const int64_t left = columns - vector * kLanes;
        if (left < kLanes) {
            store_part(to, x, left);
        } else if (streamed) {
            stream(to, x);
        } else {
            store(to, x);
        }
    }
};

// RowGroup is the group where it is known to the compiler, and 0 where it is not.
template <int RowGroup, int Batches, int Vectors, class Out>
inline void combine(const float* w, const float* q, const float* p, const Shape& shape, const Target<Out>& target,
                    int64_t b, int64_t vector) {
    const int64_t row_group = RowGroup ? RowGroup : shape.row_group;
    const int64_t w_vector = shape.w_vector(), q_vector = shape.q_vector();
    w += vector * w_vector;
    q += vector * q_vector + b * kLanes;
    p += b * row_group;
    Vec sum[Batches][Vectors] = {};
    for (int64_t c = 0; c < shape.col_group; ++c) {
        Vec t[Batches][Vectors] = {};
        for (int64_t a = 0; a < row_group; ++a) {
            Vec x[Vectors];
            for (int v = 0; v < Vectors; ++v) x[v] = load(w + v * w_vector + a * kLanes);
            for (int i = 0; i < Batches; ++i) {
                const float scale = p[i * row_group + a];
                for (int v = 0; v < Vectors; ++v) t[i][v] = a == 0 ? scale * x[v] : t[i][v] + scale * x[v];
            }
        }
        for (int i = 0; i < Batches; ++i)
            for (int v = 0; v < Vectors; ++v) sum[i][v] += t[i][v] * load(q + v * q_vector + i * kLanes);
        w += row_group * kLanes;
        q += shape.batch * kLanes;
    }
    for (int i = 0; i < Batches; ++i)
        for (int v = 0; v < Vectors; ++v) target.put(b + i, vector + v, sum[i][v]);
}

template <int RowGroup, int Vectors, class Out>
inline void combine_batch(const float* w, const float* q, const float* p, const Shape& shape, const Target<Out>& target,
                          int64_t vector) {
    int64_t b = 0;
    for (; b + kBatchBlock <= shape.batch; b += kBatchBlock)
        combine<RowGroup, kBatchBlock, Vectors>(w, q, p, shape, target, b, vector);
    switch (shape.batch - b) {
        case 3: return combine<RowGroup, 3, Vectors>(w, q, p, shape, target, b, vector);
        case 2: return combine<RowGroup, 2, Vectors>(w, q, p, shape, target, b, vector);
        case 1: return combine<RowGroup, 1, Vectors>(w, q, p, shape, target, b, vector);
    }
}

template <int RowGroup, class Out>
void combine_tile(const float* w, const float* q, const float* p, const Shape& shape, const Target<Out>& target,
                  int64_t vectors) {
    int64_t v = 0;
    for (; v + kVectorBlock <= vectors; v += kVectorBlock)
        combine_batch<RowGroup, kVectorBlock>(w, q, p, shape, target, v);
    if (v < vectors) combine_batch<RowGroup, 1>(w, q, p, shape, target, v);
}

template <class Out>
void combine_tile(const float* w, const float* q, const float* p, const Shape& shape, const Target<Out>& target,
                  int64_t vectors) {
    switch (shape.row_group) {
        case 1: return combine_tile<1>(w, q, p, shape, target, vectors);
        case 2: return combine_tile<2>(w, q, p, shape, target, vectors);
        case 4: return combine_tile<4>(w, q, p, shape, target, vectors);
        case 8: return combine_tile<8>(w, q, p, shape, target, vectors);
        default: return combine_tile<0>(w, q, p, shape, target, vectors);
    }
}

struct Workspace {
    std::vector<float*> q;  // of each matrix of the source
    float *p, *w;

    Workspace(Arena& arena, const std::vector<Shape>& shapes, const Source& source) {
        int64_t tile = 0;
        for (const Shape& shape : shapes) {
            q.push_back(arena.floats(shape.q_floats()));
            tile = std::max(tile, shape.w_tile_floats());
        }
        p = arena.floats(source.chunk_rows * shapes.front().batch);
        w = arena.floats(tile);
    }
};

// Rows of a chunk; `w` and `out` point at its first.
template <class In, class Out>
void project_rows(const In* w, const Matrix& x, const Shape& shape, Out* out, bool streamed, int64_t rows,
                  const float* q, const float* p, float* planes) {
    each_tile(shape, rows / x.row_group, [&](const Tile& tile, const Tile& next) {
        load_tile(w, x.cols, shape, tile, next, planes);
        const Target<Out> target{out + tile.i * shape.out_cols + tile.v * kLanes, shape.out_rows * shape.out_cols,
                                 shape.columns(tile.v, tile.vectors), streamed};
        combine_tile(planes, q + tile.v * shape.q_vector(), p + tile.i * shape.batch * x.row_group, shape, target,
                     tile.vectors);
    });
}

template <class In, class Out>
void project_unit(const Plan& plan, const Partition& partition, const Forward& call, bool large, const Unit& unit) {
    const Source& source = partition.sources[unit.source];
    if (source.matrices.empty()) return;

    std::vector<Shape> shapes;
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
            pack_p(call.p, plan.p_width, x, call.batch, row, rows, space.p);
            project_rows(w + row * x.cols, x, shapes[s], out, streamed, rows, space.q[s], space.p, space.w);
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

}  // namespace projkern::cpu
