// Weights that stay as a GGUF file packs them: from the file's blocks to panels (panels.hpp).
//
// Of 4 bits, a column of a panel is 8 inputs of each output in 32 bits: number 2t + p of them stands
// at bit 4t + 16p, so that a shift gives each pair of inputs in 16 bits a number. Of 8 bits, it is a
// pair. Scales are float16, of 32 inputs; where steps divide a scale further it is of 256 inputs.
// The layout of the blocks is llama.cpp's (ggml-common.h, ggml-quants.c).

#pragma once

#include "panels.hpp"

namespace lmsmith {

enum Packing { NOT_PACKED = 0, Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, Q4_K = 12, Q6_K = 14 };  // as in files

const int UNIT = 32;  // inputs whose products are summed as integers, or halves of them

constexpr bool is_four_bits(int p) { return p == Q4_0 || p == Q4_1 || p == Q4_K; }
constexpr bool has_steps(int p) { return p == Q4_K || p == Q6_K; }
constexpr bool has_minima(int p) { return p == Q4_1 || p == Q4_K; }
constexpr int inputs_of_scale(int p) { return has_steps(p) ? 256 : UNIT; }
constexpr int inputs_of_column(int p) { return is_four_bits(p) ? 8 : 2; }

// The numbers of a block, before scales and minima.
struct Unpacked {
    int8_t numbers[256];
    uint16_t scale, minimum;
    int8_t steps[16];  // of each 32 inputs a scale's and a minimum's, or the scales of both halves
};

inline void unpack_halves(const uint8_t* from, int8_t* numbers, int count) {
    for (int i = 0; i < count; ++i) {
        numbers[i] = from[i] & 15;
        numbers[count + i] = from[i] >> 4;
    }
}

inline void unpack_q4_k(const uint8_t* block, Unpacked& to) {
    const uint8_t* steps = block + 4;
    std::memcpy(&to.scale, block, 2), std::memcpy(&to.minimum, block + 2, 2);
    for (int i = 0; i < 8; ++i) {
        to.steps[2 * i] = i < 4 ? steps[i] & 63 : (steps[i + 4] & 15) | (steps[i - 4] >> 6) << 4;
        to.steps[2 * i + 1] = i < 4 ? steps[i + 4] & 63 : steps[i + 4] >> 4 | (steps[i] >> 6) << 4;
    }
    for (int i = 0; i < 4; ++i) unpack_halves(block + 16 + 32 * i, to.numbers + 64 * i, 32);
}

inline void unpack_q6_k(const uint8_t* block, Unpacked& to) {
    const uint8_t *low = block, *high = block + 128;
    std::memcpy(to.steps, block + 192, 16), std::memcpy(&to.scale, block + 208, 2);
    for (int i = 0; i < 256; ++i) {
        const int half = i / 128, quarter = i / 32 % 4, at = i % 32;
        const int four = low[64 * half + 32 * (quarter % 2) + at] >> (quarter / 2 * 4) & 15;
        const int two = high[32 * half + at] >> (2 * quarter) & 3;
        to.numbers[i] = int8_t((four | two << 4) - 32);
    }
}

inline int bytes_of_block(int packing) {
    return packing == Q4_0 ? 18 : packing == Q4_1 ? 20 : packing == Q8_0 ? 34
         : packing == Q4_K ? 144 : 210;
}

inline void unpack(int packing, const uint8_t* block, Unpacked& to) {
    if (packing == Q4_K) return unpack_q4_k(block, to);
    if (packing == Q6_K) return unpack_q6_k(block, to);
    std::memcpy(&to.scale, block, 2);
    if (packing == Q4_1) std::memcpy(&to.minimum, block + 2, 2);
    if (packing == Q8_0) std::memcpy(to.numbers, block + 2, 32);
    else unpack_halves(block + (packing == Q4_1 ? 4 : 2), to.numbers, 16);
}

// Panels of a packed matrix; all but the values may be null.
struct Panels {
    void* values;
    uint16_t *scales, *minima;
    int16_t* steps;  // of each 32 inputs
};

template <typename T>
inline T* place(T* panels, int64_t row, int64_t column, int64_t columns, int64_t blocks) {
    const int64_t block = row / LANES, start = block / PANEL * PANEL;
    const int64_t together = blocks - start < PANEL ? blocks - start : PANEL;
    return panels + (start * columns + column * together + block - start) * LANES + row % LANES;
}

inline void pack_row(int packing, const uint8_t* from, const Panels& to, int64_t row,
                     int64_t blocks, int64_t inputs) {
    const int size = inputs_of_scale(packing), step = inputs_of_column(packing);
    const int64_t columns = inputs / step, groups = inputs / size;
    Unpacked u;
    for (int64_t group = 0; group < groups; ++group, from += bytes_of_block(packing)) {
        unpack(packing, from, u);
        *place(to.scales, row, group, groups, blocks) = u.scale;
        if (to.minima) *place(to.minima, row, group, groups, blocks) = u.minimum;
        for (int i = 0; to.steps && i < size / UNIT; ++i)
            std::memcpy(place(to.steps, row, group * size / UNIT + i, inputs / UNIT, blocks),
                        u.steps + 2 * i, 2);
        for (int i = 0; i < size / step; ++i) {
            const int8_t* numbers = u.numbers + step * i;
            const int64_t column = group * size / step + i;
            if (step == 2) {
                std::memcpy(place(static_cast<int16_t*>(to.values), row, column, columns, blocks),
                            numbers, 2);
                continue;
            }
            uint32_t word = 0;
            for (int n = 0; n < 8; ++n)
                word |= uint32_t(numbers[n]) << (4 * (n / 2) + 16 * (n % 2));
            *place(static_cast<uint32_t*>(to.values), row, column, columns, blocks) = word;
        }
    }
}

inline float widen_half(uint16_t bits) {  // as widen_float16
    const uint32_t size = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
    float value;
    std::memcpy(&value, &size, 4);
    value *= 0x1p112f;
    return sign ? -value : value;
}

// A row's numbers in float32, those of the file's block to the bit: but for the last of its
// operations, all are exact.
inline void read_row(int packing, const Panels& from, int64_t row, int64_t blocks, int64_t inputs,
                     float* to) {
    const int size = inputs_of_scale(packing), step = inputs_of_column(packing);
    const int64_t columns = inputs / step, groups = inputs / size;
    const int half = packing == Q6_K ? UNIT / 2 : UNIT;  // numbers of one scale
    for (int64_t input = 0; input < inputs; input += half) {
        float scale = widen_half(*place(from.scales, row, input / size, groups, blocks));
        float least = packing == Q4_0 ? -8.0f * scale : 0.0f;
        if (from.minima) least = widen_half(*place(from.minima, row, input / size, groups, blocks));
        if (from.steps) {
            int8_t steps[2];
            std::memcpy(steps, place(from.steps, row, input / UNIT, inputs / UNIT, blocks), 2);
            scale *= packing == Q6_K ? steps[input % UNIT / half] : steps[0];
            least *= -steps[1];
        }
        for (int i = 0; i < half; ++i) {
            const int64_t column = (input + i) / step;
            float number;
            if (step == 2) {
                int8_t pair[2];
                std::memcpy(pair, place(static_cast<int16_t*>(from.values), row, column, columns,
                                        blocks), 2);
                number = pair[i % 2];
            } else {
                const auto word = *place(static_cast<uint32_t*>(from.values), row, column, columns,
                                         blocks);
                number = word >> (4 * (i % 8 / 2) + 16 * (i % 2)) & 15;
            }
            to[input + i] = is_four_bits(packing) ? scale * number + least : scale * number;
        }
    }
}

}  // namespace lmsmith
