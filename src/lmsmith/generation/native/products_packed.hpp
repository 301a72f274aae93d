// Products of rows and packed weights: y = sum of scale x (sum of x q) + minimum x (sum of x).
//
// x has 16 bits, each 32 by their largest; a unit of 32 inputs, or half of one, is summed as
// integers, exactly. A few rows read the packed weights; for many, a block is unpacked once. Both sum
// in the same order.

#pragma once

#include <type_traits>

#include "eight.hpp"
#include "packed.hpp"
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#include "products_512.hpp"
#else
#include "products_256.hpp"
#endif

namespace lmsmith {

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
const int WIDTH = 16;
typedef f32x16 Floats;
typedef i32x16 Ints;
typedef uint16_t Shorts __attribute__((vector_size(64)));

inline void add_pairs(Ints& sums, Ints weight, Ints x) {
    add_products(sums, weight, x);
}
inline Ints widen_pairs(const int8_t* from) {
    return (Ints)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
}
inline Floats multiply_add_lanes(Floats a, Floats b, Floats sum) {
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
}
inline Floats widen_float16(const uint16_t* from) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
}
inline Floats load_lanes(const bf16* from) { return load16(from); }
inline int32_t sum_of_lanes(Ints x) { return _mm512_reduce_add_epi32((__m512i)x); }
inline void finish_lanes(const Linear& l, Floats sum, int row, int output) {
    if (output < l.n) finish16(l, (__m512)sum, row, output);
}
#else
const int WIDTH = 8;
typedef f32x8 Floats;
typedef i32x8 Ints;
typedef uint16_t Shorts __attribute__((vector_size(32)));

inline void add_pairs(Ints& sums, Ints weight, Ints x) {
#if defined(__AVXVNNI__)
    sums = (Ints)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)weight, (__m256i)x);
#else
    sums += pair_products((i16x16)weight, (i16x16)x);
#endif
}
inline Ints widen_pairs(const int8_t* from) { return (Ints)widen_bytes(from); }
inline Floats multiply_add_lanes(Floats a, Floats b, Floats sum) { return multiply_add(a, b, sum); }
inline Floats widen_float16(const uint16_t* from) {
#if defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(load<__m128i>(from));
#else
    // The exponent's place moves by 13 bits, its zero by 112; this holds for all finite numbers.
    const u32x8 bits = __builtin_convertvector(load<u16x8>(from), u32x8);
    const Floats size = (Floats)((bits & 0x7fffu) << 13) * 0x1p112f;
    return (Floats)((u32x8)size | (bits & 0x8000u) << 16);
#endif
}
inline Floats load_lanes(const bf16* from) { return load8(from); }
inline int32_t largest_lane(Ints x) {
    int32_t most = x[0];
    for (int lane = 1; lane < WIDTH; ++lane) most = x[lane] > most ? x[lane] : most;
    return most;
}
inline int32_t sum_of_lanes(Ints x) {
    int32_t sum = 0;
    for (int lane = 0; lane < WIDTH; ++lane) sum += x[lane];
    return sum;
}
inline void finish_lanes(const Linear& l, Floats sum, int row, int output) {
    finish8(l, sum, row, output);
}
#endif

const int REGISTERS = LANES / WIDTH;  // of a block
const int PAIRS = UNIT / 2;

inline Floats all_lanes(float x) { return x - Floats{}; }  // folded: x + 0 is not, for -0
inline Ints all_pairs(const int16_t* x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return Ints{} + pair;
}

template <int AT>
inline Ints nibbles(Ints word) {
    return (Ints)(AT == 3 ? (Shorts)word >> 12 : ((Shorts)word >> (4 * AT)) & 15);
}

// Byte 0 or 1 of each of 16 bits.
template <int AT>
inline Floats step_of(const int16_t* from) {
    typedef int16_t Halves __attribute__((vector_size(WIDTH * 2)));
    Halves both = load<Halves>(from);
    both = AT ? both >> 8 : (Halves)(both << 8) >> 8;
    return __builtin_convertvector(__builtin_convertvector(both, Ints), Floats);
}

