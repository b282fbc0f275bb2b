#include "targets.h"
#include "vector.h"

#define TEXT(x) #x
#define NAME(x) TEXT(x)

namespace projkern::cpu::PROJKERN_TARGET {
namespace {

// clang-format off
// In the order of targets.cpp.
constexpr uint32_t kInstructionSets = 0
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

}  // namespace

extern const Kernels kernels;
const Kernels kernels{NAME(PROJKERN_TARGET), PROJKERN_FLAGS,  kLanes,
                      kInstructionSets,      project_forward, project_backward};

}  // namespace projkern::cpu::PROJKERN_TARGET
