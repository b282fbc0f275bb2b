// Where the gradients go.
#pragma once

#include "strip.cuh"

namespace projkern::cuda {

// The same entry of the table, but read again where it is used rather than kept in registers.
template <class Entry>
PROJKERN_DEVICE const Entry& again(const Entry* table, const Entry& entry) {
    return table[opaque(int(&entry - table))];
}

// Writes dW[element], or adds to it: for the second scale of a source.
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

// The same for four neighbours; element is a multiple of four.
template <class Stored>
PROJKERN_DEVICE void put_four(Stored* address, Pack<float, 4> value, bool add) {
    if (add) {
        const Pack<Stored, 4> old = load<Stored, 4>(address);
        for (int i = 0; i < 4; ++i) value.x[i] += to_float(old.x[i]);
    }
    Pack<Stored, 4> rounded;
    for (int i = 0; i < 4; ++i) rounded.x[i] = from_float<Stored>(value.x[i]);
    store<Stored, 4>(address, rounded);
}

template <class Weight>
PROJKERN_DEVICE void put_dW(const Table& table, const Source& source, int64_t element, const Pack<float, 4>& value,
                            bool add) {
    if (table.wide_dW)
        put_four(static_cast<float*>(source.dW) + element, value, add);
    else
        put_four(static_cast<Weight*>(source.dW) + element, value, add);
}

// A strip's share of dq[b, i].
PROJKERN_DEVICE void put_dq(const Table& table, const Strip& strip, const Projection& projection, int64_t b, int64_t i,
                            float value) {
    if (table.partial_dq == nullptr)
        add_atomically(table.dq + b * table.q_width + projection.q_offset + i, value);
    else
        table.partial_dq[projection.partial_dq + (strip.index * table.batch + b) * strip.source.cols + i] = value;
}

// The same for dq[b, i to i + 4]; i is a multiple of four.
PROJKERN_DEVICE void put_dq(const Table& table, const Strip& strip, const Projection& projection, int64_t b, int64_t i,
                            const Pack<float, 4>& value) {
    if (table.partial_dq == nullptr)
        add_atomically(table.dq + b * table.q_width + projection.q_offset + i, value);
    else
        store<float, 4>(
            table.partial_dq + projection.partial_dq + (strip.index * table.batch + b) * strip.source.cols + i, value);
}

}  // namespace projkern::cuda
