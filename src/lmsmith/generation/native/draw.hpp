// The next token of a row of logits: temperature, top-k, nucleus, min-p, and one draw.

#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "numbers.hpp"

namespace lmsmith {

struct Drawing {
    float temperature, top_p, min_p;
    int top_k;
};

// A row of logits; what is forbidden (-INFINITY, else 0) is added if MASKED.
template <bool MASKED>
struct Logits {
    const float *values, *forbidden;
    int count;
    float at(int i) const { return MASKED ? values[i] + forbidden[i] : values[i]; }
    f32x16 block(int i) const {  // behind the last are -INFINITY
        if (i + 16 <= count)
            return MASKED ? load16(values + i) + load16(forbidden + i) : load16(values + i);
        float part[16];
        for (int lane = 0; lane < 16; ++lane)
            part[lane] = i + lane < count ? at(i + lane) : -INFINITY;
        return load16(part);
    }
};

// Whether the largest logit is a finite number, and none is NaN.
inline bool is_finite(const Logits<false>& logits) {
    const f32x16 zero = {}, one = zero + 1.0f;
    f32x16 most = zero - INFINITY, numbers = one;
    for (int i = 0; i < logits.count; i += 16) {
        const f32x16 x = logits.block(i);
        most = larger(x, most);
        numbers = select(x == x, numbers, zero);
    }
    for (int lane = 0; lane < 16; ++lane)
        if (numbers[lane] == 0 || most[lane] == INFINITY) return false;
    for (int lane = 0; lane < 16; ++lane)
        if (most[lane] > -INFINITY) return true;
    return false;
}

// The first of the largest.
template <bool MASKED>
inline int largest_of(const Logits<MASKED>& logits) {
    const int BLOCK = 1024;  // whose largest is known before its place is looked for
    float value = -INFINITY;
    int place = 0;
    for (int start = 0; start < logits.count; start += BLOCK) {
        const int end = std::min(logits.count, start + BLOCK);
        f32x16 most = f32x16{} - INFINITY;
        for (int i = start; i < end; i += 16) most = larger(logits.block(i), most);
        float largest = most[0];
        for (int lane = 1; lane < 16; ++lane)
            largest = most[lane] > largest ? most[lane] : largest;
        if (largest > value) value = largest, place = start;
    }
    for (int i = place; i < logits.count; ++i)
        if (logits.at(i) == value) return i;
    return 0;
}

// Weights exp((logit - largest) / temperature), of which 87 below the largest are 0; their sum.
template <bool MASKED>
inline double weigh(const Logits<MASKED>& logits, float largest, float temperature,
                    float* weights) {
    double total = 0;
    for (int i = 0; i < logits.count; i += 16) {
        const f32x16 x = (logits.block(i) - largest) / temperature, zero = {};
        const f32x16 weight = select(x < zero - 87.0f, zero, exp16(x));
        std::memcpy(weights + i, &weight, 64);
        total += sum16(weight);
    }
    return total;
}

// Tokens in the order that they are cut in: the heaviest first, of equal ones the first.
struct Heavier {
    const float* weights;
    bool operator()(int a, int b) const {
        return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
    }
};

// Those that a nucleus can hold: the others together have less than what it leaves.
inline void candidates_of(const float* weights, int count, float least, std::vector<int>& found) {
    found.clear();
    for (int start = 0; start < count; start += 16) {
        int any = 0;
        for (int i = start; i < start + 16; ++i) any |= weights[i] >= least;
        if (!any) continue;
        for (int i = start; i < start + 16 && i < count; ++i)
            if (weights[i] >= least) found.push_back(i);
    }
}

// A weight that at least k tokens have: so many blocks of 16 have a token as heavy.
inline float reached_by(const float* weights, int count, int k) {
    static thread_local std::vector<float> heaviest;
    heaviest.clear();
    for (int start = 0; start < count; start += 16)
        heaviest.push_back(*std::max_element(weights + start, weights + start + 16));
    if (size_t(k) > heaviest.size()) return 0;
    std::nth_element(heaviest.begin(), heaviest.begin() + k - 1, heaviest.end(),
                     std::greater<float>());
    return heaviest[k - 1];
}

const int BUCKET_BITS = 18;  // dropped of a weight's bits: buckets of 3 % of a weight
const int BUCKETS = (0x3f800000 >> BUCKET_BITS) + 1;  // of weights up to 1
const size_t FEW_TOKENS = 256;

inline int bucket_of(float weight) {
    uint32_t bits;
    std::memcpy(&bits, &weight, 4);
    return bits >> BUCKET_BITS;
}

// The lightest of the fewest heaviest tokens whose weights reach `enough`: found among those of its
// bucket, twice as many at a time.
inline int lightest_kept(const std::vector<int>& tokens, const float* weights, double enough) {
    static thread_local std::vector<int> like;
    double before = 0;
    if (tokens.size() > FEW_TOKENS) {
        static thread_local std::vector<double> sums;
        sums.assign(BUCKETS, 0.0);
        int lowest = BUCKETS - 1;
        for (int token : tokens) {
            const int bucket = bucket_of(weights[token]);
            sums[bucket] += weights[token];
            lowest = std::min(lowest, bucket);
        }
        int bucket = BUCKETS - 1;
        while (bucket > lowest && before + sums[bucket] < enough) before += sums[bucket--];
        like.clear();
        for (int token : tokens)
            if (bucket_of(weights[token]) == bucket) like.push_back(token);
    } else {
        like = tokens;
    }
    const Heavier heavier{weights};
    for (size_t sorted = 0, size = 64; sorted < like.size(); size *= 2) {
        const size_t end = std::min(like.size(), sorted + size);
        if (end < like.size())
            std::nth_element(like.begin() + sorted, like.begin() + end, like.end(), heavier);
        std::sort(like.begin() + sorted, like.begin() + end, heavier);
        for (; sorted < end; ++sorted)
            if ((before += weights[like[sorted]]) >= enough) return like[sorted];
    }
    return like.back();
}

// Drops the tokens that are lighter than this one; the others keep their order.
inline void drop_lighter(std::vector<int>& tokens, const float* weights, int lightest) {
    const Heavier heavier{weights};
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(),
                                [&](int token) { return heavier(lightest, token); }),
                 tokens.end());
}

