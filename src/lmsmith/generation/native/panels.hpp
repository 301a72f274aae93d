// Weights in panels: 16 outputs are the lanes of a register, so that no sum goes across lanes.
//
// A block is 16 outputs, two inputs of each side by side; a panel is 4 blocks, one input pair of
// all after another (fewer blocks in the last panel), so that few rows read it in one stream.
// Scales of int8 weights stand likewise, one group of all outputs after another. What is no whole
// pair or block is filled with zeros.

#pragma once

#include "linear.hpp"

namespace lmsmith {

const int PANEL = 4;

// `rows` x `columns` of T to panels; to holds whole blocks.
template <typename T>
inline void lay_out(const T* from, T* to, int64_t rows, int64_t columns, int threads) {
    const int64_t blocks = (rows + LANES - 1) / LANES;
    for_all(threads, blocks, [=](int64_t block) {
        const int64_t start = block / PANEL * PANEL;
        const int64_t together = blocks - start < PANEL ? blocks - start : PANEL;
        T* at = to + (start * columns + block - start) * LANES;
        const int64_t filled = rows - block * LANES < LANES ? rows - block * LANES : LANES;
        for (int64_t column = 0; column < columns; ++column, at += together * LANES)
            for (int64_t lane = 0; lane < LANES; ++lane)
                at[lane] = lane < filled ? from[(block * LANES + lane) * columns + column] : T(0);
    });
}

const int CHUNK = 64;       // inputs whose products are summed as integers
const int AHEAD = 4096;     // bytes that are asked for before they are needed
const int MOST_ROWS = 6;    // whose sums, of a panel each, are in registers
const int64_t ROWS_BYTES = 1 << 19;  // of rows that stay in the second-level cache

// Rows that are multiplied, and where a block's weights are among those of its panel.
struct Part {
    const Linear& l;
    const void* x;       // of bf16 weights bf16, of others int16; (rows, stride)
    const float* x_scales;  // of int16, (rows, chunks)
    int64_t stride;
    int pairs, chunks, groups;
    int together, panel, within;  // blocks of the panel; its first block; the first of this part
    const float* x_sums;  // of packed weights, sums of the chunks of x
    int next;  // first block of the panel that this thread multiplies next
};

// What is asked for while rows are multiplied: the panel's own weights a little ahead, where these
// are its only rows; else a share of the next panel, so that memory is busy all the time.
struct Fetch {
    const char* next;
    int step;
};

}  // namespace lmsmith
