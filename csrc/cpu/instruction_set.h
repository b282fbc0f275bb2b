// Whether this machine has the instructions that the kernels were compiled for.
#pragma once

#include <cstdint>
#include <string>

namespace projkern::cpu {

// Set by kernel_target.cpp, which is compiled as the kernels are: plain data, nothing to execute.
extern const uint32_t kernel_instruction_sets;
extern const int kernel_lanes;

// The names of those missing here, separated by spaces; empty if the kernels can run.
std::string missing_instruction_sets();

}  // namespace projkern::cpu
