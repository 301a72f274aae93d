// The most operations a second of a core: sums of products that wait for nothing.
//
// Compiled by held.py with the flags of the set of instructions. Each function returns how many
// operations it did, a product and its sum being two.

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

const int CHAINS = 10;  // more than latency x units

#if defined(__AVX512F__)
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
#else
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
#endif

// Products of one instruction, for each 32 bits of a sum.
#if defined(__AVX512BF16__)
const int FLOATS = 2;
inline Floats multiply(Floats sum, Floats a) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)a);
}
#else
const int FLOATS = 1;
inline Floats multiply(Floats sum, Floats a) { return sum * a + a; }
#endif

#if defined(__AVX512VNNI__)
const int INTS = 2;
inline Ints multiply(Ints sum, Ints a) {
    return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)a);
}
#elif defined(__AVXVNNI__)
const int INTS = 2;
inline Ints multiply(Ints sum, Ints a) {
    return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)a);
}
#elif defined(__AVX2__)
const int INTS = 2;
inline Ints multiply(Ints sum, Ints a) {
    return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)a);
}
#else
const int INTS = 1;
inline Ints multiply(Ints sum, Ints a) { return sum * a + a; }
#endif

#if defined(__aarch64__)
#define KEEP(numbers) asm volatile("" : "+w"(numbers))
#else
#define KEEP(numbers) asm volatile("" : "+v"(numbers))
#endif

// KEEP makes the compiler forget what a register holds, so that no step is left out.
template <typename T>
double operations(long rounds, int products) {
    T sums[CHAINS] = {}, a = {};
    for (long round = 0; round < rounds; ++round)
#pragma GCC unroll 10
        for (int i = 0; i < CHAINS; ++i) {
            KEEP(a);
            sums[i] = multiply(sums[i], a);
            KEEP(sums[i]);
        }
    return 2.0 * rounds * CHAINS * products * (sizeof(T) / 4);
}

}  // namespace

extern "C" double floats(long rounds) { return operations<Floats>(rounds, FLOATS); }
extern "C" double integers(long rounds) { return operations<Ints>(rounds, INTS); }
