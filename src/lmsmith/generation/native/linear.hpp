// Linear layers: y = x W^T + b, x bf16 (m, k), W (n, k) in bf16 or int8, with float32 sums.
//
// This is for any processor, with weights as PyTorch has them; panels.hpp is for those with the
// instructions that it takes.

#pragma once

#include <omp.h>
#include <vector>

#include "tiles.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define LMSMITH_PANELS
#endif

namespace lmsmith {

const int LANES = 16;

enum Result { AS_FLOAT = 0, AS_BF16 = 1, ADD_TO_FLOAT = 2 };

struct Linear {
    const bf16* x;
    const void* weight;
    const float* scales;  // of int8 weights, (n, k / group); null for bf16
    const float* bias;
    void* y;
    int m, k, n, group, result, in_panels;
};

inline void finish(const Linear& l, float sum, int row, int output) {
    const int64_t place = int64_t(row) * l.n + output;
    if (l.bias) sum += l.bias[output];
    if (l.result == AS_FLOAT) static_cast<float*>(l.y)[place] = sum;
    else if (l.result == AS_BF16) static_cast<bf16*>(l.y)[place] = narrow(sum);
    // Rounded first, as a layer's result in bf16 is.
    else static_cast<float*>(l.y)[place] += widen(narrow(sum));
}

// Sums of R rows with one output's weights, which are widened once: products in 16 lanes, in plain
// loops, of which a compiler makes what the processor has. A row's sum is the same for any R.
template <typename W, int R>
inline void sum_rows(const Linear& l, const float* x, int row, int64_t output) {
    x += int64_t(row) * l.k;
    const W* weights = static_cast<const W*>(l.weight) + output * l.k;
    const int group = l.scales ? l.group : l.k, half = LANES / 2;
    float lanes[R][LANES] = {};
    for (int first = 0; first < l.k; first += group) {
        f32x8 low[R] = {}, high[R] = {};
        const int end = first + group;
        int at = first;
        for (; at + LANES <= end; at += LANES) {
            const f32x8 one = load8(weights + at), other = load8(weights + at + half);
#pragma GCC unroll 5
            for (int i = 0; i < R; ++i) {
                low[i] += load8(x + int64_t(i) * l.k + at) * one;
                high[i] += load8(x + int64_t(i) * l.k + at + half) * other;
            }
        }
        const float scale = l.scales ? l.scales[output * (l.k / group) + first / group] : 1.0f;
#pragma GCC unroll 5
        for (int i = 0; i < R; ++i) {
            float sums[LANES];
            std::memcpy(sums, &low[i], sizeof(low[i]));
            std::memcpy(sums + half, &high[i], sizeof(high[i]));
            for (int lane = 0; at + lane < end; ++lane)
                sums[lane] += x[int64_t(i) * l.k + at + lane] * widen(weights[at + lane]);
            for (int lane = 0; lane < LANES; ++lane) lanes[i][lane] += sums[lane] * scale;
        }
    }
    for (int i = 0; i < R; ++i) finish(l, sum16(load16(lanes[i])), row + i, int(output));
}

template <typename W>
inline void sum_rows(const Linear& l, const float* x, int row, int64_t output, int rows) {
    switch (rows) {
        case 1: return sum_rows<W, 1>(l, x, row, output);
        case 2: return sum_rows<W, 2>(l, x, row, output);
        case 3: return sum_rows<W, 3>(l, x, row, output);
        case 4: return sum_rows<W, 4>(l, x, row, output);
        default: return sum_rows<W, 5>(l, x, row, output);
    }
}

// A thread's share of the outputs; all threads of a team call it.
inline void sums_in_team(const Linear& l) {
    const int64_t count = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t first = l.n * thread / count, last = l.n * (thread + 1) / count;
    std::vector<float> x(int64_t(l.m) * l.k);  // each thread its own, so that none waits
    for (size_t i = 0; i < x.size(); ++i) x[i] = widen(l.x[i]);
    for (int64_t output = first; output < last; ++output)
        for (int row = 0; row < l.m; row += 5) {
            const int rows = l.m - row < 5 ? l.m - row : 5;
            if (l.scales) sum_rows<int8_t>(l, x.data(), row, output, rows);
            else sum_rows<bf16>(l, x.data(), row, output, rows);
        }
}

}  // namespace lmsmith
