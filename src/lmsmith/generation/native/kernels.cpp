// What a step of generation is made of, near what reading memory allows.
//
// Weights are in bf16, int8 or as a GGUF file packs them, sums in float32. Every result is summed in
// an order that does not depend on how many rows are computed together, so that a row's result is
// the same, to the bit, whatever else is in the batch.

#include <memory>
#include <optional>

#include "attention.hpp"
#include "draw.hpp"
#include "products_packed.hpp"
#include "rows.hpp"

using namespace lmsmith;

namespace {

const int MANY_ROWS = 16;  // from which on a second thread pays in what is done row by row

// A layer's rows in the form that its product takes, and the products of some of its panels.
class Product {
  public:
    // Panels are taken by so many threads in turn.
    Product(const Linear& l, int threads)
        : threads_(threads), l_(l), pairs_((l.k + 1) / 2), chunks_((l.k + CHUNK - 1) / CHUNK),
          blocks_((l.n + LANES - 1) / LANES),
          part_{l_, nullptr, nullptr, 0, pairs_, chunks_, l.scales ? l.k / l.group : 1, 0, 0, 0,
                nullptr, 0} {
        if (l.packing) prepare_packed_rows(l_, part_);
        else prepare_rows(l_, part_);
        const int64_t fit = ROWS_BYTES / (part_.stride * (l.scales ? 2 : ROW_BYTES));
        at_once_ = fit < MOST_ROWS ? MOST_ROWS : int(fit / MOST_ROWS * MOST_ROWS);
    }
    Product(const Product&) = delete;

    void multiply(int64_t begin, int64_t end) {
        for (int first = 0; first < l_.m; first += at_once_) {
            const int last = first + at_once_ < l_.m ? first + at_once_ : l_.m;
            for (int64_t panel = begin; panel < end; ++panel) {
                part_.panel = int(panel * PANEL), part_.within = 0;
                part_.together = int(std::min<int64_t>(blocks_ - part_.panel, PANEL));
                const int64_t others = panel + 1 < end ? 0 : (threads_ - 1) * (end - begin);
                part_.next = int((panel + 1 + others) * PANEL);
                while (part_.within < part_.together) {
                    const int left = part_.together - part_.within;
                    const int width = left == 4 ? 4 : left >= 2 ? 2 : 1;
                    if (l_.packing) multiply_packed(part_, width, first, last);
                    else multiply_part(part_, width, first, last);
                    part_.within += width;
                }
            }
        }
    }

