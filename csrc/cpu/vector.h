// One register of float32 lanes, as wide as the machine that this file is compiled for.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#if !defined(__GNUC__)
#error "the CPU kernels use the vector extensions of GCC and Clang"
#endif

namespace projkern::cpu::PROJKERN_TARGET {

// Lanes of a register, and registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

struct bfloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

// Rounds to nearest, ties to even. A NaN must not round up to infinity, so it is made quiet instead.
inline Halves to_bfloat16(Vec x) {
    const Bits bits = reinterpret_cast<Bits>(x);
    const Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const Bits is_nan = reinterpret_cast<Bits>(x != x);
    const Bits kept = (rounded & ~is_nan) | ((bits | 0x400000u) & is_nan);
    return __builtin_convertvector(kept >> 16, Halves);
}

inline Vec load(const float* p) {
    Vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline Vec load(const bfloat16* p) {
    Halves x;
    std::memcpy(&x, p, sizeof x);
    return reinterpret_cast<Vec>(__builtin_convertvector(x, Bits) << 16);
}

// Hints, into the first-level cache and into the second; the address may lie anywhere. The first has room for few lines
// that are on their way from memory: what is asked for twice, early into the second, comes faster than either alone.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

// Whether vector i of a row of T, which starts a line, starts one too.
template <class T>
constexpr bool starts_line(int64_t i) {
    return i * kLanes * int64_t(sizeof(T)) % 64 == 0;
}

inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }

inline void store(bfloat16* p, Vec x) {
    const Halves y = to_bfloat16(x);
    std::memcpy(p, &y, sizeof y);
}

// The first `count` lanes; the others load as zero and are not stored.
template <class T>
Vec load_part(const T* p, int64_t count) {
    T part[kLanes] = {};
    std::memcpy(part, p, count * sizeof(T));
    return load(part);
}

template <class T>
void store_part(T* p, Vec x, int64_t count) {
    T part[kLanes];
    store(part, x);
    std::memcpy(p, part, count * sizeof(T));
}

// Stores past the caches, for results far larger than these: the line is not read first, and the
// power-of-two strides of a batch do not fight for one cache set. Needs `can_stream(p)`.
inline void stream(float* p, Vec x) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, x);
#elif defined(__AVX__)
    _mm256_stream_ps(p, x);
#elif defined(__SSE2__)
    _mm_stream_ps(p, x);
#else
    store(p, x);
#endif
}

inline void stream(bfloat16* p, Vec x) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(to_bfloat16(x)));
#elif defined(__AVX__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(to_bfloat16(x)));
#else
    store(p, x);
#endif
}

template <class T>
bool can_stream(const T* p, int64_t row_length) {
    constexpr uint64_t bytes = kLanes * sizeof(T);
    return reinterpret_cast<uint64_t>(p) % bytes == 0 && row_length % kLanes == 0;
}

// Streamed stores are weakly ordered: they have to be on their way before another thread may look.
inline void finish_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

namespace shuffles {

// Lanes I... of a, then b.
template <int... I>
Vec pick(Vec a, Vec b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, Bits{uint32_t(I)...});
#endif
}

template <int... I>
Vec evens(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return pick<(2 * I)...>(a, b);
}

template <int... I>
Vec odds(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return pick<(2 * I + 1)...>(a, b);
}

template <int First, int... I>
Vec zip(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return pick<(First + I / 2 + I % 2 * kLanes)...>(a, b);
}

template <int Group, int Vector, int... I>
Vec repeat(Vec x, std::integer_sequence<int, I...>) {
    return pick<((Vector * kLanes + I) / Group)...>(x, x);
}

using Indices = std::make_integer_sequence<int, kLanes>;

}  // namespace shuffles

// Of the 2 * kLanes elements of a, then b: those at even places, and those at odd places.
inline Vec evens(Vec a, Vec b) { return shuffles::evens(a, b, shuffles::Indices{}); }
inline Vec odds(Vec a, Vec b) { return shuffles::odds(a, b, shuffles::Indices{}); }

// a0 b0 a1 b1 ...: the first half, and the second.
inline Vec zip_low(Vec a, Vec b) { return shuffles::zip<0>(a, b, shuffles::Indices{}); }
inline Vec zip_high(Vec a, Vec b) { return shuffles::zip<kLanes / 2>(a, b, shuffles::Indices{}); }

// Vector number `Vector` of a row in which each lane of x comes Group times.
template <int Group, int Vector>
Vec repeat(Vec x) {
    return shuffles::repeat<Group, Vector>(x, shuffles::Indices{});
}

// Lane i of the result is the sum over the lanes of x[i].
inline Vec sum_each(const Vec* x) {
    Vec sums[kLanes];
    for (int i = 0; i < kLanes; ++i) sums[i] = x[i];
    for (int n = kLanes / 2; n >= 1; n /= 2)
        for (int i = 0; i < n; ++i) sums[i] = evens(sums[2 * i], sums[2 * i + 1]) + odds(sums[2 * i], sums[2 * i + 1]);
    return sums[0];
}

}  // namespace projkern::cpu::PROJKERN_TARGET
