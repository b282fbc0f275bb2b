// The targets: sets of instructions that the kernels were compiled for, all in one library.
//
// kernel_target.cpp, project_forward.cpp and project_backward.cpp are compiled once for each target, and all
// that they compile lies in a namespace of its name. Of an inline function outside it the linker would keep
// one copy for all targets, with instructions that some processors lack.
#pragma once

#include <cstdint>
#include <string>

#include "project.h"

namespace projkern::cpu {

// Of one target. Set by kernel_target.cpp: plain data, so that nothing is executed to read it.
struct Kernels {
    const char* target;
    const char* flags;          // of the compiler
    int float32_lanes;          // of a register
    uint32_t instruction_sets;  // needed: bits of targets.cpp
    void (*project_forward)(const Plan&, const Partition&, const Forward&);
    void (*project_backward)(const Plan&, const Partition&, const Backward&);
};

// Separated by spaces, from the one that most processors can run to the one that needs most of them.
std::string target_names();

// The last target that this processor can run; none after the one named `cap`, which may be null or empty. Throws
// std::runtime_error where there is none, or where `cap` is not one of those that can run.
const Kernels& choose_target(const char* cap);

}  // namespace projkern::cpu
