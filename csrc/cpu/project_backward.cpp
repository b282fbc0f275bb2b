// U[b, n, i]  = G[b, n, i / col_group] q[b, i]          T[b, n, i] = sum_a p[b, n, a] W[n, a, i]
// dW[n, a, i] = sum_b p[b, n, a] U[b, n, i]
// dp[b, n, a] = sum_i U[b, n, i] W[n, a, i]
// dq[b, i]    = sum_n G[b, n, i / col_group] T[b, n, i]
//
// For many tasks a tile of one n is turned into planes and passed twice (passes.h); for one it is not (one_task.h). The
// source is read once.
#include <cstring>
#include <type_traits>

#include "list.h"
#include "one_task.h"
#include "operands.h"
#include "passes.h"
#include "project.h"
#include "scratch.h"
#include "threads.h"

namespace projkern::cpu::PROJKERN_TARGET {
namespace {

// Tasks in a block: G of a tile stays in the first-level cache between the passes.
constexpr int64_t kBatchBlock = 32;

// G of the next block is copied while one is computed, some tasks after each vector. They are asked for so many vectors
// before: of all of them at once, which are a power of two apart, the caches would keep a few.
constexpr int64_t kStepsAhead = 2;

// Up to this many, G is read where it lies. The examples' rows of G are a power of two apart more often
// than not: more of them would drive each other out of one set of the first-level cache.
constexpr int64_t kBatchInPlace = 8;

// Wider panels than a first-level cache would have: longer pieces of G, which comes from memory, are
// worth more than q and dq, which then come from the second level.
constexpr int64_t kPanelBytes = 64 << 10;

// G of a tile and a block of tasks: where it lies.
template <class G>
struct GradBlock {
    const G* at;
    int64_t batch_stride, batches, vectors, columns;

    // Of these tasks, to [vector][b][lane].
    void copy(int64_t first, int64_t last, float* g) const {
        for (int64_t b = first; b < last; ++b)
            for (int64_t v = 0; v < vectors; ++v) {
                const G* from = at + b * batch_stride + v * kLanes;
                const int64_t left = columns - v * kLanes;
                store(g + (v * batches + b) * kLanes, left >= kLanes ? load(from) : load_part(from, left));
            }
    }

    void ask(int64_t first, int64_t last) const {
        for (int64_t b = first; b < last; ++b)
            for (int64_t m = 0; m < columns; m += 64 / int64_t(sizeof(G))) prefetch_far(at + b * batch_stride + m);
    }
};

struct Workspace {
    List<float*> q, dq;  // of each matrix of the source
    float *p, *dp, *w, *dw;
    float* g[2];  // of this block and the next
    float* rows;  // dW of a chunk, while several scales add to it

    Workspace(Arena& arena, const List<Shape>& shapes, const Source& source) {
        const int64_t batches = std::min(kBatchBlock, shapes.front().batch);
        int64_t tile = 0, grads = 0;
        for (const Shape& shape : shapes) {
            q.push_back(arena.floats(shape.q_floats()));
            dq.push_back(arena.floats(shape.q_floats()));
            tile = std::max(tile, shape.w_tile_floats());
            grads = std::max(grads, shape.tile * batches * kLanes);
        }
        p = arena.floats(source.chunk_rows * shapes.front().batch);
        dp = arena.floats(source.chunk_rows * shapes.front().batch);
        w = arena.floats(tile);
        dw = arena.floats(tile);
        for (float*& block : g) block = arena.floats(grads);
        rows = arena.floats(source.shared() ? source.chunk_rows * source.cols : 0);
    }
};

// One weight's rows of one unit, for one call.
template <class In, class Grad>
class Worker {
  public:
    Worker(const Plan& plan, const Source& source, const Backward& call, bool large, Wanted wanted)
        : plan_(plan), source_(source), call_(call), wanted_(wanted) {
        for (int64_t k : source.matrices) shapes_.emplace_back(plan.matrices[k], call.batch, kPanelBytes);
        const int64_t layer = source.layer * source.rows * source.cols;
        w_ = static_cast<const In*>(call.weights[source.weight]) + layer;
        if (wanted.dw) dw_ = static_cast<In*>(call.d_weights[source.weight]) + layer;
        streamed_ = large && can_stream(dw_, source.cols);
    }

    // dq of each matrix, and the floats from one b to the next.
    struct DqRows {
        float* at;
        int64_t stride;
    };

