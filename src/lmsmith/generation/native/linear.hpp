// Linear layers: y = x W^T + b, x bf16 (m, k), W (n, k) in bf16 or int8, with float32 sums.
//
// This is for any processor, with weights as PyTorch has them; panels.hpp is for those with the
// instructions that it takes.

#pragma once

#include <omp.h>

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

// One sum: products in 16 lanes, in plain loops, of which a compiler makes what the processor has.
template <typename W>
inline float one_sum(const Linear& l, int row, int64_t output) {
    const bf16* x = l.x + int64_t(row) * l.k;
    const W* weights = static_cast<const W*>(l.weight) + output * l.k;
    const int group = l.scales ? l.group : l.k;
    float lanes[LANES] = {};
    for (int first = 0; first < l.k; first += group) {
        float sums[LANES] = {};
        const int end = first + group;
        int at = first;
        for (; at + LANES <= end; at += LANES)
            for (int lane = 0; lane < LANES; ++lane)
                sums[lane] += widen(x[at + lane]) * widen(weights[at + lane]);
        for (int lane = 0; at + lane < end; ++lane)
            sums[lane] += widen(x[at + lane]) * widen(weights[at + lane]);
        const float scale = l.scales ? l.scales[output * (l.k / group) + first / group] : 1.0f;
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] += sums[lane] * scale;
    }
    return sum16(load16(lanes));
}

// A thread's share of the outputs; all threads of a team call it.
inline void sums_in_team(const Linear& l) {
    const int64_t count = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t first = l.n * thread / count, last = l.n * (thread + 1) / count;
    for (int64_t output = first; output < last; ++output)
        for (int row = 0; row < l.m; ++row) {
            const float sum =
                l.scales ? one_sum<int8_t>(l, row, output) : one_sum<bf16>(l, row, output);
            finish(l, sum, row, int(output));
        }
}

}  // namespace lmsmith
