#include "instruction_set.h"
#include "vector.h"

namespace projkern::cpu {

const int kernel_lanes = kLanes;

// clang-format off
// The bits are the places in the table of instruction_set.cpp.
const uint32_t kernel_instruction_sets = 0
#ifdef __SSE4_2__
    | 1u << 0
#endif
#ifdef __AVX__
    | 1u << 1
#endif
#ifdef __AVX2__
    | 1u << 2
#endif
#ifdef __FMA__
    | 1u << 3
#endif
#ifdef __BMI__
    | 1u << 4
#endif
#ifdef __BMI2__
    | 1u << 5
#endif
#ifdef __AVX512F__
    | 1u << 6
#endif
#ifdef __AVX512DQ__
    | 1u << 7
#endif
#ifdef __AVX512CD__
    | 1u << 8
#endif
#ifdef __AVX512BW__
    | 1u << 9
#endif
#ifdef __AVX512VL__
    | 1u << 10
#endif
#ifdef __AVX512VBMI__
    | 1u << 11
#endif
#ifdef __AVX512VBMI2__
    | 1u << 12
#endif
#ifdef __AVX512BF16__
    | 1u << 13
#endif
    ;
// clang-format on

}  // namespace projkern::cpu
