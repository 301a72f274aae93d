// What a step of generation is made of, near what reading memory allows.
//
// Weights are in bf16, int8 or as a GGUF file packs them, sums in float32. Every result is summed in
// an order that does not depend on how many rows are computed together, so that a row's result is
// the same, to the bit, whatever else is in the batch.

#include <memory>

#include "attention.hpp"
#include "draw.hpp"
#include "products_packed.hpp"
#include "rows.hpp"

using namespace lmsmith;

namespace {

const int MANY_ROWS = 16;  // from which on a second thread pays in what is done row by row

// A thread's share of the blocks; all threads of a team call it.
void linear_in_team(Member& member, const Linear& l) {
    const int pairs = (l.k + 1) / 2, chunks = (l.k + CHUNK - 1) / CHUNK;
    const int64_t blocks = (l.n + LANES - 1) / LANES;
    const int64_t begin = member.begin(blocks), end = member.end(blocks);
    Part part{l, nullptr, nullptr, 0, pairs, chunks, l.scales ? l.k / l.group : 1, 0, 0, 0,
              nullptr};
    if (l.packing) prepare_packed_rows(l, part);
    else prepare_rows(l, part);
    const int64_t fit = ROWS_BYTES / (part.stride * (l.scales ? 2 : ROW_BYTES));
    const int at_once = fit < MOST_ROWS ? MOST_ROWS : int(fit / MOST_ROWS * MOST_ROWS);
    for (int first = 0; first < l.m; first += at_once) {
        const int last = first + at_once < l.m ? first + at_once : l.m;
        for (int64_t block = begin; block < end;) {
            part.panel = int(block / PANEL * PANEL), part.within = int(block % PANEL);
            part.together = int(blocks - part.panel < PANEL ? blocks - part.panel : PANEL);
            const int64_t left = end - block, of_panel = part.together - part.within;
            const int64_t most = left < of_panel ? left : of_panel;
            const int width = most == 4 ? 4 : most >= 2 ? 2 : 1;
            if (l.packing) multiply_packed(part, width, first, last);
            else multiply_part(part, width, first, last);
            block += width;
        }
    }
}

template <typename T>
void attend(const Attend<T>& a, int threads) {
    const std::vector<Queries> queries = share_out(a);
    in_team(threads, [&](Member& member) { attend_in_team(member, a, queries); });
}

struct Matrix {
    const void* weight;
    const float* scales;
    const float* bias;
    const uint16_t* minima;
    const int16_t* steps;
    const Matrix* next;  // whose outputs follow; null for none
    int inputs, outputs, group, packing;
};

// A block whose norms go before its layers.
struct Block {
    const float *attention_norm, *attention_shift, *feed_forward_norm, *feed_forward_shift;
    Matrix query_key_value, output, inner, feed_forward_output;
};

// An adapter's two matrices beside one of a block: y += up (down x). No weights where it has none.
struct Adapter {
    Matrix down, up;
};

enum Place { QUERY_KEY_VALUE = 0, OUTPUT = 1, INNER = 2, FEED_FORWARD_OUTPUT = 3, PLACES = 4 };

// Adjacent tokens of one adapter, which has `PLACES` pairs a block.
struct Group {
    const Adapter* adapters;
    int first, tokens;
};

struct Pages {  // of a layer's cache
    bf16 *keys, *values;
    const int32_t* table;
    int row_pages, window;
};

enum Activation { GATE = 0, GELU = 1 };

struct Stack {
    const Block* blocks;
    const Pages* pages;
    const float *cosine, *sine;
    const int32_t *rows, *positions;
    float* x;  // (tokens, width), float32: in and out
    const Group* groups;
    int count, tokens, width, heads, shared, head_width, page, activation;
    int group_count, rank;  // the highest rank of the groups' adapters
    float epsilon;
};

struct Scratch {
    std::unique_ptr<bf16[]> room;
    bf16* at;
    explicit Scratch(int64_t size) : room(new bf16[size]), at(room.get()) {}
    bf16* take(int64_t size) { return at += size, at - size; }
};

int outputs_of(const Matrix& w) { return w.outputs + (w.next ? outputs_of(*w.next) : 0); }

void multiply_in_team(Member& member, const Matrix& w, const bf16* x, void* y, int rows,
                      int result) {
    const int width = outputs_of(w), size = result == AS_BF16 ? 2 : 4;
    char* to = static_cast<char*>(y);
    for (const Matrix* each = &w; each; to += each->outputs * size, each = each->next)
        linear_in_team(member, {x, each->weight, each->scales, each->bias, to, rows, each->inputs,
                                each->outputs, each->group, result, width, each->packing,
                                each->minima, each->steps});
}

void multiply(Member& member, const Matrix& w, const bf16* x, void* y, int rows, Result result) {
    multiply_in_team(member, w, x, y, rows, result);
    member.barrier();
}

void normalise(Member& member, const Stack& s, const float* weight, const float* shift, bf16* to) {
    member.share(s.tokens, [&](int64_t row) {
        norm_row(s.x + row * s.width, weight, shift, to + row * s.width, s.width, s.epsilon,
                 shift != nullptr);
    });
    member.barrier();
}

void add_row(const bf16* from, bf16* to, int width) {
    by_sixteen(width, from, to, to, [](const bf16* in, const bf16* sum, bf16* y) {
        store16(y, load16(sum) + load16(in));
    });
}

// Adds to y what each group's adapter makes of x; `change` has room for that if y is in bf16.
template <typename T>
void adapt(Member& member, const Stack& s, int layer, Place place, const bf16* x, bf16* low,
           bf16* change, T* y) {
    constexpr bool is_bf16 = sizeof(T) == sizeof(bf16);
    bool any = false;
    const auto for_groups = [&](auto&& work) {
        for (int g = 0; g < s.group_count; ++g) {
            const Group& group = s.groups[g];
            const Adapter& a = group.adapters[layer * PLACES + place];
            if (a.down.weight) any = true, work(group, a, int64_t(group.first));
        }
    };
    for_groups([&](const Group& group, const Adapter& a, int64_t first) {
        multiply_in_team(member, a.down, x + first * a.down.inputs, low + first * s.rank,
                         group.tokens, AS_BF16);
    });
    if (!any) return;
    member.barrier();
    for_groups([&](const Group& group, const Adapter& a, int64_t first) {
        void* to = is_bf16 ? static_cast<void*>(change + first * a.up.outputs)
                           : static_cast<void*>(y + first * a.up.outputs);
        multiply_in_team(member, a.up, low + first * s.rank, to, group.tokens,
                         is_bf16 ? AS_BF16 : ADD_TO_FLOAT);
    });
    member.barrier();
    if constexpr (is_bf16) {
        for_groups([&](const Group& group, const Adapter& a, int64_t first) {
            member.share(group.tokens, [&](int64_t row) {
                const int64_t at = (first + row) * a.up.outputs;
                add_row(change + at, y + at, a.up.outputs);
            });
        });
        member.barrier();
    }
}

void run_stack(const Stack& s, int threads) {
    const Block& first = s.blocks[0];
    const int n = s.tokens, inner = outputs_of(first.inner);
    const int projections = outputs_of(first.query_key_value);
    const int active = first.feed_forward_output.inputs, mixed_width = s.heads * s.head_width;
    const int changed = s.group_count ? (projections > inner ? projections : inner) : 0;
    const int64_t all = s.width + projections + mixed_width + inner + active + s.rank + changed;
    Scratch scratch(n * all);
    bf16* entering = scratch.take(int64_t(n) * s.width);
    bf16* projected = scratch.take(int64_t(n) * projections);
    bf16* mixed = scratch.take(int64_t(n) * mixed_width);
    bf16* between = scratch.take(int64_t(n) * inner);
    bf16* activated = scratch.take(int64_t(n) * active);
    bf16* low = scratch.take(int64_t(n) * s.rank);
    bf16* change = scratch.take(int64_t(n) * changed);
    Attend<bf16> shared{};
    shared.projected = projected, shared.mixed = mixed;
    shared.cosine = s.cosine, shared.sine = s.sine;
    shared.rows = s.rows, shared.positions = s.positions;
    shared.tokens = n, shared.heads = s.heads, shared.shared = s.shared;
    shared.width = s.head_width, shared.page = s.page;
    shared.scale = 1.0f / std::sqrt(float(s.head_width));
    const std::vector<Queries> queries = share_out(shared);
    in_team(threads, [&](Member& member) {
        for (int layer = 0; layer < s.count; ++layer) {
            const Block& block = s.blocks[layer];
            normalise(member, s, block.attention_norm, block.attention_shift, entering);
            multiply(member, block.query_key_value, entering, projected, n, AS_BF16);
            adapt(member, s, layer, QUERY_KEY_VALUE, entering, low, change, projected);
            Attend<bf16> a = shared;
            const Pages& pages = s.pages[layer];
            a.keys = pages.keys, a.values = pages.values, a.table = pages.table;
            a.row_pages = pages.row_pages, a.window = pages.window;
            attend_in_team(member, a, queries);
            multiply(member, block.output, mixed, s.x, n, ADD_TO_FLOAT);
            adapt(member, s, layer, OUTPUT, mixed, low, change, s.x);
            normalise(member, s, block.feed_forward_norm, block.feed_forward_shift, entering);
            multiply(member, block.inner, entering, between, n, AS_BF16);
            adapt(member, s, layer, INNER, entering, low, change, between);
            member.share(n, [&](int64_t row) {
                const bf16* from = between + row * inner;
                bf16* to = activated + row * active;
                if (s.activation == GATE) gate_row(from, to, active);
                else gelu_row(from, to, active);
            });
            member.barrier();
            multiply(member, block.feed_forward_output, activated, s.x, n, ADD_TO_FLOAT);
            adapt(member, s, layer, FEED_FORWARD_OUTPUT, activated, low, change, s.x);
        }
    });
}

}  // namespace

