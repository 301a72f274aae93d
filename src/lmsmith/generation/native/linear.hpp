// Linear layers of few rows: y = x W^T + b, x bf16 (m, k), W (n, k), with float32 sums.

#pragma once

#include <omp.h>
#include <vector>

#include "tiles.hpp"

namespace lmsmith {

enum Result { AS_FLOAT = 0, AS_BF16 = 1, ADD_TO_FLOAT = 2 };

struct Linear {
    const bf16* x;
    const void* weight;
    const float* scales;  // of int8 weights, (n, k / group); null for bf16
    const float* bias;
    void* y;
    int m, k, n, group, result;
};

inline void finish(const Linear& l, float sum, int row, int output) {
    const int64_t place = int64_t(row) * l.n + output;
    if (l.bias) sum += l.bias[output];
    if (l.result == AS_FLOAT) static_cast<float*>(l.y)[place] = sum;
    else if (l.result == AS_BF16) static_cast<bf16*>(l.y)[place] = narrow(sum);
    // Rounded first, as a layer's result in bf16 is.
    else static_cast<float*>(l.y)[place] += widen(narrow(sum));
}

#ifdef __AVX512BF16__

// Where the weights of some outputs are, and how 32 of output j are had in bf16.
struct HalfRows {
    const bf16* weights;
    int64_t k;
    __m512bh load(int j, int at, __mmask32 mask) const {
        return load_bf16(weights + j * k + at, mask);
    }
    __m512bh load(int j, int at) const { return load_bf16(weights + j * k + at); }
    const char* address(int j, int at) const { return (const char*)(weights + j * k + at); }
};

// The bytes times the scale of their group, rounded to bf16.
struct ByteRows {
    const int8_t* weights;
    const float* scales;
    int64_t k;
    int group, groups;
    __m512bh load(int j, int at, __mmask32 mask) const {
        __m256i bytes = _mm256_maskz_loadu_epi8(mask, weights + j * k + at);
        __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
        __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
        __m512 scale = _mm512_set1_ps(scales[int64_t(j) * groups + at / group]);
        return _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale));
    }
    __m512bh load(int j, int at) const { return load(j, at, ~__mmask32(0)); }
    const char* address(int j, int at) const { return (const char*)(weights + j * k + at); }
};

template <int M>
inline void finish_tile(const Linear& l, __m512 sums, int row, int output) {
    if (l.bias)
        sums = _mm512_add_ps(sums, _mm512_broadcast_f32x4(_mm_loadu_ps(l.bias + output)));
    alignas(64) float wide[16];
    alignas(32) bf16 half[16];
    if (l.result == AS_FLOAT) {
        _mm512_store_ps(wide, sums);
        for (int i = 0; i < M; ++i)
            std::memcpy(static_cast<float*>(l.y) + int64_t(row + i) * l.n + output, wide + 4 * i,
                        16);
        return;
    }
    __m256i rounded = (__m256i)_mm512_cvtneps_pbh(sums);
    if (l.result == AS_BF16) {
        _mm256_store_si256((__m256i*)half, rounded);
        for (int i = 0; i < M; ++i)
            std::memcpy(static_cast<bf16*>(l.y) + int64_t(row + i) * l.n + output, half + 4 * i,
                        8);
        return;
    }
    _mm512_store_ps(wide, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
    for (int i = 0; i < M; ++i) {
        float* to = static_cast<float*>(l.y) + int64_t(row + i) * l.n + output;
        _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm_load_ps(wide + 4 * i)));
    }
}

const int AHEAD = 8 * TILE;  // outputs whose weights are asked for before they are needed

// M rows times 4 outputs, whose weights are w's. The processor does not foresee what comes next:
// so much as FETCH outputs have is asked for meanwhile, from output `next` of w on.
template <int M, int FETCH, typename Rows>
inline void tile(const Linear& l, const Rows& w, int next, int row, int output) {
    const bf16* x = l.x + int64_t(row) * l.k;
    const int64_t k = l.k;
    __m512 acc[TILE][TILE];
#pragma GCC unroll 4
    for (int i = 0; i < TILE; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < TILE; ++j) acc[i][j] = _mm512_setzero_ps();
    int at = 0;
    for (; at + 32 <= k; at += 32) {
        __m512bh b[TILE];
#pragma GCC unroll 4
        for (int j = 0; j < TILE; ++j) {
            b[j] = w.load(j, at);
            if (j < FETCH) _mm_prefetch(w.address(next + j, at), _MM_HINT_T1);
        }
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            __m512bh a = load_bf16(x + i * k + at);
#pragma GCC unroll 4
            for (int j = 0; j < TILE; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], a, b[j]);
        }
    }
    if (at < k) {
        const __mmask32 mask = (__mmask32(1) << (k - at)) - 1;
        for (int i = 0; i < M; ++i) {
            __m512bh a = load_bf16(x + i * k + at, mask);
            for (int j = 0; j < TILE; ++j)
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], a, w.load(j, at, mask));
        }
    }
    finish_tile<M>(l, sum_tile(acc), row, output);
}

