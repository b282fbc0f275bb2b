// All that the kernels ask of the device, one small function each. Kernels use nothing else of CUDA, so that the same
// sources also compile as plain C++ against another definition of these functions (tests/helpers/cuda_on_host) and run,
// and are checked for missing barriers, where there is no card.
#pragma once

#include <cstdint>

#ifdef PROJKERN_ON_HOST
#include "on_host.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define PROJKERN_DEVICE __device__ __forceinline__
#define PROJKERN_HOST_DEVICE __host__ __device__ __forceinline__
#define PROJKERN_KERNEL(threads, blocks_per_multiprocessor) \
    __global__ void __launch_bounds__(threads, blocks_per_multiprocessor)
#define PROJKERN_ARGUMENT const __grid_constant__

namespace projkern::cuda {

using Stream = cudaStream_t;

// ---- where a thread is ----

PROJKERN_DEVICE int thread_index() { return threadIdx.x; }
PROJKERN_DEVICE int64_t block_index() { return blockIdx.x; }

// The same value, but the compiler does not know: what follows from it is computed again, not kept in registers.
PROJKERN_DEVICE int opaque(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// The block's shared memory, of the size that it was launched with; aligned to 16 bytes, not initialised.
PROJKERN_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

// ---- waiting for others ----

// All threads of the block; orders accesses to shared and to global memory among them.
PROJKERN_DEVICE void barrier() { __syncthreads(); }

// All 32 threads of the warp; orders their accesses to memory.
PROJKERN_DEVICE void warp_barrier() { __syncwarp(); }

// Nothing waits for it: it keeps the compiler from loading earlier, into more registers, what is needed after it.
PROJKERN_DEVICE void hold_later_loads() { __syncwarp(); }

// The value of the lane whose index differs by the bits of mask. All 32 lanes take part.
PROJKERN_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// ---- storage types: only their bits, so that host and device agree ----

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

PROJKERN_DEVICE float to_float(float x) { return x; }
PROJKERN_DEVICE float to_float(Bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
PROJKERN_DEVICE float to_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Rounded to nearest, ties to even.
template <class T>
PROJKERN_DEVICE T from_float(float x);
template <>
PROJKERN_DEVICE float from_float<float>(float x) {
    return x;
}
template <>
PROJKERN_DEVICE Bfloat16 from_float<Bfloat16>(float x) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
PROJKERN_DEVICE Float16 from_float<Float16>(float x) {
    return {__half_as_ushort(__float2half_rn(x))};
}

// Two bfloat16, the first in the low half: one conversion instruction.
PROJKERN_DEVICE uint32_t pack_bfloat16(float first, float second) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

// Four of the eight bytes of a (0 to 3) and b (4 to 7), named by the four digits of `which`, the lowest first.
PROJKERN_DEVICE uint32_t choose_bytes(uint32_t a, uint32_t b, uint32_t which) { return __byte_perm(a, b, which); }

// a b + c for two bfloat16 at once, each rounded once.
PROJKERN_DEVICE uint32_t multiply_add_bfloat16(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

// ---- memory ----

// n neighbours that move in one access; their address has to be a multiple of their size, at most 16 bytes.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
    static_assert(sizeof(T) * n <= 16, "a thread moves at most 16 bytes at once");
    T x[n];
};

template <class T, int n>
PROJKERN_DEVICE Pack<T, n> load(const T* address) {
    return *reinterpret_cast<const Pack<T, n>*>(address);
}

// The same for 16 bytes that nobody writes while the kernel runs and that are wanted once: the first to leave the
// first-level cache.
template <class T, int n>
PROJKERN_DEVICE Pack<T, n> load_once(const T* address) {
    static_assert(sizeof(T) * n == 16, "load_once moves 16 bytes");
    union {
        uint32_t word[4];
        Pack<T, n> value;
    } loaded;
    asm("ld.global.nc.L1::evict_first.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(loaded.word[0]), "=r"(loaded.word[1]), "=r"(loaded.word[2]), "=r"(loaded.word[3])
        : "l"(address));
    return loaded.value;
}

template <class T, int n>
PROJKERN_DEVICE void store(T* address, const Pack<T, n>& value) {
    *reinterpret_cast<Pack<T, n>*>(address) = value;
}

// 16 bytes from global to shared memory without passing through registers; zeros where not valid (nothing is read
// then). Both addresses are multiples of 16. They are there for the thread that asked after wait_copies, and for others
// after a barrier that follows it.
PROJKERN_DEVICE void copy_async(void* shared, const void* global, bool valid) {
    const uint32_t destination = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}

// Closes a batch of this thread's copies.
PROJKERN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's batches are still under way.
template <int pending>
PROJKERN_DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

PROJKERN_DEVICE void add_atomically(float* address, float value) { atomicAdd(address, value); }

// Each of the four by itself, in one access where the card can.
PROJKERN_DEVICE void add_atomically(float* address, const Pack<float, 4>& value) {
#if __CUDA_ARCH__ >= 900
    atomicAdd(reinterpret_cast<float4*>(address), float4{value.x[0], value.x[1], value.x[2], value.x[3]});
#else
    for (int i = 0; i < 4; ++i) atomicAdd(address + i, value.x[i]);
#endif
}

// ---- tensor cores: bfloat16 in, float32 sums. i = lane / 4, j = lane % 4 ----

// D (16, 8) += A (16, 8) B (8, 8).
// a[0] = A[i][2j, 2j+1], a[1] = A[i+8][2j, 2j+1]; b = B[2j, 2j+1][i];
// d = D[i][2j], D[i][2j+1], D[i+8][2j], D[i+8][2j+1].
PROJKERN_DEVICE void multiply_k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

// D (16, 8) += A (16, 16) B (16, 8). a[2], a[3] and b[1] are as a[0], a[1] and b[0], eight further along the sum.
PROJKERN_DEVICE void multiply_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Transposes an (8, 8) matrix of 16-bit values spread over a warp: each lane gives X[i][2j, 2j+1] and gets
// X[2j, 2j+1][i].
PROJKERN_DEVICE uint32_t transpose_8x8(uint32_t pair) {
    uint32_t transposed;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
    return transposed;
}

// ---- from the host ----

inline void check(cudaError_t code, const char* what) {
    if (code != cudaSuccess)
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code) + " (CUDA error " +
                                 std::to_string(int(code)) + ")");
}

// Runs kernel(argument) on `blocks` blocks.
template <class Argument>
void launch(void (*kernel)(const Argument), int64_t blocks, int threads, int shared_bytes, Stream stream,
            const Argument& argument) {
    if (shared_bytes > 48 << 10)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
              "asking for shared memory");
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(argument);
    check(cudaGetLastError(), "launching a kernel");
}

inline void set_zero(void* memory, int64_t bytes, Stream stream) {
    if (bytes > 0) check(cudaMemsetAsync(memory, 0, bytes, stream), "clearing memory");
}

}  // namespace projkern::cuda

#endif
