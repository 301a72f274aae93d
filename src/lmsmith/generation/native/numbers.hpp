// Numbers: bf16 and float32, one and sixteen at a time.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace lmsmith {

using bf16 = uint16_t;
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef float f32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
inline float widen(float x) { return x; }

// To the nearest, ties to even, as PyTorch rounds.
inline bf16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return bf16((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
inline void store(bf16* to, float x) { *to = narrow(x); }
inline void store(float* to, float x) { *to = x; }

inline f32x16 load16(const float* from) {
    f32x16 result;
    std::memcpy(&result, from, 64);
    return result;
}
inline f32x16 load16(const bf16* from) {
    u16x16 half;
    std::memcpy(&half, from, 32);
    u32x16 bits = __builtin_convertvector(half, u32x16) << 16;
    return (f32x16)bits;
}

inline f32x8 load8(const float* from) {
    f32x8 result;
    std::memcpy(&result, from, 32);
    return result;
}
inline f32x8 load8(const bf16* from) {
    typedef uint16_t u16x8 __attribute__((vector_size(16)));
    typedef uint32_t u32x8 __attribute__((vector_size(32)));
    u16x8 half;
    std::memcpy(&half, from, 16);
    return (f32x8)(__builtin_convertvector(half, u32x8) << 16);
}

#ifdef __AVX512DQ__
inline float sum_lanes(__m512 x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    b = _mm_add_ss(b, _mm_shuffle_ps(b, b, 1));
    return _mm_cvtss_f32(b);
}
inline float sum16(f32x16 x) { return sum_lanes((__m512)x); }
#else
inline float sum16(f32x16 x) {
    float part[16];
    std::memcpy(part, &x, 64);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}
#endif

// exp(x) for x <= 0, to about 2 units in the last place (Cephes' polynomial).
inline f32x16 exp16(f32x16 x) {
    const f32x16 zero = {};
    x = x < zero - 87.0f ? zero - 87.0f : x;
    f32x16 shifted = x * 1.44269504088896341f + 12582912.0f;
    f32x16 n = shifted - 12582912.0f;
    f32x16 r = x - n * 0.693359375f - n * -2.12194440e-4f;
    f32x16 p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    i32x16 exponent = (__builtin_convertvector(n, i32x16) + 127) << 23;
    return p * (f32x16)exponent;
}

// 1 / (1 + e^-x), by e = e^-|x|: 1 / (1 + e), or e / (1 + e) where x is negative.
inline f32x16 sigmoid16(f32x16 x) {
    const f32x16 zero = {}, one = zero + 1.0f;
    const f32x16 e = exp16(x < zero ? x : -x);
    return (x < zero ? e : one) / (one + e);
}

inline void store16(float* to, f32x16 x) { std::memcpy(to, &x, 64); }
inline void store16(bf16* to, f32x16 x) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    const u32x16 bits = (u32x16)x, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const i32x16 is_number = (i32x16)(bits & 0x7fffffffu) <= 0x7f800000;
    const u16x16 half = __builtin_convertvector(
        is_number ? (i32x16)rounded : i32x16{} + 0x7fc0, u16x16);
    std::memcpy(to, &half, 32);
#endif
}

}  // namespace lmsmith
