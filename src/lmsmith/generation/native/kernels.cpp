// The products and the attention of one step of generation, near what reading memory allows.
//
// Weights stay row by row, (outputs, inputs), as PyTorch has them, in bf16 or int8. Sums are kept
// in float32. Every result is summed in an order that does not depend on how many rows are computed
// together, so that a row's result is the same, to the bit, whatever else is in the batch.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

using bf16 = uint16_t;
typedef float f32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
inline float widen(float x) { return x; }

// To the nearest, ties to even, as PyTorch rounds.
inline bf16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return bf16((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
inline void store(bf16* to, float x) { *to = narrow(x); }
inline void store(float* to, float x) { *to = x; }

inline f32x16 load16(const float* from) {
    f32x16 result;
    std::memcpy(&result, from, 64);
    return result;
}
inline f32x16 load16(const bf16* from) {
    u16x16 half;
    std::memcpy(&half, from, 32);
    u32x16 bits = __builtin_convertvector(half, u32x16) << 16;
    return (f32x16)bits;
}

#ifdef __AVX512DQ__
inline float sum_lanes(__m512 x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    b = _mm_add_ss(b, _mm_shuffle_ps(b, b, 1));
    return _mm_cvtss_f32(b);
}
inline float sum16(f32x16 x) { return sum_lanes((__m512)x); }
#else
inline float sum16(f32x16 x) {
    float part[16];
    std::memcpy(part, &x, 64);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}
#endif

// exp(x) for x <= 0, to about 2 units in the last place (Cephes' polynomial).
inline f32x16 exp16(f32x16 x) {
    const f32x16 zero = {};
    x = x < zero - 87.0f ? zero - 87.0f : x;
    f32x16 shifted = x * 1.44269504088896341f + 12582912.0f;
    f32x16 n = shifted - 12582912.0f;
    f32x16 r = x - n * 0.693359375f - n * -2.12194440e-4f;
    f32x16 p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    i32x16 exponent = (__builtin_convertvector(n, i32x16) + 127) << 23;
    return p * (f32x16)exponent;
}

// 1 / (1 + e^-x), by e = e^-|x|: 1 / (1 + e), or e / (1 + e) where x is negative.
inline f32x16 sigmoid16(f32x16 x) {
    const f32x16 zero = {}, one = zero + 1.0f;
    const f32x16 e = exp16(x < zero ? x : -x);
    return (x < zero ? e : one) / (one + e);
}

inline void store16(bf16* to, f32x16 x) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    for (int i = 0; i < 16; ++i) to[i] = narrow(x[i]);
#endif
}

// silu(gate) x inner, each rounded to bf16 as two layers' results are.
inline void gate16(const bf16* gate, const bf16* inner, bf16* to) {
    const f32x16 x = load16(gate);
    bf16 silu[16];
    store16(silu, x * sigmoid16(x));
    store16(to, load16(silu) * load16(inner));
}

// ---------------------------------------------------------------------------------------------
// Linear layers: y = x W^T + b, x bf16 (m, k), W (n, k), with float32 sums.

enum Result { AS_FLOAT = 0, AS_BF16 = 1, ADD_TO_FLOAT = 2 };

struct Linear {
    const bf16* x;
    const void* weight;
    const float* scales;  // of int8 weights, (n, k / group); null for bf16
    const float* bias;
    void* y;
    int m, k, n, group, result;
};

const int TILE = 4;  // rows, and outputs, of which all sums are in registers

inline void finish(const Linear& l, float sum, int row, int output) {
    const int64_t place = int64_t(row) * l.n + output;
    if (l.bias) sum += l.bias[output];
    if (l.result == AS_FLOAT) static_cast<float*>(l.y)[place] = sum;
    else if (l.result == AS_BF16) static_cast<bf16*>(l.y)[place] = narrow(sum);
    // Rounded first, as a layer's result in bf16 is.
    else static_cast<float*>(l.y)[place] += widen(narrow(sum));
}

#ifdef __AVX512BF16__

inline __m512bh load_bf16(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
inline __m512bh load_bf16(const bf16* from, __mmask32 mask) {
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, from);
}
inline __mmask32 first_lanes(int count) {
    return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1;
}

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

// Of 4 x 4 registers their sums over lanes, row by row in one register. Lanes are added as
// sum_lanes adds them.
inline __m512 sum_tile(const __m512 (&a)[TILE][TILE]) {
    __m512 by_output[TILE];  // lane group i: row i, 4 lanes left to add
    for (int j = 0; j < TILE; ++j) {
        __m512 half[2];
        for (int i = 0; i < 2; ++i)
            half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i][j], a[2 * i + 1][j], 0x44),
                                    _mm512_shuffle_f32x4(a[2 * i][j], a[2 * i + 1][j], 0xee));
        by_output[j] = _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88),
                                     _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
    }
    __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(by_output[0], by_output[1]),
                                 _mm512_unpackhi_ps(by_output[0], by_output[1]));
    __m512 second = _mm512_add_ps(_mm512_unpacklo_ps(by_output[2], by_output[3]),
                                  _mm512_unpackhi_ps(by_output[2], by_output[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44),
                         _mm512_shuffle_ps(first, second, 0xee));
}

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

