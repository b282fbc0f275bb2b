// The primitives of csrc/cuda/primitives.cuh for the host: same names, same contract (its comments), so that the very
// kernels that a card runs are compiled by a C++ compiler and run, checked, where there is none. See build.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "machine.h"

#define PROJKERN_DEVICE inline
#define PROJKERN_HOST_DEVICE inline
#define PROJKERN_KERNEL(threads, blocks_per_multiprocessor) void
// Kernels take their argument by value. Here each of the threads would copy all its kilobytes: a reference does.
#define PROJKERN_ARGUMENT ::projkern::cuda::on_host::ByReference::

namespace projkern::cuda {

struct Table;

namespace on_host {

struct ByReference {
    using Table = const cuda::Table&;
};

inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float low_half(uint32_t pair) { return float_of_bits(pair << 16); }
inline float high_half(uint32_t pair) { return float_of_bits(pair & 0xffff0000u); }

[[gnu::always_inline]] inline void require_aligned(const void* address, size_t bytes, const char* what) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
        fail("%s an address that is no multiple of %zu", what, bytes);
}

// What a lane brings to a product: D (16, 8) += A (16, 8 halves) B (8 halves, 8), for one or two halves.
struct Product {
    float* d;
    const uint32_t *a, *b;
};

template <int halves>
void multiply(void* const (&lanes)[32]) {
    float A[16][8 * halves], B[8 * halves][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Product& x = *static_cast<const Product*>(lanes[lane]);
        const int i = lane / 4, j = lane % 4;
        for (int half = 0; half < halves; ++half) {
            const int k = 8 * half + 2 * j;
            A[i][k] = low_half(x.a[2 * half]);
            A[i][k + 1] = high_half(x.a[2 * half]);
            A[i + 8][k] = low_half(x.a[2 * half + 1]);
            A[i + 8][k + 1] = high_half(x.a[2 * half + 1]);
            B[k][i] = low_half(x.b[half]);
            B[k + 1][i] = high_half(x.b[half]);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* d = static_cast<const Product*>(lanes[lane])->d;
        for (int element = 0; element < 4; ++element) {
            const int row = lane / 4 + 8 * (element / 2), col = 2 * (lane % 4) + element % 2;
            for (int k = 0; k < 8 * halves; ++k) d[element] += A[row][k] * B[k][col];
        }
    }
}

}  // namespace on_host

using Stream = void*;

// ---- where a thread is ----

inline int thread_index() { return on_host::place.thread; }
inline int64_t block_index() { return on_host::place.block; }

inline int opaque(int value) { return value; }

// Starts as NaN in every type.
inline unsigned char* shared_memory() {
    if (on_host::place.shared_bytes == 0) on_host::fail("there is no shared memory: the launch asked for none");
    return on_host::place.shared;
}

// ---- waiting for others ----

inline void barrier() { on_host::wait_for_block(); }

inline void warp_barrier() {
    on_host::wait_for_warp("warp_barrier", [](void* const(&)[32]) {}, nullptr);
}

inline void hold_later_loads() {}

inline float shuffle_xor(float value, int mask) {
    struct Lane {
        float given, got;
        int mask;
    } lane{value, 0, mask};
    on_host::wait_for_warp(
        "shuffle_xor",
        [](void* const(&lanes)[32]) {
            for (int l = 0; l < 32; ++l) {
                Lane& mine = *static_cast<Lane*>(lanes[l]);
                if (mine.mask < 0 || mine.mask >= 32) on_host::fail("shuffle_xor with mask %d", mine.mask);
                mine.got = static_cast<const Lane*>(lanes[l ^ mine.mask])->given;
            }
        },
        &lane);
    return lane.got;
}

// ---- storage types ----

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bfloat16 x) { return on_host::float_of_bits(uint32_t(x.bits) << 16); }
inline float to_float(Float16 x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = uint32_t(x.bits & 0x7fffu) << 13;
    const bool finite = (x.bits & 0x7c00u) != 0x7c00u;
    if (!finite) return on_host::float_of_bits(sign | rest | 0x7f800000u);
    // The exponents' biases differ by 112; a product does subnormal numbers too.
    return on_host::float_of_bits(sign | on_host::bits_of_float(on_host::float_of_bits(rest) * 0x1p112f));
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
    return x;
}
template <>
inline Bfloat16 from_float<Bfloat16>(float x) {
    const uint32_t bits = on_host::bits_of_float(x);
    if (std::isnan(x)) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Float16 from_float<Float16>(float x) {
    if (std::isnan(x)) return {0x7fff};
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (size >= 65520) return {uint16_t(sign | 0x7c00)};
    if (size < 0x1p-14f) return {uint16_t(sign | uint16_t(std::nearbyint(size * 0x1p24f)))};
    const uint32_t bits = on_host::bits_of_float(size) - (112u << 23);
    return {uint16_t(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13)};
}

inline uint32_t pack_bfloat16(float first, float second) {
    return from_float<Bfloat16>(first).bits | uint32_t(from_float<Bfloat16>(second).bits) << 16;
}

inline uint32_t choose_bytes(uint32_t a, uint32_t b, uint32_t which) {
    const uint64_t both = a | uint64_t(b) << 32;
    uint32_t chosen = 0;
    for (int i = 0; i < 4; ++i) chosen |= uint32_t(both >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
    return chosen;
}

inline uint32_t multiply_add_bfloat16(uint32_t a, uint32_t b, uint32_t c) {
    using namespace on_host;
    // A product of bfloat16 is exact in double.
    const double low = double(low_half(a)) * low_half(b) + low_half(c);
    const double high = double(high_half(a)) * high_half(b) + high_half(c);
    return pack_bfloat16(float(low), float(high));
}

// ---- memory ----

template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
    static_assert(sizeof(T) * n <= 16, "a thread moves at most 16 bytes at once");
    T x[n];
};

template <class T, int n>
[[gnu::always_inline]] inline Pack<T, n> load(const T* address) {
    on_host::require_aligned(address, sizeof(Pack<T, n>), "loads from");
    return *reinterpret_cast<const Pack<T, n>*>(address);
}

template <class T, int n>
[[gnu::always_inline]] inline Pack<T, n> load_constant(const T* address) {
    static_assert(sizeof(T) * n == 16, "it moves 16 bytes");
    on_host::read_constant(address, 16);
    return load<T, n>(address);
}

template <class T, int n>
[[gnu::always_inline]] inline Pack<T, n> load_once(const T* address) {
    return load_constant<T, n>(address);
}

template <class T, int n>
[[gnu::always_inline]] inline void store(T* address, const Pack<T, n>& value) {
    on_host::require_aligned(address, sizeof(Pack<T, n>), "stores to");
    *reinterpret_cast<Pack<T, n>*>(address) = value;
}

inline void copy_async(void* shared, const void* global, bool valid) {
    on_host::require_aligned(shared, 16, "copy_async to");
    on_host::require_aligned(global, 16, "copy_async from");
    on_host::start_copy(shared, global, valid);
}

inline void commit_copies() { on_host::commit_copies(); }

template <int pending>
void wait_copies() {
    on_host::finish_copies(pending);
}

inline void add_atomically(float* address, float value) { on_host::add_atomically(address, value); }

inline void add_atomically(float* address, const Pack<float, 4>& value) {
    on_host::require_aligned(address, 16, "adds to");
    for (int i = 0; i < 4; ++i) on_host::add_atomically(address + i, value.x[i]);
}

// ---- tensor cores ----

inline void multiply_k8(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
    on_host::Product mine{d, a, &b};
    on_host::wait_for_warp("multiply_k8", &on_host::multiply<1>, &mine);
}

inline void multiply_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    on_host::Product mine{d, a, b};
    on_host::wait_for_warp("multiply_k16", &on_host::multiply<2>, &mine);
}

