// Where the gradients go.
#pragma once

#include "strip.cuh"

namespace projkern::cuda {

// Writes dW[element], or adds to it: for the second scale of a source, or on request.
template <class Weight>
PROJKERN_DEVICE void put_dW(const Table& table, const Source& source, int64_t element, float value, bool add) {
    if (table.wide_dW) {
        float* d = static_cast<float*>(source.dW) + element;
        *d = add ? *d + value : value;
    } else {
        Weight* d = static_cast<Weight*>(source.dW) + element;
        *d = from_float<Weight>(add ? to_float(*d) + value : value);
    }
}

// A strip's share of dq[b, i].
PROJKERN_DEVICE void put_dq(const Table& table, const Strip& strip, const Scale& scale, int64_t b, int64_t i, float value) {
    if (table.partial_dq == nullptr)
        add_atomically(table.dq + b * table.q_width + scale.q_offset + i, value);
    else
        table.partial_dq[scale.partial_dq + (strip.index * table.batch + b) * strip.source.cols + i] = value;
}

}  // namespace projkern::cuda
