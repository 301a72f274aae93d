// What is done row by row: norms, and the activations of feed-forward layers.

#pragma once

#include "numbers.hpp"

namespace lmsmith {

// RMSNorm (shift null) or LayerNorm of a row of float32.
template <typename T>
inline void norm_row(const float* from, const float* weight, const float* shift, T* to, int width,
                     float epsilon, bool centred) {
    float mean = 0;
    f32x16 lanes = {}, squares = {};
    int i = 0;
    if (centred) {
        for (; i + 16 <= width; i += 16) lanes += load16(from + i);
        mean = sum16(lanes);
        for (; i < width; ++i) mean += from[i];
        mean /= width;
    }
    for (i = 0; i + 16 <= width; i += 16) {
        f32x16 part = load16(from + i) - mean;
        squares += part * part;
    }
    float square = sum16(squares);
    for (; i < width; ++i) square += (from[i] - mean) * (from[i] - mean);
    const float factor = 1.0f / std::sqrt(square / width + epsilon);
    for (i = 0; i + 16 <= width; i += 16) {
        f32x16 result = (load16(from + i) - mean) * factor * load16(weight + i);
        if (shift) result += load16(shift + i);
        store16(to + i, result);
    }
    for (; i < width; ++i)
        store(to + i, (from[i] - mean) * factor * weight[i] + (shift ? shift[i] : 0.0f));
}

// What fits no 16 is brought to 16 with zeros.
template <typename Function>
inline void by_sixteen(int width, const bf16* x, const bf16* other, bf16* to, Function function) {
    int i = 0;
    for (; i + 16 <= width; i += 16) function(x + i, other + i, to + i);
    if (i == width) return;
    bf16 first[16] = {}, second[16] = {};
    std::memcpy(first, x + i, sizeof(bf16) * (width - i));
    std::memcpy(second, other + i, sizeof(bf16) * (width - i));
    function(first, second, first);
    std::memcpy(to + i, first, sizeof(bf16) * (width - i));
}

// SwiGLU: silu(gate) x inner, each rounded to bf16 as two layers' results are; `both` holds gate
// and inner one after the other.
inline void gate_row(const bf16* both, bf16* to, int width) {
    by_sixteen(width, both, both + width, to, [](const bf16* gate, const bf16* inner, bf16* y) {
        const f32x16 x = load16(gate);
        bf16 silu[16];
        store16(silu, x * sigmoid16(x));
        store16(y, load16(silu) * load16(inner));
    });
}

// GELU by tanh: 0.5 x (1 + tanh z) = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3).
inline void gelu_row(const bf16* from, bf16* to, int width) {
    by_sixteen(width, from, from, to, [](const bf16* in, const bf16*, bf16* y) {
        const f32x16 x = load16(in);
        store16(y, x * sigmoid16(1.5957691216057308f * (x + 0.044715f * x * x * x)));
    });
}

// log of the sum of exp of a row, and the first of its largest; it is read from memory once, and
// from the cache after that.
template <typename T>
inline void log_sum_row(const T* from, int count, float* log_sum, int64_t* best) {
    const int BLOCK = 1024;  // whose largest is known before its place is looked for
    float most = -INFINITY;
    int place = 0;
    for (int start = 0; start < count; start += BLOCK) {
        const int end = start + BLOCK < count ? start + BLOCK : count;
        float largest = widen(from[start]);
        int i = start;
        if (end - start >= 16) {
            f32x16 lanes = load16(from + i);
            for (i += 16; i + 16 <= end; i += 16) lanes = larger(load16(from + i), lanes);
            for (int lane = 0; lane < 16; ++lane)
                largest = lanes[lane] > largest ? lanes[lane] : largest;
        }
        for (; i < end; ++i) largest = widen(from[i]) > largest ? widen(from[i]) : largest;
        if (largest > most) most = largest, place = start;
    }
    while (place < count && widen(from[place]) != most) ++place;
    *best = place < count ? place : 0;
    f32x16 lanes = {};
    int i = 0;
    for (; i + 16 <= count; i += 16) lanes += exp16(load16(from + i) - most);
    float sum = sum16(lanes);
    for (; i < count; ++i) sum += std::exp(widen(from[i]) - most);
    *log_sum = most + std::log(sum);
}

}  // namespace lmsmith
