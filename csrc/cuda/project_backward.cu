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

#include "backward_any.cuh"
#include "backward_lanes.cuh"
#include "backward_matrix.cuh"
#include "build_table.h"
#include "strip.cuh"

namespace projkern::cuda {
namespace {

constexpr int64_t kReduceBlocks = 1024;

// One scale of every strip whose source has one in this launch. Each kind is a kernel, with the registers and the shared
// memory that it needs, and has launches of its own: one for most plans.
template <Path path, int g, class Weight, class Grad>
PROJKERN_KERNEL(kThreads, 2) project_backward_kernel(PROJKERN_ARGUMENT Table table) {
    const Strip strip = find_strip(table, int32_t(block_index()));
    int k = strip.source.first_scale;
    const int end = k + strip.source.scales;
    while (k < end && table.scale[k].launch != table.launch) ++k;
    if (k == end) return;
    const Scale& scale = table.scale[k];
    if constexpr (path == Path::any) backward_any<Weight, Grad>(table, strip, scale);
    if constexpr (path == Path::lanes) backward_lanes<g, Weight, Grad>(table, strip, scale);
    if constexpr (path == Path::matrix) backward_matrix<g, Weight>(table, strip, scale);
}

// Blocks take up where the last matrix left off: small ones are spread over all blocks, and large ones divided.
PROJKERN_KERNEL(kThreads, 1) sum_partial_dq_kernel(PROJKERN_ARGUMENT Table table) {
    int64_t first_block = 0;  // of the next matrix
    for (int s = 0; s < table.sources; ++s) {
        const Source& source = table.source[s];
        const int64_t strips = (int64_t(source.rows) + source.strip_rows - 1) / source.strip_rows;
        const int64_t size = table.batch * source.cols, blocks = (size + kThreads - 1) / kThreads;
        for (int k = 0; k < source.scales; ++k) {
            const Scale& scale = table.scale[source.first_scale + k];
            const int64_t turn = (block_index() - first_block + kReduceBlocks) % kReduceBlocks;
            for (int64_t element = turn * kThreads + thread_index(); element < size; element += kReduceBlocks * kThreads) {
                const float* share = table.partial_dq + scale.partial_dq + element;
                float sum = 0;
                for (int64_t strip = 0; strip < strips; ++strip) sum += share[strip * size];
                table.dq[element / source.cols * table.q_width + scale.q_offset + element % source.cols] = sum;
            }
            first_block = (first_block + blocks) % kReduceBlocks;
        }
    }
}

using Kind = std::pair<Path, int>;  // and the group

Kind kind_of(const Scale& scale) { return {scale.path, scale.path == Path::any ? 0 : scale.row_group}; }

// Gives each scale its launch, so that no launch has two of one source, nor two kinds. Says the kinds of the launches. All
// scales of a source but the first add to dW.
std::vector<Kind> plan_launches(Table& table) {
    std::vector<Kind> launches;
    for (const Source* source = table.source; source < table.source + table.sources; ++source) {
        std::vector<Scale*> scales;
        for (int k = 0; k < source->scales; ++k) scales.push_back(&table.scale[source->first_scale + k]);
        for (Scale* scale : scales) {
            const auto taken = [&](int32_t launch) {
                return std::any_of(scales.begin(), scales.end(), [&](Scale* other) { return other < scale && other->launch == launch; });
            };
            scale->launch = 0;
            while (scale->launch < int32_t(launches.size()) &&
                   (launches[scale->launch] != kind_of(*scale) || taken(scale->launch)))
                ++scale->launch;
            if (scale->launch == int32_t(launches.size())) launches.push_back(kind_of(*scale));
        }
        const auto first = std::min_element(scales.begin(), scales.end(), [](Scale* a, Scale* b) { return a->launch < b->launch; });
        for (Scale* scale : scales) scale->adds_to_dW = table.accumulate || scale != *first;
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
void launch_backward(Table& table, Stream stream) {
    const std::vector<Kind> launches = plan_launches(table);
    for (const auto& [path, group] : launches) {
        switch (group) {
            case 2: launch_fast<2, Weight, Grad>(table, path, stream); break;
            case 4: launch_fast<4, Weight, Grad>(table, path, stream); break;
            case 8: launch_fast<8, Weight, Grad>(table, path, stream); break;
            default: launch_kind<Path::any, 0, Weight, Grad>(table, stream);
        }
        ++table.launch;
    }
}

template <class Weight>
void launch_backward(Table& table, DType grad, Stream stream) {
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
    for (Table& table : build_tables(plan, call)) {
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
