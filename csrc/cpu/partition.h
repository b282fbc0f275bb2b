// Units of work: ranges of source rows, each a multiple of every row group that shares the matrix.
//
// The partition depends on the plan alone, never on the number of threads, so that every sum is taken
// in the same order whoever takes the unit.
#pragma once

#include <cstdint>
#include <vector>

#include "../plan.h"

namespace projkern::cpu {

// One matrix in memory and the entries of the plan that read it: one for each scale.
struct Source {
    int64_t weight, layer, rows, cols;
    int64_t row_step;    // the least common multiple of the row groups
    int64_t chunk_rows;  // read together, and small enough to stay in cache from one scale to the next
    std::vector<int64_t> matrices;
    int64_t first_unit = 0, units = 0;

    bool shared() const { return matrices.size() > 1; }
};

struct Unit {
    int64_t source, first_row, rows;
};

struct Partition {
    std::vector<Source> sources;  // every layer of every weight, read by the plan or not
    std::vector<Unit> units;
    std::vector<int64_t> source_of;  // of each matrix
    int64_t elements = 0;            // of all sources

    explicit Partition(const Plan& plan);
};

// How many of `threads` are worth waking.
int useful_threads(const Partition& partition, int64_t batch, int threads);

}  // namespace projkern::cpu