  private:
    const int threads_;
    const Linear l_;
    const int pairs_, chunks_;
    const int64_t blocks_;
    int at_once_;
    Part part_;
};

template <typename T>
void attend(const Attend<T>& all, int threads) {
    in_team(threads, [a = all, queries = share_out(all), threads](Member& member) {
        const Attend<T>* of = &a;
        member.divide(int64_t(a.tokens) * a.shared,
                      [of](int64_t begin, int64_t end) { keep_range(*of, begin, end); });
        const int64_t count = queries.size();
        member.divide(count, [&](int64_t begin, int64_t end) {
            mix_range(a, queries, begin, end, threads);
        }, mixed_ranges(count));
    });
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

// Panels of a matrix, and of those that follow it. Threads share out whole ones: their blocks stand
// side by side in a cache line.
int64_t own_panels(const Matrix& w) { return (w.outputs + PANEL * LANES - 1) / (PANEL * LANES); }
int64_t panels_of(const Matrix& w) { return own_panels(w) + (w.next ? panels_of(*w.next) : 0); }

// x by a matrix and those that follow it, whose outputs go side by side into y; each thread has its
// own, which prepares the rows once.
class Multiply {
  public:
    Multiply(int threads, const Matrix* weight, const bf16* x, void* y, int rows, int result)
        : threads_(threads), weight_(weight), x_(x), y_(static_cast<char*>(y)), rows_(rows),
          result_(result) {}
    Multiply(const Multiply& of)
        : Multiply(of.threads_, of.weight_, of.x_, of.y_, of.rows_, of.result_) {}

    void operator()(int64_t begin, int64_t end) {
        int64_t start = 0;
        char* to = y_;
        for (const Matrix* w = weight_; w && start < end; w = w->next) {
            const int64_t own = own_panels(*w);
            const int64_t first = std::max(begin, start), last = std::min(end, start + own);
            if (first < last) product(w, to).multiply(first - start, last - start);
            start += own, to += w->outputs * (result_ == AS_BF16 ? 2 : 4);
        }
    }

  private:
    Product& product(const Matrix* w, char* to) {
        if (of_ != w)
            product_.emplace(Linear{x_, w->weight, w->scales, w->bias, to, rows_, w->inputs,
                                    w->outputs, w->group, result_, outputs_of(*weight_),
                                    w->packing, w->minima, w->steps},
                             threads_);
        of_ = w;
        return *product_;
    }

    int threads_;
    const Matrix* weight_;
    const bf16* x_;
    char* y_;
    int rows_, result_;
    const Matrix* of_ = nullptr;  // that product_ is of
    std::optional<Product> product_;
};

// What groups of tokens have to do for their adapters of one matrix: panels of both, and rows.
struct Adapting {
    int64_t down = 0, up = 0, rows = 0;
};

// Everything that a thread reads between two steps; the rest, which the caller may free as soon as
// its last step is done, is read within them.
struct Sizes {
    int layers, tokens, keys;
    int64_t queries;
    std::vector<int64_t> panels;      // of each matrix of each layer
    std::vector<Adapting> adapting;  // the same; none without adapters
};

int64_t down_panels(const Group&, const Adapter& a) { return panels_of(a.down); }
int64_t up_panels(const Group&, const Adapter& a) { return panels_of(a.up); }
int64_t rows_of(const Group& group, const Adapter&) { return group.tokens; }

// function(group, adapter, first, last) for what each group has of begin to end, as `size` counts.
template <typename Size, typename Function>
void for_groups(const Stack& s, int matrix, int64_t begin, int64_t end, Size size,
                Function function) {
    int64_t start = 0;
    for (int g = 0; g < s.group_count && start < end; ++g) {
        const Group& group = s.groups[g];
        const Adapter& a = group.adapters[matrix];
        if (!a.down.weight) continue;
        const int64_t own = size(group, a);
        const int64_t first = std::max(begin, start), last = std::min(end, start + own);
        if (first < last) function(group, a, first - start, last - start);
        start += own;
    }
}

Adapting adapting_of(const Stack& s, int matrix) {
    Adapting found;
    const auto add = [&](const Group& group, const Adapter& a, int64_t, int64_t) {
        found.down += down_panels(group, a), found.up += up_panels(group, a);
        found.rows += group.tokens;
    };
    for_groups(s, matrix, 0, s.tokens, rows_of, add);
    return found;
}

void add_row(const bf16* from, bf16* to, int width) {
    by_sixteen(width, from, to, to, [](const bf16* in, const bf16* sum, bf16* y) {
        store16(y, load16(sum) + load16(in));
    });
}

// Adds to y what each group's adapter makes of x; `change` has room for that if y is in bf16.
template <typename T>
void adapt(Member& member, const Stack& s, const Adapting& sizes, int matrix, const bf16* x,
           bf16* low, bf16* change, T* y) {
    constexpr bool is_bf16 = sizeof(T) == sizeof(bf16);
    member.divide(sizes.down, [&](int64_t begin, int64_t end) {
        for_groups(s, matrix, begin, end, down_panels,
                   [&](const Group& group, const Adapter& a, int64_t first, int64_t last) {
            const int64_t row = group.first;
            Multiply(1, &a.down, x + row * a.down.inputs, low + row * s.rank, group.tokens,
                     AS_BF16)(first, last);
        });
    });
    member.divide(sizes.up, [&](int64_t begin, int64_t end) {
        for_groups(s, matrix, begin, end, up_panels,
                   [&](const Group& group, const Adapter& a, int64_t first, int64_t last) {
            const int64_t row = group.first, at = row * a.up.outputs;
            void* to = is_bf16 ? static_cast<void*>(change + at) : static_cast<void*>(y + at);
            Multiply(1, &a.up, low + row * s.rank, to, group.tokens,
                     is_bf16 ? AS_BF16 : ADD_TO_FLOAT)(first, last);
        });
    });
    if constexpr (is_bf16)
        member.divide(sizes.rows, [&](int64_t begin, int64_t end) {
            for_groups(s, matrix, begin, end, rows_of,
                       [&](const Group& group, const Adapter& a, int64_t first, int64_t last) {
                for (int64_t row = first; row < last; ++row) {
                    const int64_t at = (group.first + row) * a.up.outputs;
                    add_row(change + at, y + at, a.up.outputs);
                }
            });
        });
}

void run_stack(const Stack& stack, int threads) {
    const Stack s = stack;
    const Block& first = s.blocks[0];
    const int n = s.tokens, inner = outputs_of(first.inner);
    const int projections = outputs_of(first.query_key_value);
    const int active = first.feed_forward_output.inputs, mixed_width = s.heads * s.head_width;
    const int changed = s.group_count ? std::max(projections, inner) : 0;
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
    const std::vector<Queries> all_queries = share_out(shared);
    const std::vector<Queries>* queries = &all_queries;
    Sizes sizes{s.count, n, n * s.shared, int64_t(all_queries.size()), {}, {}};
    for (int layer = 0; layer < s.count; ++layer) {
        const Block& block = s.blocks[layer];
        for (const Matrix* w : {&block.query_key_value, &block.output, &block.inner,
                                &block.feed_forward_output})
            sizes.panels.push_back(panels_of(*w));
        for (int place = 0; s.group_count && place < PLACES; ++place)
            sizes.adapting.push_back(adapting_of(s, layer * PLACES + place));
    }
    in_team(threads, [=, sizes = std::move(sizes)](Member& member) {
        const int64_t* panels = sizes.panels.data();
        for (int layer = 0; layer < sizes.layers; ++layer, panels += 4) {
            const Block* block = s.blocks + layer;
            const auto normalise = [&](bool attention) {
                member.each(sizes.tokens, [&](int64_t row) {
                    const float* weight = attention ? block->attention_norm
                                                    : block->feed_forward_norm;
                    const float* shift = attention ? block->attention_shift
                                                   : block->feed_forward_shift;
                    norm_row(s.x + row * s.width, weight, shift, entering + row * s.width,
                             s.width, s.epsilon, shift != nullptr);
                });
            };
            const auto attending = [&] {
                Attend<bf16> a = shared;
                const Pages& pages = s.pages[layer];
                a.keys = pages.keys, a.values = pages.values, a.table = pages.table;
                a.row_pages = pages.row_pages, a.window = pages.window;
                return a;
            };
            const auto adapting = [&](Place place, const bf16* x, auto* y) {
                const int matrix = layer * PLACES + place;
                if (!sizes.adapting.empty())
                    adapt(member, s, sizes.adapting[matrix], matrix, x, low, change, y);
            };
            normalise(true);
            member.divide(panels[0],
                          Multiply{threads, &block->query_key_value, entering, projected, n, AS_BF16});
            adapting(QUERY_KEY_VALUE, entering, projected);
            member.divide(sizes.keys, [&](int64_t begin, int64_t end) {
                keep_range(attending(), begin, end);
            });
            member.divide(sizes.queries, [&](int64_t begin, int64_t end) {
                mix_range(attending(), *queries, begin, end, threads);
            }, mixed_ranges(sizes.queries));
            member.divide(panels[1], Multiply{threads, &block->output, mixed, s.x, n, ADD_TO_FLOAT});
            adapting(OUTPUT, mixed, s.x);
            normalise(false);
            member.divide(panels[2], Multiply{threads, &block->inner, entering, between, n, AS_BF16});
            adapting(INNER, entering, between);
            member.each(sizes.tokens, [&](int64_t row) {
                const bf16* from = between + row * inner;
                bf16* to = activated + row * active;
                if (s.activation == GATE) gate_row(from, to, active);
                else gelu_row(from, to, active);
            });
            member.divide(panels[3], Multiply{threads, &block->feed_forward_output, activated, s.x, n,
                                              ADD_TO_FLOAT});
            adapting(FEED_FORWARD_OUTPUT, activated, s.x);
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

// Rows of a packed matrix, in float32; NaN for those that it does not have.
void lmsmith_rows(const Matrix* w, const int64_t* rows, float* to, int count) {
    const Panels from{const_cast<void*>(w->weight), (uint16_t*)w->scales, (uint16_t*)w->minima,
                      (int16_t*)w->steps};
    for (int i = 0; i < count; ++i, to += w->inputs)
        if (rows[i] < 0 || rows[i] >= w->outputs) std::fill(to, to + w->inputs, NAN);
        else read_row(w->packing, from, rows[i], (w->outputs + LANES - 1) / LANES, w->inputs, to);
}

// y = x W^T + bias.
void lmsmith_linear(const bf16* x, const Matrix* w, void* y, int rows, int result, int threads) {
    in_team(threads, [=, panels = panels_of(*w)](Member& member) {
        member.divide(panels, Multiply(threads, w, x, y, rows, result));
    });
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

// The next token of each row of logits, by its uniform number, or -1 where the largest is no finite
// number; what is forbidden is by its state.
void lmsmith_draw(const float* logits, const double* uniform, const float* forbidden,
                  const int64_t* states, int64_t* tokens, int rows, int count, float temperature,
                  int top_k, float top_p, float min_p, int threads) {
    const Drawing d{temperature, top_p, min_p, top_k};
    const auto draw_row = [=](int64_t row) {
        const float* at = logits + row * count;
        if (!is_finite({at, nullptr, count})) tokens[row] = -1;
        else if (forbidden)
            tokens[row] = draw(Logits<true>{at, forbidden + states[row] * count, count}, d,
                               uniform[row]);
        else tokens[row] = draw(Logits<false>{at, nullptr, count}, d, uniform[row]);
    };
    for_all(rows > 1 ? threads : 1, rows, draw_row);
}

// All blocks, one after the other.
void lmsmith_stack(const Stack* s, int threads) { run_stack(*s, threads); }

}  // extern "C"
