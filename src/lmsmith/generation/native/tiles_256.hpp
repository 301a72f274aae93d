// Attention's products eight lanes at a time: up to 4 queries with 4 keys, and with values.

#pragma once

#include "eight.hpp"

namespace lmsmith {

const int TILE = 4;
const int STRIP = 16;  // the width of a head is a multiple

using Query = float;
inline Query query_of(bf16 x) { return widen(x); }

inline f32x8 widened(const bf16* from) { return widen8(load<u16x8>(from)); }

// Scaled products of M queries, MAX numbers apart, with the TILE keys of `key`: tile[i * TILE + j].
template <int M, int MAX>
inline void score_tile(const Query (&query)[M][MAX], const bf16* key, int width, float scale,
                       float* tile) {
    for (int j = 0; j < TILE; j += 2, key += 2 * width) {
        f32x8 acc[M][2];
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) acc[i][0] = acc[i][1] = f32x8{};
        for (int at = 0; at < width; at += EIGHT) {
            const f32x8 one = widened(key + at), other = widened(key + width + at);
#pragma GCC unroll 4
            for (int i = 0; i < M; ++i) {
                const f32x8 x = load8(query[i] + at);
                acc[i][0] = multiply_add(one, x, acc[i][0]);
                acc[i][1] = multiply_add(other, x, acc[i][1]);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            const Pair sums = sum_two(acc[i][0], acc[i][1]);
            tile[i * TILE + j] = sums.first * scale;
            tile[i * TILE + j + 1] = sums.second * scale;
        }
    }
}

// sums[i] += weights of query i x values, over STRIP dimensions and the positions of one page.
template <int M>
inline void add_values_together(float* const (&sums)[TILE], const bf16* value, int width,
                                const float* weights, int64_t stride, int start, int end) {
    f32x8 acc[M][2];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
        acc[i][0] = load8(sums[i]), acc[i][1] = load8(sums[i] + EIGHT);
    for (int at = start; at < end; ++at, value += width) {
        const f32x8 low = widened(value), high = widened(value + EIGHT);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            const f32x8 weight = all_of(weights[i * stride + at]);
            acc[i][0] = multiply_add(low, weight, acc[i][0]);
            acc[i][1] = multiply_add(high, weight, acc[i][1]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) {
        std::memcpy(sums[i], &acc[i][0], 32);
        std::memcpy(sums[i] + EIGHT, &acc[i][1], 32);
    }
}

}  // namespace lmsmith
