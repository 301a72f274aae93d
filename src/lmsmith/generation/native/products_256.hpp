// Products of rows and panels eight lanes at a time: for AVX2, and any other processor.
//
// A block is two registers. One row takes a whole panel, which it reads as one stream; of more rows
// the sums fill the registers, and the panel is read block after block, from the second-level cache.

#pragma once

#include "eight.hpp"
#include "panels.hpp"

namespace lmsmith {

const int64_t ROW_BYTES = 4;  // of a prepared row's number

inline void finish8(const Linear& l, f32x8 sum, int row, int output) {
    if (l.n - output < EIGHT) {
        for (int lane = 0; lane < l.n - output; ++lane) finish(l, sum[lane], row, output + lane);
        return;
    }
    const int64_t place = int64_t(row) * l.width + output;
    if (l.bias) sum += load8(l.bias + output);
    if (l.result == AS_FLOAT) {
        std::memcpy(static_cast<float*>(l.y) + place, &sum, 32);
        return;
    }
    const u16x8 half = narrow8(sum);
    if (l.result == AS_BF16) {
        std::memcpy(static_cast<bf16*>(l.y) + place, &half, 16);
        return;
    }
    float* to = static_cast<float*>(l.y) + place;
    sum = load8(to) + widen8(half);
    std::memcpy(to, &sum, 32);
}

inline void ask_for(const char* at) { __builtin_prefetch(at, 0, 2); }

template <bool ONLY, int BYTES>
inline void fetch(const void* own, Fetch& f) {
    if (ONLY) {
        for (int at = 0; at < BYTES; at += 64) ask_for(static_cast<const char*>(own) + AHEAD + at);
        return;
    }
    ask_for(f.next);
    if (f.step > 64) ask_for(f.next + 64);
    f.next += f.step;
}

// R rows times B blocks in bf16: a pair's first inputs, then its second.
template <int R, int B, bool ONLY>
inline void multiply_halves(const Part& p, Fetch f, int row) {
    const bf16* w = static_cast<const bf16*>(p.l.weight) +
                    (int64_t(p.panel) * p.pairs + p.within) * 2 * LANES;
    const float* x = static_cast<const float*>(p.x) + row * p.stride;
    const int step = p.together * 2 * LANES;
    f32x8 sums[R][2 * B];
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < 2 * B; ++j) sums[i][j] = f32x8{};
    for (int pair = 0; pair < p.pairs; ++pair, w += step) {
        fetch<ONLY, B * 64>(w, f);
#pragma GCC unroll 2
        for (int input = 0; input < 2; ++input) {
            f32x8 weight[2 * B];
#pragma GCC unroll 8
            for (int j = 0; j < 2 * B; ++j) {
                const u32x8 both = load<u32x8>(w + j * LANES);
                weight[j] = (f32x8)(input ? both & 0xffff0000u : both << 16);
            }
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i) {
                const f32x8 one = all_of(x[i * p.stride + 2 * pair + input]);
#pragma GCC unroll 8
                for (int j = 0; j < 2 * B; ++j)
                    sums[i][j] = multiply_add(weight[j], one, sums[i][j]);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < 2 * B; ++j)
            finish8(p.l, sums[i][j], row + i, (p.panel + p.within) * LANES + j * EIGHT);
}

inline i16x16 pair_of(const int16_t* x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (i16x16)(i32x8{} + pair);
}

// R rows times B blocks of int8: a chunk's products are summed as integers, exactly.
template <int R, int B, bool ONLY>
inline void multiply_bytes(const Part& p, Fetch f, int row) {
    const int8_t* w = static_cast<const int8_t*>(p.l.weight) +
                      (int64_t(p.panel) * p.pairs + p.within) * 2 * LANES;
    const float* scales = p.l.scales + (int64_t(p.panel) * p.groups + p.within) * LANES;
    const int16_t* x = static_cast<const int16_t*>(p.x) + row * p.stride;
    const int step = p.together * 2 * LANES;
    f32x8 totals[R][2 * B] = {};
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
        const int first = chunk * CHUNK / 2;
        const int end = first + CHUNK / 2 < p.pairs ? first + CHUNK / 2 : p.pairs;
        i32x8 sums[R][2 * B];
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < 2 * B; ++j) sums[i][j] = i32x8{};
        for (int pair = first; pair < end; ++pair, w += step) {
            fetch<ONLY, B * 32>(w, f);
            i16x16 weight[2 * B];
#pragma GCC unroll 8
            for (int j = 0; j < 2 * B; ++j) weight[j] = widen_bytes(w + j * LANES);
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i) {
                const i16x16 both = pair_of(x + i * p.stride + 2 * pair);
#pragma GCC unroll 8
                for (int j = 0; j < 2 * B; ++j) sums[i][j] += pair_products(weight[j], both);
            }
        }
        const float* of_group = scales + int64_t(chunk * CHUNK / p.l.group) * p.together * LANES;
