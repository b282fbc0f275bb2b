#include "build_table.h"

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace projkern::cuda {
namespace {

constexpr int64_t kMostStripRows = 64;

int32_t narrow(int64_t value, const char* what) {
    if (value > std::numeric_limits<int32_t>::max())
        throw std::invalid_argument(std::string(what) + " must be below 2^31 on a CUDA card; it was " +
                                    std::to_string(value));
    return int32_t(value);
}

bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// The matrices of the plan by source, (weight, layer) -> indices: wide sources first, else in the order of first use.
using Sources = std::vector<std::vector<size_t>>;

Sources group_by_source(const Plan& plan) {
    std::map<std::pair<int64_t, int64_t>, size_t> place;
    Sources sources;
    for (size_t k = 0; k < plan.matrices.size(); ++k) {
        const Matrix& x = plan.matrices[k];
        if (x.rows == 0 || x.cols == 0) continue;
        const auto [found, fresh] = place.try_emplace({x.weight, x.layer}, sources.size());
        if (fresh) sources.emplace_back();
        sources[found->second].push_back(k);
    }
    // Blocks start in this order; the long strips first, or they would be what the card waits for at the end.
    std::stable_sort(sources.begin(), sources.end(), [&](const std::vector<size_t>& a, const std::vector<size_t>& b) {
        return plan.matrices[a[0]].cols > plan.matrices[b[0]].cols;
    });
    return sources;
}

std::vector<int64_t> row_groups(const Plan& plan, const std::vector<size_t>& matrices) {
    std::vector<int64_t> groups;
    for (size_t k : matrices) groups.push_back(plan.matrices[k].row_group);
    return groups;
}

// Whether 16-byte accesses reach every row of W, of W_s or G, and of p and q.
bool serves_fast_path(const Matrix& x, const Source& source, const void* projected, const float* p, const float* q,
                      const Plan& plan) {
    const int64_t g = x.row_group;
    return g == x.col_group && (g == 2 || g == 4 || g == 8) && source.strip_rows <= kMostStripRows && x.cols % 8 == 0 &&
           x.q_offset % 4 == 0 && plan.q_width % 4 == 0 && x.p_offset % 4 == 0 && plan.p_width % 4 == 0 &&
           aligned(source.W) && aligned(projected) && aligned(p) && aligned(q);
}

// Whether tensor cores make W_s sooner than the ordinary ones. For each element of W, of w bytes, these need
// B (1 + 1/g) multiply-adds, 128 a clock and multiprocessor, and memory moves w + 2 B / g^2 bytes. On an H200 a byte
// takes as long as six multiply-adds, so that they fall behind memory from B = 27 (g = 8, float32 W) or 13 (g = 8,
// bfloat16 W), from B = 52 or 26 (g = 4), and for g = 2 never. Tensor cores take tasks by sixteen. All this is
// predicted, not measured.
bool wants_tensor_cores(const Matrix& x, const Forward& call) {
    const int64_t fewest = x.row_group == 8 ? 16 : 32;
    return x.row_group > 2 && call.output_dtype == DType::bfloat16 && call.batch >= fewest &&
           x.out_cols() % 4 == 0;  // a thread stores four outputs
}

Path forward_path(const Matrix& x, const Source& source, const Projection& projection, const Forward& call,
                  const Plan& plan) {
    // Every strip's p has to start at a multiple of 16 bytes.
    const bool fast = serves_fast_path(x, source, projection.projected, call.p, call.q, plan) &&
                      (x.rows <= source.strip_rows || source.strip_rows % 4 == 0);
    if (!fast) return Path::any;
    return wants_tensor_cores(x, call) ? Path::matrix : Path::lanes;
}

// Floats for the shares of dq of one matrix; the next ones' are aligned too.
int64_t partial_dq_size(const Matrix& x, int64_t strip_rows, int64_t batch) {
    const int64_t size = (x.rows + strip_rows - 1) / strip_rows * batch * x.cols;
    return (size + 3) / 4 * 4;
}

Path backward_path(const Matrix& x, const Source& source, const Projection& projection, const Backward& call,
                   const Plan& plan) {
    // Rows are copied by fours too, those of p.
    const bool fast = serves_fast_path(x, source, projection.grad, call.p, call.q, plan) && x.rows % 4 == 0 &&
                      source.strip_rows % 4 == 0 && aligned(source.dW) && aligned(call.dp) && aligned(call.dq) &&
                      aligned(call.workspace) && call.batch > 0;
    // Rows of G start at multiples of 16 bytes.
    const bool matrix = fast && call.grad_dtype == DType::bfloat16 && x.cols % (8 * x.col_group) == 0;
    constexpr int64_t kLeastTasks = 9;
    return matrix && call.batch >= kLeastTasks ? Path::matrix : fast ? Path::lanes : Path::any;
}

template <class Call, class FillProjection>
std::vector<Table> build(const Plan& plan, const Call& call, FillProjection fill) {
    std::vector<Table> tables;
    for (const std::vector<size_t>& matrices : group_by_source(plan)) {
        if (matrices.size() > Table::capacity)
            throw std::invalid_argument("a weight must be projected to at most " + std::to_string(Table::capacity) +
                                        " scales in one call; it was " + std::to_string(matrices.size()));
        const Matrix& first = plan.matrices[matrices[0]];
        const int64_t rows = strip_rows(first.rows, row_groups(plan, matrices));
        const int64_t strips = (first.rows + rows - 1) / rows;
        int64_t projections = tables.empty() ? 0
                                             : tables.back().source[tables.back().sources - 1].first_projection +
                                                   tables.back().source[tables.back().sources - 1].projections;
        if (tables.empty() || tables.back().sources == Table::capacity ||
            projections + int64_t(matrices.size()) > Table::capacity ||
            tables.back().strips + strips > std::numeric_limits<int32_t>::max()) {
            tables.emplace_back();  // zeroed
            projections = 0;
            Table& table = tables.back();
            table.p = call.p;
            table.q = call.q;
            table.batch = narrow(call.batch, "the batch");
            table.p_width = plan.p_width;
            table.q_width = plan.q_width;
        }
        Table& table = tables.back();
        Source& source = table.source[table.sources++];
        source.rows = narrow(first.rows, "rows");
        source.cols = narrow(first.cols, "cols");
        source.strip_rows = narrow(rows, "a strip's rows");
        source.first_strip = table.strips;
        source.first_projection = int32_t(projections);
        source.projections = int32_t(matrices.size());
        table.strips = narrow(table.strips + strips, "the number of strips");
        const int64_t skipped = first.layer * first.rows * first.cols;
        source.W = static_cast<const char*>(call.weights[first.weight]) + skipped * size_of(call.weight_dtype);
        for (size_t k : matrices) {
            const Matrix& x = plan.matrices[k];
            Projection& projection = table.projection[projections++];
            projection.p_offset = narrow(x.p_offset, "p_offset");
            projection.q_offset = narrow(x.q_offset, "q_offset");
            projection.row_group = narrow(x.row_group, "row_group");
            projection.col_group = narrow(x.col_group, "col_group");
            fill(table, source, projection, k);
        }
    }
    return tables;
}

}  // namespace

int32_t strip_rows(int64_t rows, const std::vector<int64_t>& row_groups) {
    int64_t step = 1;  // divides the rows, since every group does
    for (int64_t group : row_groups) step = std::lcm(step, group);
    return narrow(std::min(rows, step * std::max<int64_t>(1, kMostStripRows / step)), "a strip's rows");
}

std::vector<Table> build_tables(const Plan& plan, const Forward& call) {
    return build(plan, call, [&](Table&, Source& source, Projection& projection, size_t k) {
        projection.projected = call.outputs[k];
        projection.path = forward_path(plan.matrices[k], source, projection, call, plan);
    });
}

std::vector<Table> build_tables(const Plan& plan, const Backward& call) {
    int64_t partial = 0;
    return build(plan, call, [&](Table& table, Source& source, Projection& projection, size_t k) {
        const Matrix& x = plan.matrices[k];
        table.dp = call.dp;
        table.dq = call.dq;
        table.partial_dq = call.workspace;
        table.wide_dW = call.d_weight_dtype == DType::float32;
        if (!call.d_weights.empty() && call.d_weights[x.weight] != nullptr)
            source.dW =
                static_cast<char*>(call.d_weights[x.weight]) + x.layer * x.rows * x.cols * size_of(call.d_weight_dtype);
        projection.grad = call.grads[k];
        projection.partial_dq = partial;
        partial += partial_dq_size(x, source.strip_rows, call.batch);
        projection.path = backward_path(x, source, projection, call, plan);
    });
}

int64_t partial_dq_size(const Plan& plan, int64_t batch) {
    int64_t size = 0;
    for (const std::vector<size_t>& matrices : group_by_source(plan)) {
        const Matrix& first = plan.matrices[matrices[0]];
        const int64_t rows = strip_rows(first.rows, row_groups(plan, matrices));
        size += int64_t(matrices.size()) * partial_dq_size(first, rows, batch);
    }
    return size;
}

}  // namespace projkern::cuda