    void run(const Unit& unit, const List<DqRows>& dq) {
        static thread_local Buffer memory;
        Arena sizes;
        Workspace(sizes, shapes_, source_);
        Arena arena(memory.reserve(sizes.used()));
        const Workspace space(arena, shapes_, source_);

        for (size_t s = 0; s < shapes_.size(); ++s) {
            if (is_of_one(s)) {
                std::fill_n(dq[s].at, matrix(s).cols, 0.0f);
                continue;
            }
            pack_q(call_.q, plan_.q_width, matrix(s), shapes_[s], space.q[s]);
            if (wanted_.dq) std::fill_n(space.dq[s], shapes_[s].q_floats(), 0.0f);
        }
        const int64_t end = unit.first_row + unit.rows;
        for (int64_t row = unit.first_row; row < end; row += source_.chunk_rows) {
            const int64_t rows = std::min(source_.chunk_rows, end - row);
            for (size_t s = 0; s < shapes_.size(); ++s) {
                if (is_of_one(s)) {
                    project_rows_of_one(s, row, rows, dq[s].at, space);
                    continue;
                }
                pack_p(call_.p, plan_.p_width, matrix(s), call_.batch, row, rows, space.p);
                if (wanted_.dp) std::fill_n(space.dp, rows * call_.batch, 0.0f);
                project_rows(s, row, rows, space);
                if (wanted_.dp) unpack_dp(space.dp, plan_.p_width, matrix(s), call_.batch, row, rows, call_.dp);
            }
            if (wanted_.dw && source_.shared()) write_rows(space.rows, row, rows);
        }
        if (wanted_.dq)
            for (size_t s = 0; s < shapes_.size(); ++s)
                if (!is_of_one(s)) write_dq(space.dq[s], s, dq[s]);
        if (streamed_) finish_streams();
    }

  private:
    const Matrix& matrix(size_t s) const { return plan_.matrices[source_.matrices[s]]; }

    bool is_of_one(size_t s) const { return wanted_.dp && wanted_.dq && is_for_one_task(matrix(s), call_.batch); }

    void project_rows(size_t s, int64_t first_row, int64_t rows, const Workspace& space) {
        copied_ = nullptr;  // another matrix may have the same gradient, in other tiles
        each_tile(shapes_[s], rows / shapes_[s].row_group, [&](const Tile& tile, const Tile& next, const Tile& after) {
            project_tile(s, first_row, tile, next, after, space);
        });
    }

    // For one task, whose p, dp and dq lie in memory as they are used.
    void project_rows_of_one(size_t s, int64_t first_row, int64_t rows, float* dq, const Workspace& space) {
        switch (matrix(s).row_group) {
            case 1: return project_rows_of_one<1>(s, first_row, rows, dq, space);
            case 2: return project_rows_of_one<2>(s, first_row, rows, dq, space);
            case 4: return project_rows_of_one<4>(s, first_row, rows, dq, space);
            case 8: return project_rows_of_one<8>(s, first_row, rows, dq, space);
        }
    }

    template <int Group>
    void project_rows_of_one(size_t s, int64_t first_row, int64_t rows, float* dq, const Workspace& space) {
        float* shared = space.rows;
        In* own = dw_ + first_row * source_.cols;
        const auto project = [&](auto sink) { project_rows_of_one<Group>(s, first_row, rows, dq, sink); };
        if (!wanted_.dw)
            project(Drop{});
        else if (source_.shared())
            s == 0 ? project(Write<float>{shared}) : project(Add{shared});
        else
            streamed_ ? project(Stream<In>{own}) : project(Write<In>{own});
    }

    template <int Group, class Sink>
    void project_rows_of_one(size_t s, int64_t first_row, int64_t rows, float* dq, const Sink& dw) {
        const Matrix& x = matrix(s);
        const float *p = call_.p + x.p_offset + first_row, *q = call_.q + x.q_offset;
        float* dp = call_.dp + x.p_offset + first_row;
        const Grad* g = static_cast<const Grad*>(call_.grads[source_.matrices[s]]) + first_row / Group * x.out_cols();
        const In* w = w_ + first_row * x.cols;
        for (int64_t row = 0; row < rows; row += Group, g += x.out_cols())
            project_row_backward<Group>(w + row * x.cols, x.cols, p + row, q, g, dw, row * x.cols, dp + row, dq);
    }

