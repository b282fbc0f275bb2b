// Runs units of work on the threads of the OpenMP runtime that the caller's process already uses.
//
// A second pool beside it would fight for the cores: OpenMP's workers spin for a while after each
// region. So nothing here links OpenMP. The process hands over the address of its GOMP_parallel, which
// GCC's, LLVM's and Intel's runtimes all export; without one, each call starts std::threads.
#pragma once

#include <cstdint>

namespace projkern::cpu {

using GompParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

void use_openmp(GompParallel parallel);

// Calls body(data, i) once for each i in [0, count), in any order and on up to `threads` threads. What a
// body throws is thrown again here.
void parallel_for(int64_t count, int threads, void (*body)(const void* data, int64_t i), const void* data);

// The same for body(i). No std::function: its destructor would be shared by all targets (targets.h).
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
    parallel_for(count, threads, [](const void* data, int64_t i) { (*static_cast<const Body*>(data))(i); }, &body);
}

}  // namespace projkern::cpu
