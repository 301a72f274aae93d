// Eight numbers at a time: an AVX register, or two of NEON or SSE.

#pragma once

#ifdef __ARM_NEON
#include <arm_neon.h>
#endif
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "numbers.hpp"

namespace lmsmith {

typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int16_t i16x16 __attribute__((vector_size(32)));

const int EIGHT = 8;

template <typename V>
inline V load(const void* from) {
    V result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

// a x b + sum, rounded once where the processor can.
inline f32x8 multiply_add(f32x8 a, f32x8 b, f32x8 sum) {
#if defined(__FMA__)
    return (f32x8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__ARM_NEON)
    struct Halves { float32x4_t low, high; } x, y, z;
    std::memcpy(&x, &a, 32), std::memcpy(&y, &b, 32), std::memcpy(&z, &sum, 32);
    z = {vfmaq_f32(z.low, x.low, y.low), vfmaq_f32(z.high, x.high, y.high)};
    std::memcpy(&sum, &z, 32);
    return sum;
#else
    return a * b + sum;
#endif
}

inline f32x8 all_of(float x) { return f32x8{x, x, x, x, x, x, x, x}; }

// Lane by lane, the sum of two adjacent products: exact in 32 bits.
inline i32x8 pair_products(i16x16 a, i16x16 b) {
#if defined(__AVX2__)
    return (i32x8)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__aarch64__)
    struct Halves { int16x8_t low, high; } x, y;
    std::memcpy(&x, &a, 32), std::memcpy(&y, &b, 32);
    const auto products = [](int16x8_t one, int16x8_t other) {
        return vpaddq_s32(vmull_s16(vget_low_s16(one), vget_low_s16(other)),
                          vmull_high_s16(one, other));
    };
    const struct { int32x4_t low, high; } sums{products(x.low, y.low), products(x.high, y.high)};
    i32x8 result;
    std::memcpy(&result, &sums, 32);
    return result;
#else
    const i32x8 x = (i32x8)a, y = (i32x8)b;
    return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}

inline i16x16 widen_bytes(const int8_t* from) {
#if defined(__AVX2__)
    return (i16x16)_mm256_cvtepi8_epi16(load<__m128i>(from));
#else
    return __builtin_convertvector(load<i8x16>(from), i16x16);
#endif
}

// The sum of each one's lanes.
struct Pair { float first, second; };
inline Pair sum_two(f32x8 a, f32x8 b) {
#if defined(__AVX__)
    __m256 sums = _mm256_hadd_ps((__m256)a, (__m256)b);
    sums = _mm256_hadd_ps(sums, sums);
    __m128 both = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    return {_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both))};
#else
    for (int width = EIGHT / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) a[i] += a[i + width], b[i] += b[i + width];
    return {a[0], b[0]};
#endif
}

inline f32x8 widen8(u16x8 x) { return (f32x8)(__builtin_convertvector(x, u32x8) << 16); }

}  // namespace lmsmith
