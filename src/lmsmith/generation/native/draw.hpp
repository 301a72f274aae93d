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

// The first of the largest.
template <bool MASKED>
inline int largest_of(const Logits<MASKED>& logits) {
    f32x16 most = f32x16{} - INFINITY;
    for (int i = 0; i < logits.count; i += 16) {
        const f32x16 part = logits.block(i);
        most = part > most ? part : most;
    }
    float value = most[0];
    for (int lane = 1; lane < 16; ++lane) value = most[lane] > value ? most[lane] : value;
    for (int i = 0; i < logits.count; ++i)
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
        const f32x16 weight = x < zero - 87.0f ? zero : exp16(x);
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

// Leaves the fewest heaviest tokens whose weights reach `enough`; found twice as many at a time.
inline void keep_heaviest(std::vector<int>& tokens, const float* weights, double enough) {
    const Heavier heavier{weights};
    double before = 0;
    size_t sorted = 0, size = 64;
    while (sorted < tokens.size()) {
        const size_t end = std::min(tokens.size(), sorted + size);
        if (end < tokens.size())
            std::nth_element(tokens.begin() + sorted, tokens.begin() + end, tokens.end(), heavier);
        std::sort(tokens.begin() + sorted, tokens.begin() + end, heavier);
        for (; sorted < end; ++sorted) {
            if (before >= enough && sorted) {
                tokens.resize(sorted);
                return;
            }
            before += weights[tokens[sorted]];
        }
        size *= 2;
    }
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
        std::nth_element(tokens.begin(), tokens.begin() + d.top_k, tokens.end(), Heavier{w});
        tokens.resize(d.top_k);
    }
    if (few) {
        total = 0;
        for (int token : tokens) total += w[token];
    }
    if (d.top_p < 1) keep_heaviest(tokens, w, d.top_p * total);
    if (d.min_p > 0)
        tokens.erase(std::remove_if(tokens.begin(), tokens.end(),
                                    [&](int token) { return w[token] < d.min_p; }),
                     tokens.end());
    std::sort(tokens.begin(), tokens.end());
    total = 0;
    for (int token : tokens) total += w[token];
    const double target = std::min(uniform * total, std::nextafter(total, 0.0));
    double running = 0;
    for (int token : tokens)
        if ((running += w[token]) > target) return token;
    return best;
}

}  // namespace lmsmith