inline uint32_t transpose_8x8(uint32_t pair) {
    on_host::wait_for_warp(
        "transpose_8x8",
        [](void* const(&lanes)[32]) {
            uint32_t X[8][8];
            for (int lane = 0; lane < 32; ++lane) {
                const uint32_t given = *static_cast<const uint32_t*>(lanes[lane]);
                X[lane / 4][2 * (lane % 4)] = given & 0xffff;
                X[lane / 4][2 * (lane % 4) + 1] = given >> 16;
            }
            for (int lane = 0; lane < 32; ++lane) {
                const int i = lane / 4, j = lane % 4;
                *static_cast<uint32_t*>(lanes[lane]) = X[2 * j][i] | X[2 * j + 1][i] << 16;
            }
        },
        &pair);
    return pair;
}

// ---- from the host ----

template <class Argument>
void launch(void (*kernel)(const Argument&), int64_t blocks, int threads, int shared_bytes, Stream,
            const Argument& argument) {
    const auto call = [](void (*kernel)(), const void* argument) {
        reinterpret_cast<void (*)(const Argument&)>(kernel)(*static_cast<const Argument*>(argument));
    };
    const on_host::Work work{call, reinterpret_cast<void (*)()>(kernel), &argument, sizeof argument};
    on_host::run(work, blocks, threads, shared_bytes);
}

inline void set_zero(void* memory, int64_t bytes, Stream) {
    if (bytes > 0) std::memset(memory, 0, bytes);
}

}  // namespace projkern::cuda