extern "C" {

// Panels of rows x columns of 2 or 4 bytes: pairs of weights, or scales.
void lmsmith_lay_out(const void* from, void* to, int64_t rows, int64_t columns, int size,
                     int threads) {
    if (size == 2)
        lay_out(static_cast<const int16_t*>(from), static_cast<int16_t*>(to), rows, columns,
                threads);
    else
        lay_out(static_cast<const int32_t*>(from), static_cast<int32_t*>(to), rows, columns,
                threads);
}

// Panels of a matrix whose rows are blocks of a GGUF file.
void lmsmith_pack(const uint8_t* from, void* values, uint16_t* scales, uint16_t* minima,
                  int16_t* steps, int64_t rows, int64_t inputs, int packing, int threads) {
    const Panels to{values, scales, minima, steps};
    const int64_t blocks = (rows + LANES - 1) / LANES;
    const int64_t bytes = inputs / inputs_of_scale(packing) * bytes_of_block(packing);
    for_all(threads, rows, [=](int64_t row) {
        pack_row(packing, from + row * bytes, to, row, blocks, inputs);
    });
}

// y = x W^T + bias.
void lmsmith_linear(const bf16* x, const Matrix* w, void* y, int rows, int result, int threads) {
    in_team(threads, [&](Member& member) { multiply_in_team(member, *w, x, y, rows, result); });
}

void lmsmith_attend_bf16(const Attend<bf16>* a, int threads) { attend(*a, threads); }
void lmsmith_attend_float(const Attend<float>* a, int threads) { attend(*a, threads); }

void lmsmith_norm(const float* x, const float* weight, const float* shift, void* y, int rows,
                  int width, float epsilon, int centred, int as_bf16, int threads) {
    for_all(rows >= MANY_ROWS ? threads : 1, rows, [=](int64_t row) {
        const int64_t at = row * width;
        if (as_bf16)
            norm_row(x + at, weight, shift, static_cast<bf16*>(y) + at, width, epsilon, centred);
        else norm_row(x + at, weight, shift, static_cast<float*>(y) + at, width, epsilon, centred);
    });
}

void lmsmith_gate(const bf16* both, bf16* y, int rows, int width, int threads) {
    for_all(rows >= MANY_ROWS ? threads : 1, rows,
            [=](int64_t row) { gate_row(both + row * 2 * width, y + row * width, width); });
}

void lmsmith_gelu(const bf16* x, bf16* y, int rows, int width, int threads) {
    for_all(rows >= MANY_ROWS ? threads : 1, rows,
            [=](int64_t row) { gelu_row(x + row * width, y + row * width, width); });
}

// log of the sum of exp of each row of logits, and the first of its largest.
void lmsmith_log_sums(const void* logits, float* log_sums, int64_t* best, int rows, int count,
                      int as_bf16, int threads) {
    for_all(rows > 1 ? threads : 1, rows, [=](int64_t row) {
        const int64_t at = row * count;
        if (as_bf16)
            log_sum_row(static_cast<const bf16*>(logits) + at, count, log_sums + row, best + row);
        else log_sum_row(static_cast<const float*>(logits) + at, count, log_sums + row, best + row);
    });
}

// The next token of each row of logits, by its uniform number; what is forbidden is by its state.
void lmsmith_draw(const float* logits, const double* uniform, const float* forbidden,
                  const int64_t* states, int64_t* tokens, int rows, int count, float temperature,
                  int top_k, float top_p, float min_p, int threads) {
    const Drawing d{temperature, top_p, min_p, top_k};
    const auto draw_row = [=](int64_t row) {
        const float* at = logits + row * count;
        if (forbidden)
            tokens[row] = draw(Logits<true>{at, forbidden + states[row] * count, count}, d,
                               uniform[row]);
        else tokens[row] = draw(Logits<false>{at, nullptr, count}, d, uniform[row]);
    };
    in_team(rows > 1 ? threads : 1, [&](Member& member) { member.take(rows, draw_row); });
}

// All blocks, one after the other.
void lmsmith_stack(const Stack* s, int threads) { run_stack(*s, threads); }

}  // extern "C"