// Scales and minima of a register's outputs for a unit; halves have scales of their own.
template <int P>
struct Unit {
    Floats scales[P == Q6_K ? 2 : 1], minimum;

    Unit(const Part& p, int unit, int lane) {
        const int group = unit * UNIT / inputs_of_scale(P);
        const uint16_t* halves = reinterpret_cast<const uint16_t*>(p.l.scales);
        const int64_t at = int64_t(group) * p.together * LANES + lane;
        const int64_t of_panel = int64_t(p.panel) * p.groups * LANES;
        scales[0] = widen_float16(halves + of_panel + at);
        if (has_minima(P)) minimum = widen_float16(p.l.minima + of_panel + at);
        else if (P == Q4_0) minimum = scales[0] * -8.0f;
        if (!has_steps(P)) return;
        const int16_t* steps = p.l.steps + int64_t(p.panel) * p.chunks * LANES +
                               int64_t(unit) * p.together * LANES + lane;
        const Floats first = step_of<0>(steps), second = step_of<1>(steps);
        if (P == Q4_K) minimum *= -second;
        else scales[P == Q6_K] = scales[0] * second;
        scales[0] *= first;
    }
};

inline Floats add_unit(Floats total, Ints sums, Floats scale, float x_scale) {
    return multiply_add_lanes(__builtin_convertvector(sums, Floats) * x_scale, scale, total);
}

// What takes the sums by reference is inlined by force: Clang calls it otherwise, with all sums in
// memory, and the AVX-512 products of many rows took more than twice the time.
#define LMSMITH_INLINE __attribute__((always_inline)) inline

// Adds up a unit's products for R rows and B registers. Totals stay in memory where the registers are
// for the sums.
template <int R, int B, int HALVES, bool MINIMA>
struct Totals {
    Floats of[R][B] = {};

    LMSMITH_INLINE void add(const Part& p, const Ints (&sums)[R][B], const Floats (&scales)[B],
                            const Floats (&minima)[B], int64_t place, bool least) {
#pragma GCC unroll 8
        for (int j = 0; j < B; ++j)
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i) {
                const int64_t at = place + int64_t(i) * p.chunks;
                Floats total = add_unit(of[i][j], sums[i][j], scales[j], p.x_scales[at]);
                if (MINIMA && least)
                    total = multiply_add_lanes(minima[j], all_lanes(p.x_sums[at]), total);
                of[i][j] = total;
            }
    }
    void end_unit() {
        if (R * B > 8 || (R > 1 && B > 2)) asm volatile("" : : "r"(of) : "memory");
    }
    void finish(const Part& p, int row) const {
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < B; ++j)
                finish_lanes(p.l, of[i][j], row + i, (p.panel + p.within) * LANES + j * WIDTH);
    }
};

template <int R, int B>
LMSMITH_INLINE void add_pair(Ints (&sums)[R][B], const Ints (&weight)[B], const int16_t* x,
                             int64_t stride) {
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i) {
        const Ints both = all_pairs(x + i * stride);
#pragma GCC unroll 8
        for (int j = 0; j < B; ++j) add_pairs(sums[i][j], weight[j], both);
    }
}

template <int AT, int R, int B>
LMSMITH_INLINE void add_nibbles(Ints (&sums)[R][B], const char* w, const int16_t* x,
                                int64_t stride) {
    Ints weight[B];
#pragma GCC unroll 8
    for (int j = 0; j < B; ++j) weight[j] = nibbles<AT>(load<Ints>(w + j * WIDTH * 4));
    add_pair(sums, weight, x + 2 * AT, stride);
}

