// Compiled for the plain baseline of the architecture: this runs before any kernel may.
#include "targets.h"

#include <iterator>
#include <stdexcept>
#include <vector>

namespace projkern::cpu {

// PROJKERN_TARGETS is TARGET(baseline) TARGET(avx2) ...
#define TARGET(name)              \
    namespace name {              \
    extern const Kernels kernels; \
    }
PROJKERN_TARGETS
#undef TARGET

namespace {

#define TARGET(name) &name::kernels,
const Kernels* const targets[] = {PROJKERN_TARGETS};
#undef TARGET

// A bit for each that is here, in the order of kernel_target.cpp.
uint32_t instruction_sets() {
    uint32_t here = 0;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    int bit = 0;
#define SET(name) here |= uint32_t(__builtin_cpu_supports(name) != 0) << bit++
    SET("sse4.2"), SET("avx"), SET("avx2"), SET("fma"), SET("bmi"), SET("bmi2");
    SET("avx512f"), SET("avx512dq"), SET("avx512cd"), SET("avx512bw"), SET("avx512vl");
    SET("avx512vbmi"), SET("avx512vbmi2");
#if defined(__clang__) || __GNUC__ >= 10
    SET("avx512bf16");
#endif
#undef SET
#endif
    return here;
}

std::string join(const std::vector<const Kernels*>& list, const char* separator) {
    std::string names;
    for (const Kernels* kernels : list) names += (names.empty() ? "" : separator) + std::string(kernels->target);
    return names;
}

}  // namespace

std::string target_names() { return join({std::begin(targets), std::end(targets)}, " "); }

const Kernels& choose_target(const char* cap) {
    const uint32_t here = instruction_sets();
    std::vector<const Kernels*> runnable;
    for (const Kernels* kernels : targets)
        if ((kernels->instruction_sets & ~here) == 0) runnable.push_back(kernels);
    if (runnable.empty())
        throw std::runtime_error("the kernels were compiled for " + target_names() +
                                 ", and this processor can run none of these");
    if (!cap || !*cap) return *runnable.back();
    for (const Kernels* kernels : runnable)
        if (std::string(kernels->target) == cap) return *kernels;
    throw std::runtime_error("PROJKERN_INSTRUCTION_SET must be " + join(runnable, " or ") +
                             ", which this processor can run; it was " + cap);
}

}  // namespace projkern::cpu