void run_outputs(const Linear& l, int first, int last, int output, bf16* widened) {
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
float one_sum(const Linear& l, int row, int output) {
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

void run_linear(const Linear& l, int64_t first, int64_t last) {
    bf16* widened = l.scales ? new bf16[int64_t(TILE) * l.k] : nullptr;
    for (int start = 0; start < l.m; start += ROW_BLOCK) {
        int end = start + ROW_BLOCK < l.m ? start + ROW_BLOCK : l.m;
        int64_t output = first;
#ifdef __AVX512BF16__
        for (; output + TILE <= last; output += TILE)
            run_outputs(l, start, end, int(output), widened);
#endif
        for (; output < last; ++output)
            for (int row = start; row < end; ++row)
                finish(l, one_sum(l, row, int(output)), row, int(output));
    }
    delete[] widened;
}

// ---------------------------------------------------------------------------------------------
// Attention over a cache in pages.

template <typename T>
struct Attend {
    const T* projected;       // (tokens, heads + 2 shared, width): queries, keys, values
    const float* cosine;      // (tokens, width / 2), or null without rotary positions
    const float* sine;
    T* keys;                  // (pages, shared, page, width)
    T* values;
    const int32_t* table;     // (rows, pages a row): page of each block of a row's positions
    const int32_t* rows;      // (tokens,)
    const int32_t* positions; // (tokens,)
    T* mixed;                 // (tokens, heads, width)
    int tokens, heads, shared, width, page, row_pages, window;
    float scale;
};

template <typename T>
inline void turn(const Attend<T>& a, int token, const T* from, T* to) {
    if (!a.cosine) {
        std::memcpy(to, from, sizeof(T) * a.width);
        return;
    }
    int half = a.width / 2;
    const float* c = a.cosine + int64_t(token) * half;
    const float* s = a.sine + int64_t(token) * half;
    for (int i = 0; i < half; ++i) {
        float first = widen(from[i]), second = widen(from[i + half]);
        store(to + i, first * c[i] - second * s[i]);
        store(to + i + half, second * c[i] + first * s[i]);
    }
}

template <typename T>
void keep(const Attend<T>& a, int token, int head) {
    int64_t position = a.positions[token];
    int64_t page = a.table[int64_t(a.rows[token]) * a.row_pages + position / a.page];
    int64_t place = ((page * a.shared + head) * a.page + position % a.page) * a.width;
    const T* from = a.projected + int64_t(token) * (a.heads + 2 * a.shared) * a.width;
    turn(a, token, from + (a.heads + head) * a.width, a.keys + place);
    std::memcpy(a.values + place, from + (a.heads + a.shared + head) * a.width,
                sizeof(T) * a.width);
}

const int MAX_WIDTH = 512;

template <typename T>
inline float dot(const float* query, const T* key, int width) {
    f32x16 lanes = {};
    int i = 0;
    for (; i + 16 <= width; i += 16) lanes += load16(query + i) * load16(key + i);
    float sum = sum16(lanes);
    for (; i < width; ++i) sum += query[i] * widen(key[i]);
    return sum;
}

template <typename T>
inline int first_seen(const Attend<T>& a, int last) {
    return a.window && last >= a.window ? last - a.window + 1 : 0;
}

// Room for a thread's scores, kept from call to call.
inline float* scores_of_thread(size_t count) {
    static thread_local std::vector<float> room;
    if (room.size() < count) room.resize(count);
    return room.data();
}

// sums += weights x values, over 16 x LANES dimensions and the positions of one page.
template <int LANES, typename T>
inline void add_values(float* sums, const T* value, const float* weights, int start, int end,
                       int first, const Attend<T>& a) {
    f32x16 acc[LANES];
    for (int j = 0; j < LANES; ++j) acc[j] = load16(sums + 16 * j);
    value += (start % a.page) * a.width;
    for (int position = start; position < end; ++position, value += a.width)
        for (int j = 0; j < LANES; ++j)
            acc[j] += load16(value + 16 * j) * weights[position - first];
    std::memcpy(sums, acc, sizeof acc);
}

template <typename T>
void mix(const Attend<T>& a, int token, int head, float* scores) {
    T turned[MAX_WIDTH];
    float query[MAX_WIDTH], sums[MAX_WIDTH];
    const int width = a.width;
    turn(a, token, a.projected + (int64_t(token) * (a.heads + 2 * a.shared) + head) * width, turned);
    for (int i = 0; i < width; ++i) query[i] = widen(turned[i]) * a.scale, sums[i] = 0;
    const int last = a.positions[token], shared_head = head / (a.heads / a.shared);
    const int first = first_seen(a, last);
    const int32_t* table = a.table + int64_t(a.rows[token]) * a.row_pages;
    float largest = -INFINITY;
    for (int position = first; position <= last;) {
        int end = (position / a.page + 1) * a.page;
        if (end > last + 1) end = last + 1;
        int64_t page = table[position / a.page];
        const T* key = a.keys + (page * a.shared + shared_head) * a.page * width;
        for (; position < end; ++position) {
            float score = dot(query, key + (position % a.page) * width, width);
            scores[position - first] = score;
            largest = score > largest ? score : largest;
        }
    }
    const int count = last - first + 1;
    float total = 0;
    int at = 0;
    f32x16 lanes = {};
    for (; at + 16 <= count; at += 16) {
        f32x16 weight = exp16(load16(scores + at) - largest);
        std::memcpy(scores + at, &weight, 64);
        lanes += weight;
    }
    total = sum16(lanes);
    for (; at < count; ++at) total += scores[at] = std::exp(scores[at] - largest);
    for (int position = first; position <= last;) {
        int end = (position / a.page + 1) * a.page;
        if (end > last + 1) end = last + 1;
        int64_t page = table[position / a.page];
        const T* value = a.values + ((page * a.shared + shared_head) * a.page) * width;
        const int start = position;
        for (int i = 0; i + 16 <= width; i += 64) {
            const int lanes = (width - i) / 16 < 4 ? (width - i) / 16 : 4;
            if (lanes == 4) add_values<4>(sums + i, value + i, scores, start, end, first, a);
            else
                for (int j = 0; j < lanes; ++j)
                    add_values<1>(sums + i + 16 * j, value + i + 16 * j, scores, start, end, first,
                                  a);
        }
        for (int i = width - width % 16; i < width; ++i)
            for (position = start; position < end; ++position)
                sums[i] += widen(value[(position % a.page) * width + i]) * scores[position - first];
        position = end;
    }
    T* mixed = a.mixed + (int64_t(token) * a.heads + head) * width;
    for (int i = 0; i < width; ++i) store(mixed + i, sums[i] / total);
}

// What one thread does at a time: up to 4 queries of one row that share a head of keys and values.
struct Queries {
    int count;
    int token[TILE], head[TILE];
};

template <typename T>
void mix_all(const Attend<T>& a, const Queries& q) {
    for (int i = 0; i < q.count; ++i)
        mix(a, q.token[i], q.head[i], scores_of_thread(a.positions[q.token[i]] + 1));
}

#ifdef __AVX512BF16__

// sums[i] += weights of query i x values, over 64 dimensions and the positions of one page.
template <int M>
inline void add_values_together(float* const (&sums)[TILE], const bf16* value, int width,
                                const float* weights, int64_t stride, int start, int end) {
    __m512 acc[M][4];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) acc[i][j] = _mm512_loadu_ps(sums[i] + 16 * j);
    for (int at = start; at < end; ++at, value += width) {
        __m512 part[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) part[j] = (__m512)load16(value + 16 * j);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
            __m512 weight = _mm512_set1_ps(weights[i * stride + at]);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) acc[i][j] = _mm512_fmadd_ps(part[j], weight, acc[i][j]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) _mm512_storeu_ps(sums[i] + 16 * j, acc[i][j]);
}

// `mix` of M queries together: keys and values are read, and made float, once for all of them.
template <int M>
void mix_together(const Attend<bf16>& a, const Queries& q) {
    alignas(64) bf16 query[M][MAX_WIDTH];
    alignas(64) float sums[M][MAX_WIDTH];
    const int width = a.width, shared_head = q.head[0] / (a.heads / a.shared);
    int first = a.positions[q.token[0]], last = 0;
    for (int i = 0; i < M; ++i) {
        const int token = q.token[i], position = a.positions[token];
        const int64_t place = int64_t(token) * (a.heads + 2 * a.shared) + q.head[i];
        turn(a, token, a.projected + place * width, query[i]);
        std::memset(sums[i], 0, sizeof(float) * width);
        last = position > last ? position : last;
        first = first_seen(a, position) < first ? first_seen(a, position) : first;
    }
    first -= first % TILE;  // whole tiles: pages begin with one, and end with one
    const int64_t stride = (last - first + 16) / 16 * 16 + 16;
    float* scores = scores_of_thread(M * stride);
    const int32_t* table = a.table + int64_t(a.rows[q.token[0]]) * a.row_pages;
    const int64_t page_size = int64_t(a.page) * width;
    for (int position = first; position <= last; position += TILE) {
        const int64_t page = table[position / a.page];
        const bf16* key =
            a.keys + (page * a.shared + shared_head) * page_size + position % a.page * width;
        __m512 acc[TILE][TILE];
#pragma GCC unroll 4
        for (int i = 0; i < TILE; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < TILE; ++j) acc[i][j] = _mm512_setzero_ps();
        for (int at = 0; at < width; at += 32) {
            __m512bh b[TILE];
#pragma GCC unroll 4
            for (int j = 0; j < TILE; ++j) b[j] = load_bf16(key + j * width + at);
#pragma GCC unroll 4
            for (int i = 0; i < M; ++i) {
                __m512bh x = load_bf16(query[i] + at);
#pragma GCC unroll 4
                for (int j = 0; j < TILE; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], x, b[j]);
            }
        }
        alignas(64) float tile[16];
        _mm512_store_ps(tile, _mm512_mul_ps(sum_tile(acc), _mm512_set1_ps(a.scale)));
        for (int i = 0; i < M; ++i)
            std::memcpy(scores + i * stride + position - first, tile + TILE * i, 16);
    }
    float total[M];
    for (int i = 0; i < M; ++i) {
        float* own = scores + i * stride;
        const int from = first_seen(a, a.positions[q.token[i]]) - first;
        const int to = a.positions[q.token[i]] - first + 1, end = last - first + 1;
        for (int at = 0; at < from; ++at) own[at] = -INFINITY;
        for (int at = to; at < (end + 15) / 16 * 16; ++at) own[at] = -INFINITY;
        f32x16 largest = load16(own);
        for (int at = 16; at < end; at += 16) {
            f32x16 part = load16(own + at);
            largest = part > largest ? part : largest;
        }
        float most = largest[0];
        for (int lane = 1; lane < 16; ++lane) most = largest[lane] > most ? largest[lane] : most;
        f32x16 lanes = {};
        for (int at = 0; at < end; at += 16) {
            f32x16 score = load16(own + at), zero = {};
            f32x16 weight = score == zero - INFINITY ? zero : exp16(score - most);
            std::memcpy(own + at, &weight, 64);
            lanes += weight;
        }
        total[i] = sum16(lanes);
    }
    for (int position = first; position <= last;) {
        int end = (position / a.page + 1) * a.page;
        if (end > last + 1) end = last + 1;
        const int64_t page = table[position / a.page];
        const bf16* value =
            a.values + (page * a.shared + shared_head) * page_size + position % a.page * width;
        for (int at = 0; at + 64 <= width; at += 64) {
            float* parts[TILE];
            for (int i = 0; i < M; ++i) parts[i] = sums[i] + at;
            add_values_together<M>(parts, value + at, width, scores, stride, position - first,
                                   end - first);
        }
        position = end;
    }
    for (int i = 0; i < M; ++i) {
        bf16* mixed = a.mixed + (int64_t(q.token[i]) * a.heads + q.head[i]) * width;
        for (int d = 0; d < width; ++d) mixed[d] = narrow(sums[i][d] / total[i]);
    }
}

