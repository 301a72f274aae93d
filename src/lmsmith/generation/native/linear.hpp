// Linear layers: y = x W^T + b, x bf16 (m, k), W (n, k) in bf16 or int8, with float32 sums.
//
// This is for any processor, with weights as PyTorch has them, one sum at a time; panels.hpp is for
// those with the instructions that it takes.

#pragma once

#include <omp.h>

#include "tiles.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define LMSMITH_PANELS
#endif

namespace lmsmith {

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
                b[i] = static_cast<const int8_t*>(l.weight)[start + at + i] * scale;
            } else {
                b[i] = widen(static_cast<const bf16*>(l.weight)[start + at + i]);
            }
        }
        lanes += load16(a) * load16(b);
    }
    return sum16(lanes);
}

// A thread's share of the outputs; all threads of a team call it.
inline void sums_in_team(const Linear& l) {
    const int64_t count = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t first = l.n * thread / count, last = l.n * (thread + 1) / count;
    for (int64_t output = first; output < last; ++output)
        for (int row = 0; row < l.m; ++row)
            finish(l, one_sum(l, row, int(output)), row, int(output));
}

}  // namespace lmsmith