template <bool MASKED>
inline int draw(const Logits<MASKED>& logits, const Drawing& d, double uniform) {
    static thread_local std::vector<float> weights;
    static thread_local std::vector<int> tokens;
    const int count = logits.count, best = largest_of(logits);
    if (d.temperature == 0) return best;
    weights.resize((count + 15) / 16 * 16);
    float* w = weights.data();
    double total = weigh(logits, logits.at(best), d.temperature, w);
    const bool few = d.top_k > 0 && d.top_k < count;
    if (!few && d.top_p >= 1 && d.min_p <= 0) {
        const double target = std::min(uniform * total, std::nextafter(total, 0.0));
        double running = 0;
        int last = best;
        for (int start = 0; start < count; start += 16) {
            const double after = running + sum16(load16(w + start));
            if (after <= target) {
                running = after;
                continue;
            }
            for (int i = start; i < start + 16 && i < count; ++i) {
                if (w[i] > 0) last = i;
                running += w[i];
                if (running > target) return i;
            }
            return last;  // but for rounding the block's sum would have been reached
        }
        return last;
    }
    float least = std::nextafter(0.0f, 1.0f);
    if (few) {  // of what top-k leaves, a nucleus may hold more than of all
        least = std::max(least, reached_by(w, count, d.top_k));
    } else {
        least = std::max(least, d.min_p);
        if (d.top_p < 1) least = std::max(least, float((1 - double(d.top_p)) * total / count));
    }
    candidates_of(w, count, least, tokens);
    if (few && size_t(d.top_k) < tokens.size()) {
        static thread_local std::vector<int> heaviest;
        heaviest = tokens;
        const auto last = heaviest.begin() + d.top_k - 1;
        std::nth_element(heaviest.begin(), last, heaviest.end(), Heavier{w});
        drop_lighter(tokens, w, *last);
    }
    if (few) {
        total = 0;
        for (int token : tokens) total += w[token];
    }
    if (d.top_p < 1) drop_lighter(tokens, w, lightest_kept(tokens, w, d.top_p * total));
    if (d.min_p > 0)
        tokens.erase(std::remove_if(tokens.begin(), tokens.end(),
                                    [&](int token) { return w[token] < d.min_p; }),
                     tokens.end());
    total = 0;
    for (int token : tokens) total += w[token];
    const double target = std::min(uniform * total, std::nextafter(total, 0.0));
    double running = 0;
    for (int token : tokens)
        if ((running += w[token]) > target) return token;
    return best;
}

}  // namespace lmsmith
