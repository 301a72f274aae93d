// Linear layers: y = x W^T + b, x bf16 (m, k), W (n, k) in bf16, int8 or as a file packs it, with
// float32 sums.

#pragma once

#include <vector>

#include "numbers.hpp"
#include "team.hpp"

namespace lmsmith {

const int LANES = 16;

enum Result { AS_FLOAT = 0, AS_BF16 = 1, ADD_TO_FLOAT = 2 };

struct Linear {
    const bf16* x;
    const void* weight;
    const float* scales;  // of int8 weights, (n, k / group); null for bf16; float16 of packed ones
    const float* bias;
    void* y;
    int m, k, n, group, result;
    int width;    // of a row of y
    int packing;  // packed.hpp
    const uint16_t* minima;
    const int16_t* steps;
};

inline void finish(const Linear& l, float sum, int row, int output) {
    const int64_t place = int64_t(row) * l.width + output;
    if (l.bias) sum += l.bias[output];
    if (l.result == AS_FLOAT) static_cast<float*>(l.y)[place] = sum;
    else if (l.result == AS_BF16) static_cast<bf16*>(l.y)[place] = narrow(sum);
    // Rounded first, as a layer's result in bf16 is.
    else static_cast<float*>(l.y)[place] += widen(narrow(sum));
}

}  // namespace lmsmith
