// The projection on a CUDA card: a whole plan in one launch each way (more only for a plan beyond Table::capacity).
#pragma once

#include <vector>

#include "../plan.h"

namespace projkern::cuda {

// All addresses are of the device that is current. p: (batch, plan.p_width), q: (batch, plan.q_width), float32.
struct Forward {
    std::vector<const void*> weights;  // one for each weight of the plan
    DType weight_dtype;                // float32, bfloat16 or float16
    const float *p, *q;
    std::vector<void*> outputs;  // one for each matrix: (batch, out_rows, out_cols)
    DType output_dtype;          // float32 or bfloat16
    int64_t batch;
};

struct Backward {
    std::vector<const void*> weights;
    DType weight_dtype;
    const float *p, *q;
    std::vector<const void*> grads;  // as the outputs
    DType grad_dtype;
    std::vector<void*> d_weights;  // as the weights, null where not needed; empty: none is needed
    DType d_weight_dtype;          // that of the weights, or float32
    float *dp, *dq;                // as p and q, null where not needed
    float* workspace;              // partial_dq_size floats: the order of every sum is fixed; null: it is not
    int64_t batch;
};

// `stream` is a cudaStream_t. Throw std::runtime_error with CUDA's own words if a launch fails.
void project_forward(const Plan& plan, const Forward& call, void* stream);
void project_backward(const Plan& plan, const Backward& call, void* stream);

// Floats of workspace for a backward with a fixed order of dq's sums.
int64_t partial_dq_size(const Plan& plan, int64_t batch);

}  // namespace projkern::cuda
