// Products of rows and panels in registers of 512 bits, with AVX-512's dot products (BF16, VNNI).

#pragma once

#include "panels.hpp"
#include "tiles_512.hpp"

namespace lmsmith {

const int64_t ROW_BYTES = 2;  // of a prepared row's number

inline void finish16(const Linear& l, __m512 sum, int row, int output) {
    const int64_t place = int64_t(row) * l.width + output;
    const __mmask16 mask = l.n - output < LANES ? (1u << (l.n - output)) - 1 : 0xffff;
    if (l.bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, l.bias + output));
    if (l.result == AS_FLOAT) {
        _mm512_mask_storeu_ps(static_cast<float*>(l.y) + place, mask, sum);
        return;
    }
    const __m256i half = (__m256i)_mm512_cvtneps_pbh(sum);
    if (l.result == AS_BF16) {
        _mm256_mask_storeu_epi16(static_cast<bf16*>(l.y) + place, mask, half);
        return;
    }
    float* to = static_cast<float*>(l.y) + place;
    const __m512 rounded = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
    _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), rounded));
}

inline __m512i pair_of(const void* x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return _mm512_set1_epi32(pair);
}

// Sums += products of pairs. As assembly, since GCC 12 copies the sums of the intrinsic around.
template <typename Numbers>
inline void add_products(Numbers& sums, Numbers x, Numbers y) {
#ifdef LMSMITH_NO_ASSEMBLY  // tests simulate the instruction
    sums = (Numbers)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)x, (__m512i)y);
#else
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
#endif
}

inline void fetch_two(Fetch& fetch) {
    _mm_prefetch(fetch.next, _MM_HINT_T1);
    _mm_prefetch(fetch.next + 64, _MM_HINT_T1);
    fetch.next += fetch.step;
}

// R rows times B blocks in bf16.
template <int R, int B, bool ONLY>
inline void multiply_halves(const Part& p, Fetch fetch, int row) {
    const bf16* w = static_cast<const bf16*>(p.l.weight) +
                    (int64_t(p.panel) * p.pairs + p.within) * 2 * LANES;
    const bf16* x = static_cast<const bf16*>(p.x) + row * p.stride;
    const int step = p.together * 2 * LANES;
    __m512 sums[R][B];
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < B; ++j) sums[i][j] = _mm512_setzero_ps();
    for (int pair = 0; pair < p.pairs; ++pair, w += step) {
        __m512bh weight[B];
#pragma GCC unroll 4
        for (int j = 0; j < B; ++j) {
            weight[j] = load_bf16(w + j * 2 * LANES);
            if (ONLY) _mm_prefetch((const char*)(w + j * 2 * LANES) + AHEAD, _MM_HINT_T0);
        }
        if (!ONLY) fetch_two(fetch);
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i) {
            const __m512bh both = (__m512bh)pair_of(x + i * p.stride + 2 * pair);
#pragma GCC unroll 4
            for (int j = 0; j < B; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], weight[j], both);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < B; ++j)
            finish16(p.l, sums[i][j], row + i, (p.panel + p.within + j) * LANES);
}

// R rows times B blocks of int8: a chunk's products are summed as integers, exactly.
template <int R, int B, bool ONLY>
inline void multiply_bytes(const Part& p, Fetch fetch, int row) {
    const int8_t* w = static_cast<const int8_t*>(p.l.weight) +
                      (int64_t(p.panel) * p.pairs + p.within) * 2 * LANES;
    const float* scales = p.l.scales + (int64_t(p.panel) * p.groups + p.within) * LANES;
    const int16_t* x = static_cast<const int16_t*>(p.x) + row * p.stride;
    const int step = p.together * 2 * LANES;
    __m512 totals[R][B];
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < B; ++j) totals[i][j] = _mm512_setzero_ps();
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
        // Totals stay in memory: the registers are for the sums.
        if (R * B > 8) asm volatile("" : : "r"(totals) : "memory");
        const int first = chunk * CHUNK / 2;
        const int end = first + CHUNK / 2 < p.pairs ? first + CHUNK / 2 : p.pairs;
        __m512i sums[R][B];
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < B; ++j) sums[i][j] = _mm512_setzero_si512();
        for (int pair = first; pair < end; ++pair, w += step) {
            __m512i weight[B];
#pragma GCC unroll 4
            for (int j = 0; j < B; ++j) {
                const int8_t* at = w + j * 2 * LANES;
                weight[j] = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)at));
                if (ONLY && j % 2 == 0) _mm_prefetch((const char*)at + AHEAD, _MM_HINT_T0);
            }
            if (!ONLY) fetch_two(fetch);
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i) {
                const __m512i both = pair_of(x + i * p.stride + 2 * pair);
#pragma GCC unroll 4
                for (int j = 0; j < B; ++j)
                    add_products(sums[i][j], weight[j], both);
            }
        }
        const float* of_group = scales + int64_t(chunk * CHUNK / p.l.group) * p.together * LANES;