void mix_all(const Attend<bf16>& a, const Queries& q) {
    if (a.width % 64 || a.page % TILE) mix_all<bf16>(a, q);
    else if (q.count == 4) mix_together<4>(a, q);
    else if (q.count == 3) mix_together<3>(a, q);
    else if (q.count == 2) mix_together<2>(a, q);
    else mix_together<1>(a, q);
}

#endif

// Shares the queries out: of a prompt, 4 tokens of one head; of a single token, the heads that
// share keys. What goes together is decided by a row's own tokens alone.
template <typename T>
std::vector<Queries> share_out(const Attend<T>& a) {
    std::vector<Queries> found;
    const int group = a.heads / a.shared;
    for (int token = 0; token < a.tokens;) {
        int count = 1;
        while (count < TILE && token + count < a.tokens && a.rows[token + count] == a.rows[token])
            ++count;
        if (count == TILE) {
            for (int head = 0; head < a.heads; ++head) {
                Queries q{TILE, {}, {}};
                for (int i = 0; i < TILE; ++i) q.token[i] = token + i, q.head[i] = head;
                found.push_back(q);
            }
            token += TILE;
            continue;
        }
        for (int end = token + count; token < end; ++token)
            for (int shared = 0; shared < a.shared; ++shared)
                for (int start = 0; start < group; start += TILE) {
                    Queries q{group - start < TILE ? group - start : TILE, {}, {}};
                    for (int i = 0; i < q.count; ++i)
                        q.token[i] = token, q.head[i] = shared * group + start + i;
                    found.push_back(q);
                }
    }
    return found;
}