    void project_tile(size_t s, int64_t first_row, const Tile& tile, const Tile& next, const Tile& after,
                      const Workspace& space) {
        const Shape& shape = shapes_[s];
        if (wanted_.dp || wanted_.dq)
            load_tile(w_ + first_row * source_.cols, source_.cols, shape, tile, next, after, space.w);

        const int64_t batch = shape.batch, blocks = (batch + kBatchBlock - 1) / kBatchBlock;
        const Tile* tiles[] = {&tile, &next, &after};
        const auto grads_of = [&](int64_t block) {
            return grad_block(s, first_row, *tiles[block / blocks], block % blocks);
        };
        for (int64_t i = 0; i < blocks; ++i) {
            const GradBlock<Grad> grads = grads_of(i);
            const int64_t b = i * kBatchBlock, batches = grads.batches, vectors = tile.vectors;
            const int64_t q_at = tile.v * shape.q_vector() + b * kLanes, p_at = (tile.i * batch + b) * shape.row_group;
            Block block{space.w,  space.q[s] + q_at, space.p + p_at,     space.g[side_], kLanes,  batches * kLanes,
                        space.dw, space.dp + p_at,   space.dq[s] + q_at, batches,        vectors, b == 0};
            if (std::is_same_v<Grad, float> && batch <= kBatchInPlace && grads.columns == vectors * kLanes) {
                block.g = reinterpret_cast<const float*>(grads.at);
                block.g_batch = grads.batch_stride, block.g_vector = kLanes;
                project_block(block, shape, wanted_, [](int64_t) {});
                continue;
            }
            if (copied_ != grads.at) grads.copy(0, batches, space.g[side_]);
            const GradBlock<Grad> coming = grads_of(i + 1), later = grads_of(i + 2);
            project_block(block, shape, wanted_, [&](int64_t v) {
                const auto share = [&](const GradBlock<Grad>& x, int64_t k) { return x.batches * k / vectors; };
                coming.copy(share(coming, v), share(coming, v + 1), space.g[1 - side_]);
                copied_ = coming.at;
                const bool same = v + kStepsAhead < vectors;
                const int64_t k = same ? v + kStepsAhead : std::min(v + kStepsAhead - vectors, vectors - 1);
                const GradBlock<Grad>& asked = same ? coming : later;
                asked.ask(share(asked, k), share(asked, k + 1));
            });
            if (copied_ == coming.at) side_ = 1 - side_;
        }
        if (wanted_.dw) write_tile(s, first_row, tile, space);
    }

    GradBlock<Grad> grad_block(size_t s, int64_t first_row, const Tile& tile, int64_t block) const {
        const Shape& shape = shapes_[s];
        const int64_t n = first_row / shape.row_group + tile.i, b = block * kBatchBlock;
        const int64_t batch_stride = shape.out_rows * shape.out_cols;
        const Grad* grads = static_cast<const Grad*>(call_.grads[source_.matrices[s]]);
        return {grads + b * batch_stride + n * shape.out_cols + tile.v * kLanes, batch_stride,
                std::min(kBatchBlock, shape.batch - b), tile.vectors, shape.columns(tile.v, tile.vectors)};
    }

    void write_tile(size_t s, int64_t first_row, const Tile& tile, const Workspace& space) {
        const Shape& shape = shapes_[s];
        const int64_t columns = shape.columns(tile.v, tile.vectors), col = tile.v * kLanes * shape.col_group;
        for (int64_t a = 0; a < shape.row_group; ++a) {
            const int64_t row = tile.i * shape.row_group + a;  // of the chunk
            const auto merge = [&](const auto& sink) {
                merge_row(space.dw + a * kLanes, shape.col_group, shape.w_planes(), columns, sink);
            };
            if (source_.shared()) {
                float* to = space.rows + row * source_.cols + col;
                s == 0 ? merge(Write<float>{to}) : merge(Add{to});
            } else {
                In* to = dw_ + (first_row + row) * source_.cols + col;
                streamed_ ? merge(Stream<In>{to}) : merge(Write<In>{to});
            }
        }
    }

    // Rounds what the scales added up to.
    void write_rows(const float* from, int64_t row, int64_t rows) {
        In* to = dw_ + row * source_.cols;
        const int64_t count = rows * source_.cols;
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes)
            streamed_ ? stream(to + i, load(from + i)) : store(to + i, load(from + i));
        if (i < count) store_part(to + i, load_part(from + i, count - i), count - i);
    }

    void write_dq(const float* planes, size_t s, const DqRows& dq) {
        const Shape& shape = shapes_[s];
        for (int64_t b = 0; b < shape.batch; ++b)
            merge_row(planes + b * kLanes, shape.col_group, shape.q_planes(), shape.out_cols,
                      Write<float>{dq.at + b * dq.stride});
    }

    const Plan& plan_;
    const Source& source_;
    const Backward& call_;
    const Wanted wanted_;
    List<Shape> shapes_;
    const In* w_;
    In* dw_ = nullptr;
    bool streamed_;
    int side_ = 0;                  // of the workspace's g: the one in use
    const Grad* copied_ = nullptr;  // where what it has was copied from
};

// dq of each unit of the sources that have several: (batch, cols) for each matrix, in the order of the plan and then of
// the units.
struct PartialDq {
    List<int64_t> offset;  // of each matrix
    int64_t floats = 0;