// R rows times blocks of a panel as they are packed. If these are its ONLY rows, it is read as one
// stream; else a share of the next panel is fetched meanwhile.
template <int P, int BLOCKS, int R, bool ONLY>
inline void multiply_packed_tile(const Part& p, Fetch f, int row) {
    constexpr int B = BLOCKS * REGISTERS, HALVES = P == Q6_K ? 2 : 1;
    constexpr bool FOUR = is_four_bits(P);
    constexpr int COLUMNS = UNIT / inputs_of_column(P) / HALVES, BYTES = FOUR ? 4 : 2;
    const char* w = static_cast<const char*>(p.l.weight) +
                    (int64_t(p.panel) * (p.l.k / inputs_of_column(P)) + p.within) * LANES * BYTES;
    const int16_t* x = static_cast<const int16_t*>(p.x) + row * p.stride;
    const int64_t step = int64_t(p.together) * LANES * BYTES;
    Totals<R, B, HALVES, FOUR> totals;
    for (int unit = 0; unit < p.chunks; ++unit, f.next += f.step) {
        if (!ONLY)
            for (int at = 0; at < f.step; at += 64) __builtin_prefetch(f.next + at, 0, 2);
        Floats scales[HALVES][B], minima[B];
#pragma GCC unroll 8
        for (int j = 0; j < B; ++j) {
            const Unit<P> u(p, unit, p.within * LANES + j * WIDTH);
            for (int half = 0; half < HALVES; ++half) scales[half][j] = u.scales[half];
            minima[j] = FOUR ? u.minimum : Floats{};
        }
#pragma GCC unroll 2
        for (int half = 0; half < HALVES; ++half) {
            Ints sums[R][B];
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
                for (int j = 0; j < B; ++j) sums[i][j] = Ints{};
            for (int column = 0; column < COLUMNS; ++column, w += step) {
                if (ONLY)
#pragma GCC unroll 4
                    for (int at = 0; at < BLOCKS * LANES * BYTES; at += 64)
                        __builtin_prefetch(w + AHEAD + at, 0, 3);
                if (FOUR) {
                    add_nibbles<0>(sums, w, x, p.stride), add_nibbles<1>(sums, w, x, p.stride);
                    add_nibbles<2>(sums, w, x, p.stride), add_nibbles<3>(sums, w, x, p.stride);
                    x += 8;
                } else {
                    Ints weight[B];
#pragma GCC unroll 8
                    for (int j = 0; j < B; ++j)
                        weight[j] = widen_pairs(reinterpret_cast<const int8_t*>(w) + j * WIDTH * 2);
                    add_pair(sums, weight, x, p.stride);
                    x += 2;
                }
            }
            totals.add(p, sums, scales[half], minima, int64_t(row) * p.chunks + unit,
                       half == HALVES - 1);
        }
        totals.end_unit();
    }
    totals.finish(p, row);
}

// Unpacked blocks: 16 bits a number, and of each unit the scales (of each half) and minima.
struct Block16 {
    std::vector<int16_t> numbers;
    std::vector<float> scales, minima;
};

template <int P, int B>
inline void unpack_panel(const Part& p, Block16& to) {
    constexpr int HALVES = P == Q6_K ? 2 : 1, BYTES = is_four_bits(P) ? 4 : 2;
    const int columns = p.l.k / inputs_of_column(P);
    to.numbers.resize(int64_t(p.pairs) * B * WIDTH * 2);
    to.scales.resize(int64_t(p.chunks) * HALVES * B * WIDTH);
    to.minima.resize(int64_t(p.chunks) * B * WIDTH);
    const char* w = static_cast<const char*>(p.l.weight) +
                    (int64_t(p.panel) * columns + p.within) * LANES * BYTES;
    int16_t* at = to.numbers.data();
    for (int column = 0; column < columns; ++column, w += int64_t(p.together) * LANES * BYTES)
        for (int j = 0; j < B; ++j) {
            constexpr int NEXT = B * WIDTH * 2;
            const auto put = [&](int pair, Ints numbers) {
                std::memcpy(at + (column * inputs_of_column(P) / 2 + pair) * NEXT + j * WIDTH * 2,
                            &numbers, sizeof numbers);
            };
            if (is_four_bits(P)) {
                const Ints word = load<Ints>(w + j * WIDTH * 4);
                put(0, nibbles<0>(word)), put(1, nibbles<1>(word));
                put(2, nibbles<2>(word)), put(3, nibbles<3>(word));
            } else {
                put(0, widen_pairs(reinterpret_cast<const int8_t*>(w) + j * WIDTH * 2));
            }
        }
    for (int unit = 0; unit < p.chunks; ++unit)
        for (int j = 0; j < B; ++j) {
            const Unit<P> u(p, unit, p.within * LANES + j * WIDTH);
            for (int half = 0; half < HALVES; ++half)
                std::memcpy(&to.scales[((unit * HALVES + half) * B + j) * WIDTH], &u.scales[half],
                            sizeof(Floats));
            if (is_four_bits(P))
                std::memcpy(&to.minima[(unit * B + j) * WIDTH], &u.minimum, sizeof(Floats));
        }
}