#pragma GCC unroll 4
        for (int j = 0; j < B; ++j) {
            const __m512 scale = _mm512_loadu_ps(of_group + j * LANES);
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i) {
                const __m512 both = _mm512_mul_ps(
                    scale, _mm512_set1_ps(p.x_scales[int64_t(row + i) * p.chunks + chunk]));
                totals[i][j] =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i][j]), both, totals[i][j]);
            }
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < B; ++j)
            finish16(p.l, totals[i][j], row + i, (p.panel + p.within + j) * LANES);
}

template <int R, int B, bool ONLY>
inline void multiply_rows(const Part& p, Fetch fetch, int row) {
    if (p.l.scales) multiply_bytes<R, B, ONLY>(p, fetch, row);
    else multiply_halves<R, B, ONLY>(p, fetch, row);
}

template <int B, bool ONLY>
inline void multiply_tile(const Part& p, Fetch fetch, int row, int rows) {
    switch (rows) {
        case 1: return multiply_rows<1, B, ONLY>(p, fetch, row);
        case 2: return multiply_rows<2, B, ONLY>(p, fetch, row);
        case 3: return multiply_rows<3, B, ONLY>(p, fetch, row);
        case 4: return multiply_rows<4, B, ONLY>(p, fetch, row);
        case 5: return multiply_rows<5, B, ONLY>(p, fetch, row);
        default: return multiply_rows<6, B, ONLY>(p, fetch, row);
    }
}

template <int B>
inline void multiply_blocks(const Part& p, int first, int last) {
    const int tiles = (last - first + MOST_ROWS - 1) / MOST_ROWS;
    if (tiles == 1) return multiply_tile<B, true>(p, {}, first, last - first);
    const int64_t size = int64_t(p.together) * 2 * LANES * (p.l.scales ? 1 : 2);  // of a pair
    const int step = int((size + tiles - 1) / tiles);
    const char* next = static_cast<const char*>(p.l.weight) +
                       int64_t(p.next) * p.pairs * (size / p.together);
    for (int tile = 0; tile < tiles; ++tile, next += int64_t(p.pairs) * step) {
        const int rows = (last - first) / (tiles - tile);
        multiply_tile<B, false>(p, {next, step}, first, rows);
        first += rows;
    }
}

// Rows first to last times 1, 2 or 4 blocks.
inline void multiply_part(const Part& p, int blocks, int first, int last) {
    if (blocks == 4) multiply_blocks<4>(p, first, last);
    else if (blocks == 2) multiply_blocks<2>(p, first, last);
    else multiply_blocks<1>(p, first, last);
}

// x in 16 bits for int8 weights, each chunk by its largest absolute value; what is not finite makes
// its scale so.
inline void round_rows(const bf16* x, int rows, int k, int chunks, int16_t* to, float* scales) {
    for (int row = 0; row < rows; ++row)
        for (int chunk = 0; chunk < chunks; ++chunk, to += CHUNK, ++scales) {
            alignas(64) bf16 part[CHUNK] = {};
            const int left = k - chunk * CHUNK;
            std::memcpy(part, x + int64_t(row) * k + chunk * CHUNK,
                        sizeof(bf16) * (left < CHUNK ? left : CHUNK));
            __m512i largest = _mm512_setzero_si512();
            const __m512i size = _mm512_set1_epi32(0x7fffffff);
            for (int i = 0; i < CHUNK; i += 16)
                largest = _mm512_max_epi32(
                    largest, _mm512_and_si512((__m512i)load16(part + i), size));
            const int32_t bits = _mm512_reduce_max_epi32(largest);
            float most;
            std::memcpy(&most, &bits, 4);
            *scales = most / 32767.0f;
            const f32x16 inverse = f32x16{} + (most > 0 ? 32767.0f / most : 0.0f);
            for (int i = 0; i < CHUNK; i += 16)
                _mm256_storeu_si256((__m256i*)(to + i),
                                    _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(
                                        (__m512)(load16(part + i) * inverse))));
        }
}

// Rows of x as the products take them: bf16 in whole pairs, or 16 bits.
inline void prepare_rows(const Linear& l, Part& part) {
    static thread_local std::vector<int16_t> rounded;
    static thread_local std::vector<float> scales;
    static thread_local std::vector<bf16> padded;
    part.x = l.x, part.stride = l.k;
    if (l.scales) {
        part.stride = int64_t(part.chunks) * CHUNK;
        rounded.resize(l.m * part.stride);
        scales.resize(int64_t(l.m) * part.chunks);
        round_rows(l.x, l.m, l.k, part.chunks, rounded.data(), scales.data());
        part.x = rounded.data(), part.x_scales = scales.data();
    } else if (l.k % 2) {
        part.stride = l.k + 1;
        padded.assign(l.m * part.stride, 0);
        for (int row = 0; row < l.m; ++row)
            std::memcpy(&padded[row * part.stride], l.x + int64_t(row) * l.k, sizeof(bf16) * l.k);
        part.x = padded.data();
    }
}

}  // namespace lmsmith
