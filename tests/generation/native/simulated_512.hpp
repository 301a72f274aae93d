// AVX-512's instructions by SIMD Everywhere, on any x86-64 processor: to be included first.

#pragma once

#define SIMDE_X86_AVX512F_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512BW_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512VL_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512DQ_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512BF16_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512VNNI_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// From here on our code finds a processor that has them.
#define __AVX512F__ 1
#define __AVX512DQ__ 1
#define __AVX512BF16__ 1
#define __AVX512VNNI__ 1
#define __m512 simde__m512
#define __m512i simde__m512i
#define __m512bh simde__m512bh
#define LMSMITH_NO_ASSEMBLY

// What is masked out is neither read nor written; SIMD Everywhere does both.
inline __m512 simulated_maskz_loadu_ps(__mmask16 mask, const float* from) {
    float lanes[16] = {};
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) lanes[i] = from[i];
    return simde_mm512_loadu_ps(lanes);
}
template <typename T, typename V>
inline void simulated_mask_storeu(T* to, __mmask16 mask, V x) {
    T lanes[16];
    static_assert(sizeof lanes == sizeof x, "16 numbers");
    __builtin_memcpy(lanes, &x, sizeof x);
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) to[i] = lanes[i];
}
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps simulated_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps simulated_mask_storeu
#undef _mm256_mask_storeu_epi16
#define _mm256_mask_storeu_epi16 simulated_mask_storeu

// VCVTNEPS2BF16, which SIMD Everywhere lacks: to the nearest, ties to even; NaNs become quiet, and
// numbers too small to be normal zero.
inline __m256i simulated_cvtneps_pbh(__m512 x) {
    uint32_t bits[16];
    uint16_t halves[16];
    __builtin_memcpy(bits, &x, sizeof bits);
    for (int i = 0; i < 16; ++i) {
        const uint32_t size = bits[i] & 0x7fffffff, sign = bits[i] >> 31 << 15;
        if (size > 0x7f800000) halves[i] = uint16_t(bits[i] >> 16 | 0x40);
        else if (size < 0x00800000) halves[i] = uint16_t(sign);
        else halves[i] = uint16_t((bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16);
    }
    __m256i result;
    __builtin_memcpy(&result, halves, sizeof result);
    return result;
}
#undef _mm512_cvtneps_pbh
#define _mm512_cvtneps_pbh simulated_cvtneps_pbh
