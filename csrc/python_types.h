// How Python hands over a plan, addresses and storage types; shared by the two extension modules.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "plan.h"

namespace projkern {

using Address = uintptr_t;
using WeightRow = std::tuple<int64_t, int64_t, int64_t>;
using MatrixRow = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> pointers(const std::vector<Address>& addresses, size_t expected, const char* what) {
    if (addresses.size() != expected)
        throw std::invalid_argument(std::to_string(addresses.size()) + " " + what + " for a plan of " +
                                    std::to_string(expected));
    std::vector<T*> result;
    for (Address address : addresses) result.push_back(pointer<T>(address));
    return result;
}

inline DType dtype(const std::string& name) {
    if (name == "float32") return DType::float32;
    if (name == "bfloat16") return DType::bfloat16;
    if (name == "float16") return DType::float16;
    throw std::invalid_argument("storage type " + name + " is not float32, bfloat16 or float16");
}

inline Plan make_plan(const std::vector<WeightRow>& weights, const std::vector<MatrixRow>& matrices, int64_t p_width,
                      int64_t q_width) {
    Plan plan{{}, {}, p_width, q_width};
    for (const auto& [layers, rows, cols] : weights) plan.weights.push_back({layers, rows, cols});
    for (const auto& [weight, layer, rows, cols, row_group, col_group, p_offset, q_offset] : matrices)
        plan.matrices.push_back({weight, layer, rows, cols, row_group, col_group, p_offset, q_offset});
    validate(plan);
    return plan;
}

}  // namespace projkern
