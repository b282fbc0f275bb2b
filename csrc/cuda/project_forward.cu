// W_s[b,n,m] = sum over a, c of p[b,n,a] W[n,a,m,c] q[b,m,c] for every matrix of a plan, one block for each strip.
#include <algorithm>
#include <type_traits>

#include "build_table.h"
#include "forward_any.cuh"
#include "forward_lanes.cuh"
#include "forward_matrix.cuh"
#include "strip.cuh"

namespace projkern::cuda {
namespace {

template <int g, class Weight, class Output>
PROJKERN_DEVICE void forward_fast(const Table& table, const Strip& strip, const Projection& projection) {
    if constexpr (g > 2 && std::is_same<Output, Bfloat16>::value)
        if (projection.path == Path::matrix) return forward_matrix<g, Weight>(table, strip, projection);
    forward_lanes<g, Weight, Output>(table, strip, projection);
}

template <class Weight, class Output>
PROJKERN_KERNEL(kThreads, 2) project_forward_kernel(PROJKERN_ARGUMENT Table table) {
    const Strip strip = find_strip(table, int32_t(block_index()));
    for (int k = strip.source.first_projection; k < strip.source.first_projection + strip.source.projections; ++k) {
        const Projection& projection = table.projection[k];
        switch (projection.path == Path::any ? 0 : projection.row_group) {
            case 2: forward_fast<2, Weight, Output>(table, strip, projection); break;
            case 4: forward_fast<4, Weight, Output>(table, strip, projection); break;
            case 8: forward_fast<8, Weight, Output>(table, strip, projection); break;
            default: forward_any<Weight, Output>(table, strip, projection);
        }
    }
}

template <class Weight>
int shared_bytes(const Table& table) {
    int bytes = 0;
    for (const Projection& projection : table.projection) {
        if (projection.path == Path::lanes) bytes = std::max(bytes, Staged<Lanes>::kBytes);
        if (projection.path == Path::matrix)
            bytes = std::max(bytes, projection.row_group == 4 ? Staged<MatrixLayout<4, Weight>>::kBytes
                                                              : Staged<MatrixLayout<8, Weight>>::kBytes);
    }
    return bytes;
}

template <class Weight>
void launch_forward(const Table& table, DType output, Stream stream) {
    const auto kernel =
        output == DType::float32 ? &project_forward_kernel<Weight, float> : &project_forward_kernel<Weight, Bfloat16>;
    launch(kernel, table.strips, kThreads, shared_bytes<Weight>(table), stream, table);
}

}  // namespace

void project_forward(const Plan& plan, const Forward& call, void* stream) {
    if (call.batch == 0) return;
    for (const Table& table : build_tables(plan, call)) {
        switch (call.weight_dtype) {
            case DType::float32: launch_forward<float>(table, call.output_dtype, Stream(stream)); break;
            case DType::bfloat16: launch_forward<Bfloat16>(table, call.output_dtype, Stream(stream)); break;
            case DType::float16: launch_forward<Float16>(table, call.output_dtype, Stream(stream)); break;
        }
    }
}

}  // namespace projkern::cuda