    PartialDq(const Plan& plan, const Partition& partition, int64_t batch) {
        for (size_t k = 0; k < plan.matrices.size(); ++k) {
            const int64_t units = partition.sources[partition.source_of[k]].units;
            offset.push_back(floats);
            if (units > 1) floats += units * batch * plan.matrices[k].cols;
        }
    }
};

// dq[b] of one matrix: the sum of its units, in their order.
void sum_partials(const float* partials, int64_t units, int64_t unit_stride, int64_t cols, float* dq) {
    for (int64_t i = 0; i < cols; i += kLanes) {
        const int64_t left = cols - i;
        const auto partial = [&](int64_t unit) {
            const float* from = partials + unit * unit_stride + i;
            return left >= kLanes ? load(from) : load_part(from, left);
        };
        Vec sum{};
        for (int64_t unit = 0; unit < units; ++unit) sum += partial(unit);
        left >= kLanes ? store(dq + i, sum) : store_part(dq + i, sum, left);
    }
}

template <class In, class Grad>
void project(const Plan& plan, const Partition& partition, const Backward& call) {
    const Wanted wanted{!call.d_weights.empty(), call.dp != nullptr, call.dq != nullptr};
    const bool large = partition.elements * int64_t(sizeof(In)) > kStreamBytes;
    static thread_local Buffer memory;
    const PartialDq partial(plan, partition, call.batch);
    float* partials = wanted.dq ? static_cast<float*>(memory.reserve(partial.floats * sizeof(float))) : nullptr;

    const int threads = useful_threads(partition, call.batch, call.threads);
    parallel_for(int64_t(partition.units.size()), threads, [&](int64_t i) {
        const Unit& unit = partition.units[i];
        const Source& source = partition.sources[unit.source];
        if (source.matrices.empty()) {
            const int64_t from = (source.layer * source.rows + unit.first_row) * source.cols;
            if (wanted.dw && call.d_weights[source.weight])
                std::memset(static_cast<In*>(call.d_weights[source.weight]) + from, 0,
                            unit.rows * source.cols * sizeof(In));
            return;
        }
        List<typename Worker<In, Grad>::DqRows> dq;
        for (int64_t k : source.matrices) {
            if (!wanted.dq)
                dq.push_back({nullptr, 0});
            else if (source.units == 1)
                dq.push_back({call.dq + plan.matrices[k].q_offset, plan.q_width});
            else
                dq.push_back(
                    {partials + partial.offset[k] + (i - source.first_unit) * call.batch * source.cols, source.cols});
        }
        Wanted here = wanted;
        here.dw = wanted.dw && call.d_weights[source.weight];
        if (here.dw || here.dp || here.dq) Worker<In, Grad>(plan, source, call, large, here).run(unit, dq);
    });
    if (!wanted.dq) return;
    parallel_for(int64_t(plan.matrices.size()) * call.batch, threads, [&](int64_t i) {
        const int64_t k = i / call.batch, b = i % call.batch;
        const Matrix& x = plan.matrices[k];
        const int64_t units = partition.sources[partition.source_of[k]].units;
        if (units != 1)  // zero, of a matrix without rows, too
            sum_partials(partials + partial.offset[k] + b * x.cols, units, call.batch * x.cols, x.cols,
                         call.dq + b * plan.q_width + x.q_offset);
    });
}

// What no matrix of the plan touches is zero, and with an empty batch everything is.
void write_zeros(const Plan& plan, const Backward& call) {
    int64_t rows = 0, cols = 0;
    for (const Matrix& x : plan.matrices) rows += x.rows, cols += x.cols;
    if (call.dp && rows < plan.p_width) std::memset(call.dp, 0, call.batch * plan.p_width * sizeof(float));
    if (call.dq && cols < plan.q_width) std::memset(call.dq, 0, call.batch * plan.q_width * sizeof(float));
    if (call.batch > 0) return;
    for (size_t w = 0; w < call.d_weights.size(); ++w)
        if (call.d_weights[w] && plan.weights[w].size() > 0)
            std::memset(call.d_weights[w], 0, plan.weights[w].size() * size_of(call.weight_dtype));
}

}  // namespace

void project_backward(const Plan& plan, const Partition& partition, const Backward& call) {
    write_zeros(plan, call);
    if (call.batch == 0) return;
    if (call.d_weights.empty() && !call.dp && !call.dq) return;
    const bool in_float = call.weight_dtype == DType::float32, grad_float = call.grad_dtype == DType::float32;
    if (in_float && grad_float) return project<float, float>(plan, partition, call);
    if (in_float) return project<float, bfloat16>(plan, partition, call);
    if (grad_float) return project<bfloat16, float>(plan, partition, call);
    return project<bfloat16, bfloat16>(plan, partition, call);
}

}  // namespace projkern::cpu::PROJKERN_TARGET
