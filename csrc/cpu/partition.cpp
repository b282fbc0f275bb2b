#include "partition.h"

#include <algorithm>
#include <numeric>

namespace projkern::cpu {
namespace {

// Few rows in a unit share the work well; many keep partial dq, one row of batch * cols for each unit of a source that
// has several, small beside the unit's own traffic.
constexpr int64_t kMostRows = 2048, kFewestRows = 32, kWantedUnits = 32;

constexpr int64_t kChunkBytes = 256 * 1024;

// To wake a thread takes as long as this many multiply-adds.
constexpr int64_t kWorkOfThread = 1 << 18;

int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

}  // namespace

Partition::Partition(const Plan& plan) : source_of(plan.matrices.size()) {
    std::vector<int64_t> first_source;
    int64_t all_rows = 0;
    for (size_t w = 0; w < plan.weights.size(); ++w) {
        const Weight& weight = plan.weights[w];
        first_source.push_back(int64_t(sources.size()));
        for (int64_t layer = 0; layer < weight.layers; ++layer)
            sources.push_back({int64_t(w), layer, weight.rows, weight.cols, 1, 0, {}});
        all_rows += weight.layers * weight.rows;
        elements += weight.size();
    }
    for (size_t k = 0; k < plan.matrices.size(); ++k) {
        const Matrix& x = plan.matrices[k];
        source_of[k] = first_source[x.weight] + x.layer;
        Source& source = sources[source_of[k]];
        source.matrices.push_back(int64_t(k));
        // Each row group divides the rows, and so does their least common multiple.
        source.row_step = std::lcm(source.row_step, x.row_group);
    }

    const int64_t wanted_rows = std::clamp(all_rows / kWantedUnits, kFewestRows, kMostRows);
    for (size_t s = 0; s < sources.size(); ++s) {
        Source& source = sources[s];
        const int64_t unit_rows = round_up(wanted_rows, source.row_step);
        const int64_t cached_rows = kChunkBytes / 4 / std::max<int64_t>(source.cols, 1);
        source.chunk_rows = source.shared()
                                ? std::min(unit_rows, round_up(std::max<int64_t>(cached_rows, 1), source.row_step))
                                : unit_rows;
        source.first_unit = int64_t(units.size());
        for (int64_t row = 0; row < source.rows; row += unit_rows)
            units.push_back({int64_t(s), row, std::min(unit_rows, source.rows - row)});
        source.units = int64_t(units.size()) - source.first_unit;
    }
}

int useful_threads(const Partition& partition, int64_t batch, int threads) {
    return int(std::min<int64_t>(threads, 1 + partition.elements * batch / kWorkOfThread));
}

}  // namespace projkern::cpu
