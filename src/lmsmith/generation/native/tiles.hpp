// Sums of products of 4 rows with 4 others, all of them in registers.

#pragma once

#include "numbers.hpp"

namespace lmsmith {

const int TILE = 4;

#ifdef __AVX512BF16__

inline __m512bh load_bf16(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }

// Of 4 x 4 registers their sums over lanes, row by row in one register. Lanes are added as
// sum_lanes adds them.
inline __m512 sum_tile(const __m512 (&a)[TILE][TILE]) {
    __m512 by_output[TILE];  // lane group i: row i, 4 lanes left to add
    for (int j = 0; j < TILE; ++j) {
        __m512 half[2];
        for (int i = 0; i < 2; ++i)
            half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i][j], a[2 * i + 1][j], 0x44),
                                    _mm512_shuffle_f32x4(a[2 * i][j], a[2 * i + 1][j], 0xee));
        by_output[j] = _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88),
                                     _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
    }
    __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(by_output[0], by_output[1]),
                                 _mm512_unpackhi_ps(by_output[0], by_output[1]));
    __m512 second = _mm512_add_ps(_mm512_unpacklo_ps(by_output[2], by_output[3]),
                                  _mm512_unpackhi_ps(by_output[2], by_output[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44),
                         _mm512_shuffle_ps(first, second, 0xee));
}

#endif

}  // namespace lmsmith
