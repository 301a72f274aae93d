// Attention over a cache in pages.

#pragma once

#include <vector>

#ifdef __AVX512BF16__
#include "tiles_512.hpp"
#else
#include "tiles_256.hpp"
#endif
#include "team.hpp"

namespace lmsmith {

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
const int MOST_AHEAD = 1023;  // last position that is asked for: what stays in a cache till then

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
    const int64_t place = int64_t(token) * (a.heads + 2 * a.shared) + head;
    turn(a, token, a.projected + place * width, turned);
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
void mix_all(const Attend<T>& a, const Queries& q, const Queries*) {
    for (int i = 0; i < q.count; ++i)
        mix(a, q.token[i], q.head[i], scores_of_thread(a.positions[q.token[i]] + 1));
}

// Keys and values that the heads of one token read. Those of another row are in no cache, and come in
// pieces too short for the processor to see ahead: so they are asked for while the ones before them
// are read.
class Ahead {
  public:
    // Of nothing for null, and for tokens of a prompt, which read what has just been read.
    Ahead(const Attend<bf16>& a, const Queries* q)
        : a_(a), last_(q && q->token[0] == q->token[q->count - 1] ? a.positions[q->token[0]] : -1) {
        if (last_ < 0) return;
        table_ = a.table + int64_t(a.rows[q->token[0]]) * a.row_pages;
        head_ = q->head[0] / (a.heads / a.shared);
        last_ = std::min(last_, MOST_AHEAD);
    }

    // TILE positions, the first of which is a multiple of it. Inlined: GCC drops calls of a function
    // that only asks.
    __attribute__((always_inline)) void ask_for(int position) const {
        if (position > last_) return;
        const int64_t in_page = int64_t(position % a_.page) * a_.width;
        const int64_t page = int64_t(table_[position / a_.page]) * a_.shared + head_;
        const int64_t place = page * a_.page * a_.width + in_page;
        for (int at = 0; at < TILE * a_.width; at += 32) {
            __builtin_prefetch(a_.keys + place + at, 0, 2);
            __builtin_prefetch(a_.values + place + at, 0, 2);
        }
    }

  private:
    const Attend<bf16>& a_;
    int last_;
    const int32_t* table_ = nullptr;
    int head_ = 0;
};

// `mix` of M queries together: keys and values are read, and made float, once for all of them.
template <int M>
void mix_together(const Attend<bf16>& a, const Queries& q, const Ahead& ahead) {
    alignas(64) Query query[M][MAX_WIDTH];
    alignas(64) float sums[M][MAX_WIDTH];
    const int width = a.width, shared_head = q.head[0] / (a.heads / a.shared);
    int first = a.positions[q.token[0]], last = 0;
    for (int i = 0; i < M; ++i) {
        const int token = q.token[i], position = a.positions[token];
        const int64_t place = int64_t(token) * (a.heads + 2 * a.shared) + q.head[i];
        bf16 turned[MAX_WIDTH];
        turn(a, token, a.projected + place * width, turned);
        for (int d = 0; d < width; ++d) query[i][d] = query_of(turned[d]);
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
        ahead.ask_for(position);
        float tile[TILE * TILE];
        score_tile<M>(query, key, width, a.scale, tile);
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
        for (int at = 16; at < end; at += 16) largest = larger(load16(own + at), largest);
        float most = largest[0];
        for (int lane = 1; lane < 16; ++lane) most = largest[lane] > most ? largest[lane] : most;
        f32x16 lanes = {};
        for (int at = 0; at < end; at += 16) {
            f32x16 score = load16(own + at), zero = {};
            f32x16 weight = select(score == zero - INFINITY, zero, exp16(score - most));
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
        for (int at = 0; at < width; at += STRIP) {
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

inline void mix_all(const Attend<bf16>& a, const Queries& q, const Queries* next) {
    const Ahead ahead(a, next);
    if (a.width % STRIP || a.page % TILE) mix_all<bf16>(a, q, next);
    else if (q.count == 4) mix_together<4>(a, q, ahead);
    else if (q.count == 3) mix_together<3>(a, q, ahead);
    else if (q.count == 2) mix_together<2>(a, q, ahead);
    else mix_together<1>(a, q, ahead);
}

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

// What a layer keeps, and then what it reads: two steps of a team.
template <typename T>
void keep_range(const Attend<T>& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) keep(a, int(i / a.shared), int(i % a.shared));
}

// The queries after these are those that so many threads leave, each of which takes as many.
template <typename T>
void mix_range(const Attend<T>& a, const std::vector<Queries>& queries, int64_t begin, int64_t end,
               int threads) {
    for (int64_t i = begin; i < end; ++i) {
        const size_t next = i + 1 < end ? i + 1 : end + (threads - 1) * (end - begin);
        mix_all(a, queries[i], next < queries.size() ? &queries[next] : nullptr);
    }
}

// Of how many ranges: of prompts the last queries see most, so ranges are small; but of a few queries
// each, where there are many, since a thread asks ahead best within its own.
inline int mixed_ranges(int64_t queries) {
    return int(queries < 24 ? queries : std::min<int64_t>(queries / 3, 256));
}

}  // namespace lmsmith