// R rows times B registers of unpacked numbers; meanwhile a share of the next panel is fetched.
template <int R, int B, int HALVES, bool MINIMA>
inline void multiply_unpacked(const Part& p, const Block16& block, Fetch f, int row) {
    const int16_t* w = block.numbers.data();
    const int16_t* x = static_cast<const int16_t*>(p.x) + row * p.stride;
    const float *scale = block.scales.data(), *minimum = block.minima.data();
    Totals<R, B, HALVES, MINIMA> totals;
    for (int unit = 0; unit < p.chunks; ++unit, f.next += f.step) {
        for (int at = 0; at < f.step; at += 64) __builtin_prefetch(f.next + at, 0, 2);
        for (int half = 0; half < HALVES; ++half, scale += B * WIDTH) {
            Ints sums[R][B];
#pragma GCC unroll 6
            for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < B; ++j) sums[i][j] = Ints{};
            for (int pair = 0; pair < PAIRS / HALVES; ++pair, w += B * WIDTH * 2, x += 2) {
                Ints weight[B];
#pragma GCC unroll 4
                for (int j = 0; j < B; ++j) weight[j] = load<Ints>(w + j * WIDTH * 2);
                add_pair(sums, weight, x, p.stride);
            }
            Floats scales[B], minima[B] = {};
#pragma GCC unroll 4
            for (int j = 0; j < B; ++j) {
                scales[j] = load<Floats>(scale + j * WIDTH);
                if (MINIMA) minima[j] = load<Floats>(minimum + j * WIDTH);
            }
            totals.add(p, sums, scales, minima, int64_t(row) * p.chunks + unit,
                       half == HALVES - 1);
        }
        if (MINIMA) minimum += B * WIDTH;
        totals.end_unit();
    }
    totals.finish(p, row);
}

// function(rows as a constant) for 1 to 6 rows.
template <typename Function>
inline void with_rows(int rows, Function function) {
    switch (rows) {
        case 1: return function(std::integral_constant<int, 1>());
        case 2: return function(std::integral_constant<int, 2>());
        case 3: return function(std::integral_constant<int, 3>());
        case 4: return function(std::integral_constant<int, 4>());
        case 5: return function(std::integral_constant<int, 5>());
        default: return function(std::integral_constant<int, 6>());
    }
}

// Share `turn` of `turns` of the panel that follows, for each unit.
template <int P>
inline Fetch fetch_packed(const Part& p, int turn, int turns) {
    constexpr int BYTES = is_four_bits(P) ? 4 : 2;
    const int64_t of_block = int64_t(UNIT / inputs_of_column(P)) * LANES * BYTES;
    const int step = int((of_block * p.together + turns - 1) / turns);
    const char* next = static_cast<const char*>(p.l.weight) +
                       int64_t(p.next) * p.chunks * of_block;
    return {next + int64_t(turn) * p.chunks * step, step};
}

const int UNPACKED_FROM = WIDTH == 16 ? 5 * MOST_ROWS : 5;  // rows, from which it pays to unpack

