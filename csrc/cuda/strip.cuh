// What a block works on.
#pragma once

#include "primitives.cuh"
#include "table.h"

namespace projkern::cuda {

constexpr int kThreads = 256;
constexpr int kStripRows = 64;  // at most, for the fast paths: eight rows a warp

struct Strip {
    const Source& source;
    int32_t index;       // within its source
    int32_t first, end;  // rows

    PROJKERN_DEVICE int32_t rows() const { return end - first; }
};

PROJKERN_DEVICE Strip find_strip(const Table& table, int32_t unit) {
    int low = 0, high = table.sources;  // the last source whose first strip is not behind the unit
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (table.source[middle].first_strip <= unit ? low : high) = middle;
    }
    const Source& source = table.source[low];
    const int32_t index = unit - source.first_strip;
    const int32_t first = index * source.strip_rows;
    const int32_t end = first + source.strip_rows;
    return {source, index, first, end < source.rows ? end : source.rows};
}

// Unsigned, and with a remainder that says how many there are: so the compiler sees that quotients need no rounding.
PROJKERN_DEVICE int warp_index() { return unsigned(thread_index()) / 32 % (kThreads / 32); }
PROJKERN_DEVICE int lane_index() { return unsigned(thread_index()) % 32; }

}  // namespace projkern::cuda
