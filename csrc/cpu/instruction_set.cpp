// Compiled for the plain baseline of the architecture: this runs before any kernel may.
#include "instruction_set.h"

namespace projkern::cpu {

std::string missing_instruction_sets() {
    std::string missing;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    const struct {
        const char* name;
        bool here;
    } table[] = {
#define SET(name) {name, __builtin_cpu_supports(name) != 0}
        SET("sse4.2"),   SET("avx"),        SET("avx2"),        SET("fma"),        SET("bmi"),
        SET("bmi2"),     SET("avx512f"),    SET("avx512dq"),    SET("avx512cd"),   SET("avx512bw"),
        SET("avx512vl"), SET("avx512vbmi"), SET("avx512vbmi2"), SET("avx512bf16"),
#undef SET
    };
    for (uint32_t i = 0; i < sizeof table / sizeof table[0]; ++i)
        if ((kernel_instruction_sets >> i & 1) && !table[i].here)
            missing += (missing.empty() ? "" : " ") + std::string(table[i].name);
#endif
    return missing;
}

}  // namespace projkern::cpu