template <typename T>
void attend(const Attend<T>& a, int threads) {
    const int stores = a.tokens * a.shared;
    const std::vector<Queries> queries = share_out(a);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int i = 0; i < stores; ++i) keep(a, i / a.shared, i % a.shared);
        // After the barrier: a token sees those of its own row that are read with it.
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < queries.size(); ++i) mix_all(a, queries[i]);
    }
}

}  // namespace

extern "C" {

// y = x W^T + bias; rows of outputs are shared out between threads.
void lmsmith_linear(const bf16* x, const void* weight, const float* scales, const float* bias,
                    void* y, int m, int k, int n, int group, int result, int threads) {
    Linear l{x, weight, scales, bias, y, m, k, n, group, result};
#pragma omp parallel num_threads(threads)
    {
        int64_t count = omp_get_num_threads(), thread = omp_get_thread_num();
        int64_t blocks = (n + 3) / 4;
        int64_t first = blocks * thread / count * 4, last = blocks * (thread + 1) / count * 4;
        run_linear(l, first, last < n ? last : n);
    }
}

void lmsmith_attend_bf16(const Attend<bf16>* a, int threads) { attend(*a, threads); }
void lmsmith_attend_float(const Attend<float>* a, int threads) { attend(*a, threads); }

const int MANY_ROWS = 16;  // from which on a second thread pays in what is done row by row

// RMSNorm (shift null) or LayerNorm of rows of float32; bf16 or float32 out.
void lmsmith_norm(const float* x, const float* weight, const float* shift, void* y, int rows,
                  int width, float epsilon, int centred, int as_bf16, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows >= MANY_ROWS)
    for (int row = 0; row < rows; ++row) {
        const float* from = x + int64_t(row) * width;
        float mean = 0, square = 0;
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
        square = sum16(squares);
        for (; i < width; ++i) square += (from[i] - mean) * (from[i] - mean);
        float factor = 1.0f / std::sqrt(square / width + epsilon);
        for (i = 0; i < width; ++i) {
            float result = (from[i] - mean) * factor * weight[i] + (shift ? shift[i] : 0.0f);
            if (as_bf16) static_cast<bf16*>(y)[int64_t(row) * width + i] = narrow(result);
            else static_cast<float*>(y)[int64_t(row) * width + i] = result;
        }
    }
}

// SwiGLU: silu(gate) x inner, of rows that hold both one after the other.
void lmsmith_gate(const bf16* gate_inner, bf16* y, int rows, int width, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows >= MANY_ROWS)
    for (int row = 0; row < rows; ++row) {
        const bf16* gate = gate_inner + int64_t(row) * 2 * width;
        const bf16* inner = gate + width;
        bf16* to = y + int64_t(row) * width;
        int i = 0;
        for (; i + 16 <= width; i += 16) gate16(gate + i, inner + i, to + i);
        if (i < width) {
            bf16 g[16] = {}, u[16] = {};
            std::memcpy(g, gate + i, sizeof(bf16) * (width - i));
            std::memcpy(u, inner + i, sizeof(bf16) * (width - i));
            gate16(g, u, g);
            std::memcpy(to + i, g, sizeof(bf16) * (width - i));
        }
    }
}

}  // extern "C"
