// The two operators: one call each for all matrices of a plan. plan.h has the formula.
#pragma once

#include <vector>

#include "../plan.h"
#include "partition.h"

namespace projkern::cpu {

struct Forward {
    std::vector<const void*> weights;  // one for each weight of the plan
    DType weight_dtype;
    const float* p;
    const float* q;
    std::vector<void*> outputs;  // one for each matrix, (batch, out_rows, out_cols)
    DType output_dtype;
    int64_t batch;
    int threads;
};

struct Backward {
    std::vector<const void*> weights;
    DType weight_dtype;
    const float* p;
    const float* q;
    std::vector<const void*> grads;  // one for each matrix, (batch, out_rows, out_cols)
    DType grad_dtype;
    std::vector<void*> d_weights;  // one for each weight, in the weights' type; null: not needed; empty: none is
    float* dp;                     // null: not needed
    float* dq;
    int64_t batch;
    int threads;
};

#ifdef PROJKERN_TARGET
namespace PROJKERN_TARGET {

void project_forward(const Plan& plan, const Partition& partition, const Forward& call);
void project_backward(const Plan& plan, const Partition& partition, const Backward& call);

}  // namespace PROJKERN_TARGET
#endif

// Results larger than this are streamed past the caches.
constexpr int64_t kStreamBytes = 16 << 20;

}  // namespace projkern::cpu