// All rows times 4 outputs. What is asked for is spread over the first tiles, so that memory has
// something to do all the time.
template <bool FETCH, typename Rows>
void tiles(const Linear& l, const Rows& w, int first, int last, int output) {
    int row = first;
    const int whole = (last - first) / TILE;
    if (FETCH && whole >= 4) {
        for (int i = 0; i < 4; ++i, row += TILE) tile<4, 1>(l, w, AHEAD + i, row, output);
    } else if (FETCH && whole >= 2) {
        for (int i = 0; i < 2; ++i, row += TILE) tile<4, 2>(l, w, AHEAD + 2 * i, row, output);
    } else if (FETCH && whole) {
        tile<4, 4>(l, w, AHEAD, row, output), row += TILE;
    }
    for (; row + TILE <= last; row += TILE) tile<4, 0>(l, w, 0, row, output);
    if (last - row == 3) tile<3, FETCH ? 4 : 0>(l, w, AHEAD, row, output);
    else if (last - row == 2) tile<2, FETCH ? 4 : 0>(l, w, AHEAD, row, output);
    else if (last - row == 1) tile<1, FETCH ? 4 : 0>(l, w, AHEAD, row, output);
}

inline void run_outputs(const Linear& l, int first, int last, int output, bf16* widened) {
    const int64_t start = int64_t(output) * l.k;
    if (!l.scales) {
        HalfRows rows{static_cast<const bf16*>(l.weight) + start, l.k};
        tiles<true>(l, rows, first, last, output);
        return;
    }
    const int groups = l.k / l.group;
    ByteRows rows{static_cast<const int8_t*>(l.weight) + start,
                  l.scales + int64_t(output) * groups, l.k, l.group, groups};
    if (last - first <= TILE) {
        tiles<true>(l, rows, first, last, output);
        return;
    }
    for (int j = 0; j < TILE; ++j)  // many rows: made bf16 once for all of them
        for (int at = 0; at < l.k; at += 32) {
            const int left = l.k - at;
            const __mmask32 mask = left >= 32 ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
            _mm512_mask_storeu_epi16(widened + int64_t(j) * l.k + at, mask,
                                     (__m512i)rows.load(j, at, mask));
            _mm_prefetch(rows.address(AHEAD + j, at), _MM_HINT_T1);
        }
    tiles<false>(l, HalfRows{widened, l.k}, first, last, output);
}

#endif

// One sum, for what is left beside the tiles, and for processors without their instructions.
inline float one_sum(const Linear& l, int row, int output) {
    const bf16* x = l.x + int64_t(row) * l.k;
    const int64_t start = int64_t(output) * l.k;
    f32x16 lanes = {};
    for (int at = 0; at < l.k; at += 16) {
        float a[16] = {}, b[16] = {};
        const int count = l.k - at < 16 ? l.k - at : 16;
        for (int i = 0; i < count; ++i) {
            a[i] = widen(x[at + i]);
            if (l.scales) {
                float scale = l.scales[(start + at + i) / l.group];
                b[i] = widen(narrow(static_cast<const int8_t*>(l.weight)[start + at + i] * scale));
            } else {
                b[i] = widen(static_cast<const bf16*>(l.weight)[start + at + i]);
            }
        }
        lanes += load16(a) * load16(b);
    }
    return sum16(lanes);
}

const int ROW_BLOCK = 128;  // rows of x that stay in the second-level cache

inline void run_linear(const Linear& l, int64_t first, int64_t last) {
    static thread_local std::vector<bf16> widened;
    if (l.scales && l.m > TILE) widened.resize(int64_t(TILE) * l.k);
    for (int start = 0; start < l.m; start += ROW_BLOCK) {
        int end = start + ROW_BLOCK < l.m ? start + ROW_BLOCK : l.m;
        int64_t output = first;
#ifdef __AVX512BF16__
        for (; output + TILE <= last; output += TILE)
            run_outputs(l, start, end, int(output), widened.data());
#endif
        for (; output < last; ++output)
            for (int row = start; row < end; ++row)
                finish(l, one_sum(l, row, int(output)), row, int(output));
    }
}

// A thread's share of the outputs; all threads of a team call it.
inline void linear_in_team(const Linear& l) {
    const int64_t count = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t blocks = (l.n + TILE - 1) / TILE;
    const int64_t first = blocks * thread / count * TILE;
    const int64_t last = blocks * (thread + 1) / count * TILE;
    run_linear(l, first, last < l.n ? last : l.n);
}

}  // namespace lmsmith
