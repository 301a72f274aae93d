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
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

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

inline f32x8 load8(const float* from) {
    f32x8 result;
    std::memcpy(&result, from, 32);
    return result;
}
inline f32x8 load8(const bf16* from) {
    u16x8 half;
    std::memcpy(&half, from, 16);
    return (f32x8)(__builtin_convertvector(half, u32x8) << 16);
}

// Lane by lane as `narrow`.
inline u16x8 narrow8(f32x8 x) {
    const u32x8 bits = (u32x8)x;
    const u32x8 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const i32x8 is_number = (i32x8)(bits & 0x7fffffffu) <= 0x7f800000;
    return __builtin_convertvector(is_number ? (i32x8)rounded : i32x8{} + 0x7fc0, u16x8);
}

#ifdef __AVX512F__
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));

inline f32x16 select(i32x16 where, f32x16 a, f32x16 b) { return where ? a : b; }

// 2^n, n whole.
inline f32x16 power_of_two(f32x16 n) {
    return (f32x16)((__builtin_convertvector(n, i32x16) + 127) << 23);
}

inline f32x16 load16(const float* from) {
    f32x16 result;
    std::memcpy(&result, from, 64);
    return result;
}
inline f32x16 load16(const bf16* from) {
    typedef uint16_t u16x16 __attribute__((vector_size(32)));
    typedef uint32_t u32x16 __attribute__((vector_size(64)));
    u16x16 half;
    std::memcpy(&half, from, 32);
    return (f32x16)(__builtin_convertvector(half, u32x16) << 16);
}
#else
// Two halves: GCC compares and selects vectors wider than the registers lane by lane.
struct f32x16 {
    f32x8 low, high;
    float operator[](int lane) const { return lane < 8 ? low[lane] : high[lane - 8]; }
};
struct i32x16 { i32x8 low, high; };

inline f32x16 operator+(f32x16 a, f32x16 b) { return {a.low + b.low, a.high + b.high}; }
inline f32x16 operator-(f32x16 a, f32x16 b) { return {a.low - b.low, a.high - b.high}; }
inline f32x16 operator*(f32x16 a, f32x16 b) { return {a.low * b.low, a.high * b.high}; }
inline f32x16 operator/(f32x16 a, f32x16 b) { return {a.low / b.low, a.high / b.high}; }
inline f32x16 operator+(f32x16 a, float b) { return {a.low + b, a.high + b}; }
inline f32x16 operator-(f32x16 a, float b) { return {a.low - b, a.high - b}; }
inline f32x16 operator*(f32x16 a, float b) { return {a.low * b, a.high * b}; }
inline f32x16 operator/(f32x16 a, float b) { return {a.low / b, a.high / b}; }
inline f32x16 operator+(float a, f32x16 b) { return b + a; }
inline f32x16 operator*(float a, f32x16 b) { return b * a; }
inline f32x16 operator-(f32x16 a) { return {-a.low, -a.high}; }
inline f32x16& operator+=(f32x16& a, f32x16 b) { return a = a + b; }
inline i32x16 operator<(f32x16 a, f32x16 b) { return {a.low < b.low, a.high < b.high}; }
inline i32x16 operator>(f32x16 a, f32x16 b) { return b < a; }
inline i32x16 operator==(f32x16 a, f32x16 b) { return {a.low == b.low, a.high == b.high}; }

inline f32x16 select(i32x16 where, f32x16 a, f32x16 b) {
    return {where.low ? a.low : b.low, where.high ? a.high : b.high};
}

// 2^n, n whole.
inline f32x16 power_of_two(f32x16 n) {
    return {(f32x8)((__builtin_convertvector(n.low, i32x8) + 127) << 23),
            (f32x8)((__builtin_convertvector(n.high, i32x8) + 127) << 23)};
}

template <typename T>
inline f32x16 load16(const T* from) { return {load8(from), load8(from + 8)}; }
#endif

inline f32x16 larger(f32x16 a, f32x16 b) { return select(a > b, a, b); }

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
    const f32x8 sums = x.low + x.high;
    float part[8];
    std::memcpy(part, &sums, 32);
    for (int width = 4; width; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}
#endif

// exp(x) for x <= 0, to about 2 units in the last place (Cephes' polynomial).
inline f32x16 exp16(f32x16 x) {
    const f32x16 zero = {};
    x = select(x < zero - 87.0f, zero - 87.0f, x);  // NaN stays
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
    return p * power_of_two(n);
}

// 1 / (1 + e^-x), by e = e^-|x|: 1 / (1 + e), or e / (1 + e) where x is negative.
inline f32x16 sigmoid16(f32x16 x) {
    const f32x16 zero = {}, one = zero + 1.0f;
    const f32x16 e = exp16(select(x < zero, x, -x));
    return select(x < zero, e, one) / (one + e);
}

inline void store16(float* to, f32x16 x) { std::memcpy(to, &x, 64); }
inline void store16(bf16* to, f32x16 x) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    f32x8 halves[2];
    std::memcpy(halves, &x, 64);
    for (int half = 0; half < 2; ++half) {
        const u16x8 rounded = narrow8(halves[half]);
        std::memcpy(to + 8 * half, &rounded, 16);
    }
#endif
}

}  // namespace lmsmith
