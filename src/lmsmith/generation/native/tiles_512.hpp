// Attention's products in registers of 512 bits: up to 4 queries with 4 keys, and with values.

#pragma once

#include "numbers.hpp"

namespace lmsmith {

const int TILE = 4;
const int STRIP = 64;  // the width of a head is a multiple

using Query = bf16;
inline Query query_of(bf16 x) { return x; }

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

// Scaled products of M queries, MAX numbers apart, with the TILE keys of `key`: tile[i * TILE + j].
template <int M, int MAX>
inline void score_tile(const Query (&query)[M][MAX], const bf16* key, int width, float scale,
                       float* tile) {
    __m512 acc[TILE][TILE];
#pragma GCC unroll 4
    for (int i = 0; i < TILE; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < TILE; ++j) acc[i][j] = _mm512_setzero_ps();
    for (int at = 0; at < width; at += 32) {
        __m512bh b[TILE];
#pragma GCC unroll 4
        for (int j = 0; j < TILE; ++j) b[j] = load_bf16(key + j * width + at);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            __m512bh x = load_bf16(query[i] + at);
#pragma GCC unroll 4
            for (int j = 0; j < TILE; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], x, b[j]);
        }
    }
    _mm512_storeu_ps(tile, _mm512_mul_ps(sum_tile(acc), _mm512_set1_ps(scale)));
}

// sums[i] += weights of query i x values, over 64 dimensions and the positions of one page.
template <int M>
inline void add_values_together(float* const (&sums)[TILE], const bf16* value, int width,
                                const float* weights, int64_t stride, int start, int end) {
    __m512 acc[M][4];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) acc[i][j] = _mm512_loadu_ps(sums[i] + 16 * j);
    for (int at = start; at < end; ++at, value += width) {
        __m512 part[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) part[j] = (__m512)load16(value + 16 * j);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            __m512 weight = _mm512_set1_ps(weights[i * stride + at]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) acc[i][j] = _mm512_fmadd_ps(part[j], weight, acc[i][j]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) _mm512_storeu_ps(sums[i] + 16 * j, acc[i][j]);
}

}  // namespace lmsmith
