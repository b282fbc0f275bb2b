// The gradients of the projection for every matrix of a plan, one block for each strip of a source:
//
//     dW[n,a,i] = sum over b of p[b,n,a] G[b,n,m] q[b,i]           i = (m, c)
//     dp[b,n,a] = sum over i of G[b,n,m] q[b,i] W[n,a,i]
//     dq[b,i]   = sum over n, a of G[b,n,m] p[b,n,a] W[n,a,i]
//
// A strip holds whole rows, so its dW and dp are complete. dq is summed over strips: with atomics, or from partial sums
// in the order of the strips.
#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "backward_any.cuh"
#include "backward_lanes.cuh"
#include "backward_matrix.cuh"
#include "build_table.h"
#include "strip.cuh"

namespace projkern::cuda {
namespace {

constexpr int64_t kReduceBlocks = 1024;

// A strip at the one scale that its source has in this launch. Each kind of scale is a kernel, with the registers and
// the shared memory that it needs.
template <Path path, int g, class Weight, class Grad>
PROJKERN_KERNEL(kThreads, 2) project_backward_kernel(PROJKERN_ARGUMENT Table table) {
    const Strip strip = find_strip(table, int32_t(block_index()));
    const Projection& projection = table.projection[strip.source.first_projection];
    if constexpr (path == Path::any) backward_any<Weight, Grad>(table, strip, projection);
    if constexpr (path == Path::lanes) backward_lanes<g, Weight, Grad>(table, strip, projection);
    if constexpr (path == Path::matrix) backward_matrix<g, Weight>(table, strip, projection);
}

// Blocks take up where the last matrix left off: small ones are spread over all blocks, and large ones divided.
PROJKERN_KERNEL(kThreads, 1) sum_partial_dq_kernel(PROJKERN_ARGUMENT Table table) {
    int64_t first_block = 0;  // of the next matrix
    for (int s = 0; s < table.sources; ++s) {
        const Source& source = table.source[s];
        const int64_t strips = (int64_t(source.rows) + source.strip_rows - 1) / source.strip_rows;
        const int64_t size = table.batch * source.cols, blocks = (size + kThreads - 1) / kThreads;
        for (int k = 0; k < source.projections; ++k) {
            const Projection& projection = table.projection[source.first_projection + k];
            const int64_t turn = (block_index() - first_block + kReduceBlocks) % kReduceBlocks;
            for (int64_t element = turn * kThreads + thread_index(); element < size;
                 element += kReduceBlocks * kThreads) {
                const float* share = table.partial_dq + projection.partial_dq + element;
                float sum = 0;
                for (int64_t strip = 0; strip < strips; ++strip) sum += share[strip * size];
                table.dq[element / source.cols * table.q_width + projection.q_offset + element % source.cols] = sum;
            }
            first_block = (first_block + blocks) % kReduceBlocks;
        }
    }
}

using Kind = std::pair<Path, int>;  // and the group

Kind kind_of(const Projection& projection) {
    return {projection.path, projection.path == Path::any ? 0 : projection.row_group};
}

// One launch: the table, with the sources that take part and a scale for each.
struct Launch {
    Kind kind;
    Table table;
};

// Most plans need one launch. A source's scales are in different ones, and so are different kinds: all of a source's
// scales but the one that comes first add to its dW.
std::vector<Launch> divide(const Table& table) {
    std::vector<Launch> launches;
    std::vector<int> begun(table.sources);   // whether a source is in a launch
    std::vector<int> done(Table::capacity);  // whether a scale is
    for (bool more = true; more;) {
        more = false;
        Launch launch{{}, table};
        launch.table.sources = launch.table.strips = 0;
        for (int s = 0; s < table.sources; ++s) {
            const Source& source = table.source[s];
            for (int k = source.first_projection; k < source.first_projection + source.projections; ++k) {
                if (done[k] || (more && kind_of(table.projection[k]) != launch.kind)) continue;
                launch.kind = kind_of(table.projection[k]);
                launch.table.projection[k].adds_to_dW = begun[s];
                Source& part = launch.table.source[launch.table.sources++] = source;
                part.first_projection = k;
                part.projections = 1;
                part.first_strip = launch.table.strips;
                launch.table.strips += (source.rows - 1) / source.strip_rows + 1;
                done[k] = begun[s] = more = true;
                break;
            }
        }
        if (more) launches.push_back(launch);
    }
    return launches;
}

template <Path path, int g, class Weight, class Grad>
void launch_kind(const Table& table, Stream stream) {
    int shared_bytes = 0;
    if constexpr (path == Path::lanes) shared_bytes = sizeof(LanesShared<Weight>);
    if constexpr (path == Path::matrix) shared_bytes = sizeof(MatrixShared<g, Weight>);
    launch(&project_backward_kernel<path, g, Weight, Grad>, table.strips, kThreads, shared_bytes, stream, table);
}

template <int g, class Weight, class Grad>
void launch_fast(const Table& table, Path path, Stream stream) {
    if constexpr (std::is_same_v<Grad, Bfloat16>)
        if (path == Path::matrix) return launch_kind<Path::matrix, g, Weight, Grad>(table, stream);
    launch_kind<Path::lanes, g, Weight, Grad>(table, stream);
}

template <class Weight, class Grad>
void launch_backward(const Table& whole, Stream stream) {
    for (const auto& [kind, table] : divide(whole)) {
        switch (kind.second) {
            case 2: launch_fast<2, Weight, Grad>(table, kind.first, stream); break;
            case 4: launch_fast<4, Weight, Grad>(table, kind.first, stream); break;
            case 8: launch_fast<8, Weight, Grad>(table, kind.first, stream); break;
            default: launch_kind<Path::any, 0, Weight, Grad>(table, stream);
        }
    }
}

template <class Weight>
void launch_backward(const Table& table, DType grad, Stream stream) {
    if (grad == DType::float32)
        launch_backward<Weight, float>(table, stream);
    else
        launch_backward<Weight, Bfloat16>(table, stream);
}

// Empty matrices have no strip that would write their slices.
bool has_empty_matrix(const Plan& plan) {
    for (const Matrix& x : plan.matrices)
        if (x.rows == 0 || x.cols == 0) return true;
    return false;
}

}  // namespace

void project_backward(const Plan& plan, const Backward& call, void* stream_address) {
    const Stream stream = Stream(stream_address);
    const bool empty = has_empty_matrix(plan);
    if (call.dp != nullptr && empty) set_zero(call.dp, call.batch * plan.p_width * sizeof(float), stream);
    if (call.dq != nullptr && (empty || call.workspace == nullptr))
        set_zero(call.dq, call.batch * plan.q_width * sizeof(float), stream);
    for (const Table& table : build_tables(plan, call)) {
        switch (call.weight_dtype) {
            case DType::float32: launch_backward<float>(table, call.grad_dtype, stream); break;
            case DType::bfloat16: launch_backward<Bfloat16>(table, call.grad_dtype, stream); break;
            case DType::float16: launch_backward<Float16>(table, call.grad_dtype, stream); break;
        }
        if (table.dq != nullptr && table.partial_dq != nullptr)
            launch(&sum_partial_dq_kernel, kReduceBlocks, kThreads, 0, stream, table);
    }
}

}  // namespace projkern::cuda
