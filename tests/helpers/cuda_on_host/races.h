// Finds accesses to the same memory that nothing orders, and accesses to memory that nobody gave to the kernel.
//
// The kernels' files are compiled with -fsanitize=thread, which calls a function at each access to memory; races.cpp
// defines these functions. The compiler's own runtime (libtsan) would have to be loaded ahead of Python, remembers only
// a few accesses to an address, and knows neither blocks nor whose memory it is. Here the question has an exact answer:
// two accesses of one launch are ordered if they are of one thread, or of one block with a barrier between, or of one
// warp with a meeting of its lanes between. Without PROJKERN_CHECK_RACES all of this is empty.
#pragma once

#include <cstdint>

namespace projkern::cuda::on_host {

// read_constant: of what nobody writes while the kernel runs.
enum class Access { read, read_constant, write, atomic, copy_starts, copy_ends };

#ifdef PROJKERN_CHECK_RACES
void allow_memory(int count, const char* const* names, const uintptr_t* begins, const int64_t* bytes);
void forget_accesses();
void note_access(Access access, const void* address, int64_t bytes, const void* instruction);
void allow_argument(const void* address, int64_t bytes);
void ignore_stacks(const void* address, int64_t bytes);
#else
inline void allow_memory(int, const char* const*, const uintptr_t*, const int64_t*) {}
inline void forget_accesses() {}
inline void note_access(Access, const void*, int64_t, const void*) {}
inline void allow_argument(const void*, int64_t) {}
inline void ignore_stacks(const void*, int64_t) {}
#endif

}  // namespace projkern::cuda::on_host
