// W_s[b,n,m] = sum over a, c of p[b,n,a] W[n,a,m,c] q[b,m,c] for every matrix of a plan, one block for each strip.
#include "build_table.h"
#include "forward_any.cuh"
#include "strip.cuh"

namespace projkern::cuda {
namespace {

template <class Weight, class Output>
PROJKERN_KERNEL(kThreads, 2) project_forward_kernel(PROJKERN_ARGUMENT Table table) {
    const Strip strip = find_strip(table, int32_t(block_index()));
    for (int k = 0; k < strip.source.scales; ++k) {
        const Scale& scale = table.scale[strip.source.first_scale + k];
        forward_any<Weight, Output>(table, strip, scale);
    }
}

template <class Weight>
void launch_forward(const Table& table, DType output, Stream stream) {
    const auto kernel = output == DType::float32 ? &project_forward_kernel<Weight, float>
                                                 : &project_forward_kernel<Weight, Bfloat16>;
    launch(kernel, table.strips, kThreads, 0, stream, table);
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