// The blocks of this part are number `turn` of `turns` of the panel's.
template <int P, int BLOCKS>
inline void multiply_packed_many(const Part& p, int first, int last, int turn, int turns) {
    static thread_local Block16 block;
    constexpr int B = BLOCKS * REGISTERS, HALVES = P == Q6_K ? 2 : 1;
    const bool unpacked = last - first >= UNPACKED_FROM;
    if (unpacked) unpack_panel<P, B>(p, block);
    const int tiles = (last - first + MOST_ROWS - 1) / MOST_ROWS;
    for (int tile = 0; tile < tiles; ++tile) {
        const int rows = (last - first) / (tiles - tile);
        const Fetch f = fetch_packed<P>(p, turn * tiles + tile, turns * tiles);
        with_rows(rows, [&](auto count) {
            constexpr int R = decltype(count)::value;
            if (unpacked) multiply_unpacked<R, B, HALVES, is_four_bits(P)>(p, block, f, first);
            else if (tiles * turns == 1) multiply_packed_tile<P, BLOCKS, R, true>(p, f, first);
            else multiply_packed_tile<P, BLOCKS, R, false>(p, f, first);
        });
        first += rows;
    }
}

template <int P>
inline void multiply_packing(const Part& p, int blocks, int first, int last) {
    if (last - first == 1) {
        if (blocks == 4) multiply_packed_tile<P, 4, 1, true>(p, {}, first);
        else if (blocks == 2) multiply_packed_tile<P, 2, 1, true>(p, {}, first);
        else multiply_packed_tile<P, 1, 1, true>(p, {}, first);
    } else if (REGISTERS == 1 && blocks > 1) {  // two or four registers, of wide ones
        if (blocks == 4) multiply_packed_many<P, REGISTERS == 1 ? 4 : 1>(p, first, last, 0, 1);
        else multiply_packed_many<P, REGISTERS == 1 ? 2 : 1>(p, first, last, 0, 1);
    } else {
        for (int block = 0; block < blocks; ++block) {
            Part part = p;
            part.within += block;
            multiply_packed_many<P, 1>(part, first, last, block, blocks);
        }
    }
}

// Rows first to last times 1, 2 or 4 blocks.
inline void multiply_packed(const Part& p, int blocks, int first, int last) {
    switch (p.l.packing) {
        case Q4_0: return multiply_packing<Q4_0>(p, blocks, first, last);
        case Q4_1: return multiply_packing<Q4_1>(p, blocks, first, last);
        case Q8_0: return multiply_packing<Q8_0>(p, blocks, first, last);
        case Q4_K: return multiply_packing<Q4_K>(p, blocks, first, last);
        default: return multiply_packing<Q6_K>(p, blocks, first, last);
    }
}

// x in 16 bits, each 32 by the largest absolute value; and their sums. What is not finite makes its
// scale so.
inline void prepare_packed_rows(const Linear& l, Part& part) {
    static thread_local std::vector<int16_t> rounded;
    static thread_local std::vector<float> scales, sums;
    const float magic = 12582912.0f;  // 1.5 x 2^23: added, it rounds to a whole number
    const int64_t units = int64_t(l.m) * (l.k / UNIT);
    rounded.resize(units * UNIT), scales.resize(units), sums.resize(units);
    for (int64_t unit = 0; unit < units; ++unit) {
        const bf16* from = l.x + unit * UNIT;
        uint16_t bits = 0;
        for (int i = 0; i < UNIT; ++i) {
            const uint16_t size = from[i] & 0x7fffu;
            bits = size > bits ? size : bits;
        }
        const float most = widen(bf16(bits));
        const Floats inverse = all_lanes(most > 0 ? 32767.0f / most : 0.0f);
        Ints sum = {};
        for (int i = 0; i < UNIT; i += WIDTH) {
            const Floats whole = multiply_add_lanes(load_lanes(from + i), inverse, all_lanes(magic));
            const Ints number = (Ints)whole - 0x4b400000;
            typedef int16_t Halves __attribute__((vector_size(WIDTH * 2)));
            const Halves halves = __builtin_convertvector(number, Halves);
            std::memcpy(&rounded[unit * UNIT + i], &halves, sizeof halves);
            sum += number;
        }
        scales[unit] = most / 32767.0f;
        sums[unit] = scales[unit] * float(sum_of_lanes(sum));
    }
    part.stride = l.k, part.pairs = l.k / 2, part.chunks = l.k / UNIT;
    part.x = rounded.data(), part.x_scales = scales.data(), part.x_sums = sums.data();
}

}  // namespace lmsmith
