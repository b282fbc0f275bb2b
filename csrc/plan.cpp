#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace projkern {
namespace {

void require(bool condition, size_t matrix, const char* what) {
    if (!condition) throw std::invalid_argument("matrix " + std::to_string(matrix) + " of the plan: " + what);
}

using Slice = std::pair<int64_t, int64_t>;  // begin, end

bool disjoint(std::vector<Slice> slices) {
    std::sort(slices.begin(), slices.end());
    for (size_t i = 1; i < slices.size(); ++i)
        if (slices[i].first < slices[i - 1].second) return false;
    return true;
}

}  // namespace

void validate(const Plan& plan) {
    for (const Weight& w : plan.weights)
        if (w.layers < 0 || w.rows < 0 || w.cols < 0) throw std::invalid_argument("a weight has a negative size");

    std::vector<Slice> p_slices, q_slices;
    for (size_t k = 0; k < plan.matrices.size(); ++k) {
        const Matrix& x = plan.matrices[k];
        require(x.weight >= 0 && x.weight < int64_t(plan.weights.size()), k, "no such weight");
        const Weight& w = plan.weights[x.weight];
        require(x.layer >= 0 && x.layer < w.layers, k, "no such layer");
        require(x.rows == w.rows && x.cols == w.cols, k, "its size is not its weight's size");
        require(x.row_group >= 1 && x.col_group >= 1, k, "a group must be at least 1");
        require(x.rows % x.row_group == 0, k, "row_group does not divide rows");
        require(x.cols % x.col_group == 0, k, "col_group does not divide cols");
        require(x.p_offset >= 0 && x.p_offset + x.rows <= plan.p_width, k, "its slice of p is out of range");
        require(x.q_offset >= 0 && x.q_offset + x.cols <= plan.q_width, k, "its slice of q is out of range");
        if (x.rows > 0) p_slices.emplace_back(x.p_offset, x.p_offset + x.rows);
        if (x.cols > 0) q_slices.emplace_back(x.q_offset, x.q_offset + x.cols);
    }
    if (!disjoint(std::move(p_slices))) throw std::invalid_argument("two matrices of the plan share a part of p");
    if (!disjoint(std::move(q_slices))) throw std::invalid_argument("two matrices of the plan share a part of q");
}

}  // namespace projkern