#pragma GCC unroll 8
        for (int j = 0; j < 2 * B; ++j) {
            const f32x8 scale = load8(of_group + j * EIGHT);
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i)
                totals[i][j] = multiply_add(
                    __builtin_convertvector(sums[i][j], f32x8),
                    scale * p.x_scales[int64_t(row + i) * p.chunks + chunk], totals[i][j]);
        }
        // Totals stay in memory: the registers are for the sums.
        if (R * B > 2) asm volatile("" : : "r"(totals) : "memory");
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < 2 * B; ++j)
            finish8(p.l, totals[i][j], row + i, (p.panel + p.within) * LANES + j * EIGHT);
}

template <int R, int B, bool ONLY>
inline void multiply_rows(const Part& p, Fetch f, int row) {
    if (p.l.scales) multiply_bytes<R, B, ONLY>(p, f, row);
    else multiply_halves<R, B, ONLY>(p, f, row);
}

inline void multiply_one(const Part& p, int blocks, int row) {
    if (blocks == 4) multiply_rows<1, 4, true>(p, {}, row);
    else if (blocks == 2) multiply_rows<1, 2, true>(p, {}, row);
    else multiply_rows<1, 1, true>(p, {}, row);
}

inline void multiply_block(const Part& p, Fetch f, int row, int rows) {
    switch (rows) {
        case 1: return multiply_rows<1, 1, false>(p, f, row);
        case 2: return multiply_rows<2, 1, false>(p, f, row);
        case 3: return multiply_rows<3, 1, false>(p, f, row);
        case 4: return multiply_rows<4, 1, false>(p, f, row);
        case 5: return multiply_rows<5, 1, false>(p, f, row);
        default: return multiply_rows<6, 1, false>(p, f, row);
    }
}

// Rows first to last times 1, 2 or 4 blocks.
inline void multiply_part(const Part& p, int blocks, int first, int last) {
    if (last - first == 1) return multiply_one(p, blocks, first);
    const int tiles = (last - first + MOST_ROWS - 1) / MOST_ROWS, turns = tiles * blocks;
    const int64_t size = int64_t(p.together) * 2 * LANES * (p.l.scales ? 1 : 2);  // of a pair
    const int step = int((size + turns - 1) / turns);
    const char* next = static_cast<const char*>(p.l.weight) +
                       int64_t(p.next) * p.pairs * (size / p.together);
    for (int block = 0; block < blocks; ++block) {
        Part part = p;
        part.within += block;
        int row = first;
        for (int tile = 0; tile < tiles; ++tile, next += int64_t(p.pairs) * step) {
            const int rows = (last - row) / (tiles - tile);
            multiply_block(part, {next, step}, row, rows);
            row += rows;
        }
    }
}

// x in 16 bits for int8 weights, each chunk by its largest absolute value; what is not finite makes
// its scale so.
inline void round_rows(const bf16* x, int rows, int k, int chunks, int16_t* to, float* scales) {
    const float magic = 12582912.0f;  // 1.5 x 2^23: added, it rounds to a whole number
    for (int row = 0; row < rows; ++row)
        for (int chunk = 0; chunk < chunks; ++chunk, to += CHUNK, ++scales) {
            bf16 part[CHUNK] = {};
            const int left = k - chunk * CHUNK;
            std::memcpy(part, x + int64_t(row) * k + chunk * CHUNK,
                        sizeof(bf16) * (left < CHUNK ? left : CHUNK));
            uint32_t bits = 0;
            for (int i = 0; i < CHUNK; ++i) {
                const uint32_t size = part[i] & 0x7fffu;
                bits = size > bits ? size : bits;
            }
            const float most = widen(bf16(bits));
            *scales = most / 32767.0f;
            const float inverse = most > 0 ? 32767.0f / most : 0.0f;
            for (int i = 0; i < CHUNK; i += EIGHT) {
                const f32x8 whole = multiply_add(load8(part + i), all_of(inverse), all_of(magic));
                const i32x8 number = (i32x8)whole - 0x4b400000;
                const i16x8 half = __builtin_convertvector(number, i16x8);
                std::memcpy(to + i, &half, 16);
            }
        }
}

// Rows of x as the products take them: in float32 and whole pairs, or in 16 bits.
inline void prepare_rows(const Linear& l, Part& part) {
    static thread_local std::vector<int16_t> rounded;
    static thread_local std::vector<float> widened;
    if (l.scales) {
        part.stride = int64_t(part.chunks) * CHUNK;
        rounded.resize(l.m * part.stride);
        widened.resize(int64_t(l.m) * part.chunks);
        round_rows(l.x, l.m, l.k, part.chunks, rounded.data(), widened.data());
        part.x = rounded.data(), part.x_scales = widened.data();
        return;
    }
    part.stride = 2 * part.pairs;
    widened.resize(l.m * part.stride);
    for (int row = 0; row < l.m; ++row) {
        float* to = widened.data() + row * part.stride;
        for (int i = 0; i < l.k; ++i) to[i] = widen(l.x[int64_t(row) * l.k + i]);
        if (l.k % 2) to[l.k] = 0;
    }
    part.x = widened.data();
}

}  // namespace lmsmith
