// The gradients of the projection for every matrix of a plan, one block for each strip of a source:
//
//     dW[n,a,i] = sum over b of p[b,n,a] G[b,n,m] q[b,i]           i = (m, c)
//     dp[b,n,a] = sum over i of G[b,n,m] q[b,i] W[n,a,i]
//     dq[b,i]   = sum over n, a of G[b,n,m] p[b,n,a] W[n,a,i]
//
// A strip holds whole rows, so its dW and dp are complete. dq is summed over strips: with atomics, or from partial sums
// in the order of the strips.
#include <algorithm>

#include "backward_any.cuh"
#include "backward_lanes.cuh"
#include "backward_matrix.cuh"
#include "build_table.h"
#include "strip.cuh"

namespace projkern::cuda {
namespace {

constexpr int64_t kReduceBlocks = 1024;

template <int g, class Weight, class Grad>
PROJKERN_DEVICE void backward_fast(const Table& table, const Strip& strip, const Scale& scale, bool add_to_dW) {
    if constexpr (std::is_same_v<Grad, Bfloat16>)
        if (scale.path == Path::matrix) return backward_matrix<g, Weight>(table, strip, scale, add_to_dW);
    backward_lanes<g, Weight, Grad>(table, strip, scale, add_to_dW);
}

template <class Weight, class Grad>
PROJKERN_KERNEL(kThreads, 2) project_backward_kernel(PROJKERN_ARGUMENT Table table) {
    const Strip strip = find_strip(table, int32_t(block_index()));
    for (int k = 0; k < strip.source.scales; ++k) {
        const Scale& scale = table.scale[strip.source.first_scale + k];
        const bool add_to_dW = table.accumulate || k > 0;
        if (k > 0) barrier();  // one scale's dW is there before the next adds to it, and shared memory is free
        switch (scale.path == Path::any ? 0 : scale.row_group) {
            case 2: backward_fast<2, Weight, Grad>(table, strip, scale, add_to_dW); break;
            case 4: backward_fast<4, Weight, Grad>(table, strip, scale, add_to_dW); break;
            case 8: backward_fast<8, Weight, Grad>(table, strip, scale, add_to_dW); break;
            default: backward_any<Weight, Grad>(table, strip, scale, add_to_dW);
        }
    }
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

template <class Weight>
int shared_bytes(const Scale& scale) {
    if (scale.path == Path::any) return 0;
    if (scale.path == Path::lanes) return sizeof(LanesShared<Weight>);
    return scale.row_group == 2   ? sizeof(MatrixShared<2, Weight>)
           : scale.row_group == 4 ? sizeof(MatrixShared<4, Weight>)
                                  : sizeof(MatrixShared<8, Weight>);
}

template <class Weight>
int most_shared_bytes(const Table& table) {
    int most = 0;
    for (int s = 0; s < table.sources; ++s)
        for (int k = 0; k < table.source[s].scales; ++k)
            most = std::max(most, shared_bytes<Weight>(table.scale[table.source[s].first_scale + k]));
    return most;
}

template <class Weight>
void launch_backward(const Table& table, DType grad, Stream stream) {
    const auto kernel = grad == DType::float32 ? &project_backward_kernel<Weight, float>
                                               : &project_backward_kernel<Weight, Bfloat16>;
    launch(kernel, table.strips, kThreads, most_shared_bytes<Weight>(table), stream, table);
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
