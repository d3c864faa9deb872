// Few query rows against many keys (decode): every key and value row is read once,
// for all query heads that share it. Keys are split at fixed points, so the result does
// not depend on the number of threads.
#pragma once
#include "engine.hpp"

namespace gossamer::GOSSAMER_ISA {

constexpr int64_t STREAM_ROWS = 16;     // query rows a (batch, key head) that still count as few
constexpr int64_t STREAM_SPLIT = 1024;  // keys a task at most, and a softmax update
constexpr int64_t LIST_SPLIT = 256;     // keys of a list a task at most
constexpr int64_t LIST_STEP = 128;      // keys of a list between two softmax updates
constexpr int64_t LIST_PART = 32;       // keys of a list whose values are added up at a time
constexpr int64_t RUN_PART = 64;        // the same of a run: they stay in the nearest cache
constexpr int64_t PREFETCH = 48;        // rows of a list fetched ahead
constexpr int64_t RUN_AHEAD = 32;       // the same where a run turns from keys to values

// Query heads that share one key head and one list of keys, for one group of queries.
struct Sharing {
    int64_t sets, heads;  // sets a batch element, query heads a set
    const AttentionArgs &a;

    explicit Sharing(const AttentionArgs &args)
        : sets(args.starts == nullptr ? args.kv_heads : max64(args.list_heads, args.kv_heads)),
          heads(args.heads / sets),
          a(args) {}
    int64_t kv_head(int64_t set) const { return set * a.kv_heads / sets; }
    int64_t list_row(int64_t b, int64_t set, int64_t group) const {
        return (b * a.list_heads + set * a.list_heads / sets) * a.groups + group;
    }
};

// Positions [begin, end) of a list of keys (units named by ids, or the tokens themselves)
// with `gap` of them left out from position `gap_at` on.
struct KeySpan {
    const int32_t *ids;
    int64_t begin, end, gap_at, gap;

    int64_t token(int64_t position, int64_t unit) const {
        const int64_t at = position + (position >= gap_at ? gap : 0);
        return ids == nullptr ? at : ids[at / unit] * unit + at % unit;
    }
    // Where the tokens that follow each other from position `at` on end, without ids.
    int64_t run_end(int64_t at) const { return gap > 0 && at < gap_at ? min64(gap_at, end) : end; }
};

// The keys one group of queries may see, as positions in its list.
GOSSAMER_INLINE KeySpan key_span(const AttentionArgs &a, const Sharing &sharing, int64_t b,
                                 int64_t set, int64_t group, int64_t first_position,
                                 int64_t last_position) {
    const int64_t reach = a.causal ? min64(a.k_len, last_position + 1) : a.k_len;
    const int64_t start = first_key(a, b), sink_end = start + a.sink;
    if (a.starts == nullptr) {
        const int64_t gap =
            a.local > 0 ? max64(0, min64(first_position - a.local + 1, reach) - sink_end) : 0;
        return {nullptr, min64(start, reach), reach - gap, sink_end, gap};
    }
    const int64_t row = sharing.list_row(b, set, group);
    const int32_t *ids = a.indices + a.starts[row];
    int64_t count = a.counts[row], first = 0;
    while (count > 0 && ids[count - 1] * a.unit >= reach) --count;
    while (first < count && (ids[first] + 1) * a.unit <= start) ++first;
    int64_t gap_at = first, gap_end = first;
    if (a.local > 0) {
        while (gap_at < count && ids[gap_at] * a.unit < sink_end) ++gap_at;
        for (gap_end = gap_at; gap_end < count; ++gap_end)
            if ((ids[gap_end] + 1) * a.unit - 1 > first_position - a.local) break;
    }
    const int64_t gap = (gap_end - gap_at) * a.unit;
    return {ids, first * a.unit, count * a.unit - gap, gap_at * a.unit, gap};
}

// Rows at even steps: unlike those of an array of pointers, their addresses take no load, so that
// the processor sees further ahead.
template <class T>
struct Run {
    const T *first;
    int64_t step;

    const T *operator[](int64_t i) const { return first + i * step; }
    Run from(int64_t i) const { return {first + i * step, step}; }
};

constexpr int FEW_ROWS = W == 16 ? 4 : 2;  // query rows that go through the registers together

// out[r, k] = query row r . keys[k] for R rows and `count` keys, W at most. Keys are met one by
// one and each from end to end: memory is read fastest in order. Dim > 0 is a known width.
template <int R, int Dim, class Keys>
GOSSAMER_INLINE void dot_tile(const float *query, int64_t any_dim, const Keys &keys, int64_t count,
                              float *out, int64_t stride) {
    Vec parts[R][W];
    const int64_t dim = Dim > 0 ? Dim : any_dim;
#pragma GCC unroll 1
    for (int64_t k = 0; k < count; ++k) {
        const auto *key = keys[k];
        Vec products[R] = {};
        int64_t d = 0;
#pragma GCC unroll 8
        for (; d + W <= dim; d += W) {
            const Vec few = load(key + d);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) products[r] += load(query + r * dim + d) * few;
        }
        for (; d < dim; ++d)
            for (int r = 0; r < R; ++r) products[r][0] += query[r * dim + d] * scalar(key[d]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) parts[r][k] = products[r];
    }
    for (int r = 0; r < R; ++r, out += stride) {
        for (int64_t k = count; k < W; ++k) parts[r][k] = Vec{};
        const Vec dots = sums(parts[r]);
        if (count == W) {
            store(out, dots);
        } else {
            for (int64_t k = 0; k < count; ++k) out[k] = dots[k];
        }
    }
}

template <int Dim, class Keys>
GOSSAMER_INLINE void dot_keys_of(const float *query, int64_t rows, int64_t dim, const Keys &keys,
                                 int64_t count, float *out, int64_t stride) {
    for (; rows >= FEW_ROWS; rows -= FEW_ROWS) {
        dot_tile<FEW_ROWS, Dim>(query, dim, keys, count, out, stride);
        query += FEW_ROWS * dim;
        out += FEW_ROWS * stride;
    }
    if (rows == 3) dot_tile<3, Dim>(query, dim, keys, count, out, stride);
    if (rows == 2) dot_tile<2, Dim>(query, dim, keys, count, out, stride);
    if (rows == 1) dot_tile<1, Dim>(query, dim, keys, count, out, stride);
}

template <class Keys>
GOSSAMER_INLINE void dot_keys(const float *query, int64_t rows, int64_t dim, const Keys &keys,
                              int64_t count, float *out, int64_t stride) {
    if (dim == 64) return dot_keys_of<64>(query, rows, dim, keys, count, out, stride);
    if (dim == 128) return dot_keys_of<128>(query, rows, dim, keys, count, out, stride);
    dot_keys_of<0>(query, rows, dim, keys, count, out, stride);
}

// acc row r += the sum of p[r, j] * values[j], for R rows and C vectors from column `at` on.
template <int R, int C, class Values>
GOSSAMER_INLINE void add_tile(const float *p, int64_t p_stride, const Values &values, int64_t count,
                              int64_t at, float *acc, int64_t acc_stride) {
    Vec sums[R][C];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sums[r][c] = load(acc + r * acc_stride + at + c * W);
    for (int64_t j = 0; j < count; ++j) {
        Vec value[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) value[c] = load(values[j] + at + c * W);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const Vec weight = broadcast(p[r * p_stride + j]);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) sums[r][c] += weight * value[c];
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) store(acc + r * acc_stride + at + c * W, sums[r][c]);
}

template <int R, class Values>
GOSSAMER_INLINE void add_columns(const float *p, int64_t p_stride, const Values &values,
                                 int64_t count, int64_t dim, float *acc, int64_t acc_stride) {
    int64_t at = 0;
    for (; at + 4 * W <= dim; at += 4 * W)
        add_tile<R, 4>(p, p_stride, values, count, at, acc, acc_stride);
    for (; at + W <= dim; at += W) add_tile<R, 1>(p, p_stride, values, count, at, acc, acc_stride);
    for (; at < dim; ++at)
        for (int r = 0; r < R; ++r)
            for (int64_t j = 0; j < count; ++j)
                acc[r * acc_stride + at] += p[r * p_stride + j] * scalar(values[j][at]);
}

template <class Values>
GOSSAMER_INLINE void add_values(int64_t rows, const float *p, int64_t p_stride,
                                const Values &values, int64_t count, int64_t dim, float *acc,
                                int64_t acc_stride) {
    for (; rows >= FEW_ROWS; rows -= FEW_ROWS) {
        add_columns<FEW_ROWS>(p, p_stride, values, count, dim, acc, acc_stride);
        p += FEW_ROWS * p_stride;
        acc += FEW_ROWS * acc_stride;
    }
    if (rows == 3) add_columns<3>(p, p_stride, values, count, dim, acc, acc_stride);
    if (rows == 2) add_columns<2>(p, p_stride, values, count, dim, acc, acc_stride);
    if (rows == 1) add_columns<1>(p, p_stride, values, count, dim, acc, acc_stride);
}

template <class T>
GOSSAMER_INLINE void prefetch_row(const T *row, int64_t dim) {
    const char *p = reinterpret_cast<const char *>(row);
    for (int64_t at = 0; at < dim * static_cast<int64_t>(sizeof(T)); at += 64)
        __builtin_prefetch(p + at, 0, 2);
}

// Tokens of positions [at, end) of a list; returns how many there are.
GOSSAMER_INLINE int64_t fill_tokens(const AttentionArgs &a, const KeySpan &span, int64_t at,
                                    int64_t end, int32_t *tokens) {
    int64_t count = 0;
    for (int64_t i = at; i < end; ++i) {
        const int64_t token = span.token(i, a.unit);
        if (token < a.k_len) tokens[count++] = static_cast<int32_t>(token);
    }
    return count;
}

constexpr int64_t SCORE_STRIDE = row_stride(STREAM_SPLIT, sizeof(float));

// Query rows in flight, heads x queries with queries fastest, and room for their scores.
struct Stream {
    const AttentionArgs &a;
    const Tile &tile;
    const float *query;
    int64_t queries, start;   // queries a head; first real key
    float *scores, *rotated;  // [rows, SCORE_STRIDE]; [W, dim]
};

// Scores of up to W keys, the first of which has `rank`, as columns from `at` on.
template <class Keys>
GOSSAMER_INLINE void score_keys(const Stream &s, const Keys &keys, int64_t rank, int64_t count,
                                int64_t at) {
    const int64_t dim = s.a.dim;
    if (s.a.cosine == nullptr) {
        dot_keys(s.query, s.tile.rows, dim, keys, count, s.scores + at, SCORE_STRIDE);
        return;
    }
    for (int64_t k = 0; k < count; ++k) rotate_row(s.a, keys[k], rank + k, s.rotated + k * dim);
    const Run<float> turned{s.rotated, dim};
    dot_keys(s.query, s.tile.rows, dim, turned, count, s.scores + at, SCORE_STRIDE);
}

// Turn the scores of `count` keys into weights: hide what a row may not see, and update the tile.
template <class T>
static void weigh_keys(const Stream &s, const Rows<T> &keys, int64_t count) {
    const AttentionArgs &a = s.a;
    const int64_t columns = round_up(count, W);
    const bool all_visible = keys.token(0) >= s.start && a.local == 0 &&
                             (!a.causal || keys.token(count - 1) <= s.tile.position);
    for (int64_t r = 0; r < s.tile.rows; ++r) {
        const int64_t position = s.tile.position + r % s.queries;
        float *row = s.scores + r * SCORE_STRIDE;
        for (int64_t j = 0; j < count && !all_visible; ++j) {
            const int64_t token = keys.token(j);
            const bool gap =
                a.local > 0 && token >= s.start + a.sink && token <= position - a.local;
            if ((a.causal && token > position) || token < s.start || gap) row[j] = NEG_INF;
        }
        fill(row, count, columns, NEG_INF);
    }
    softmax_rows(s.tile, s.scores, SCORE_STRIDE, columns, a.scale, s.scores, SCORE_STRIDE);
}

template <class Values>
GOSSAMER_INLINE void add_weighted(const Stream &s, const Values &values, int64_t at,
                                  int64_t count) {
    add_values(s.tile.rows, s.scores + at, SCORE_STRIDE, values, count, s.a.dim, s.tile.acc,
               s.tile.acc_stride);
}

// Keys next to each other, the first of which has `rank`: one softmax update. The hardware
// foresees all rows but the first values.
template <class T>
static void stream_run(const Stream &s, const Rows<T> &rows, int64_t rank, int64_t count) {
    const Run<T> keys{rows.key_row(0), s.a.key.token}, values{rows.value_row(0), s.a.value.token};
    const int64_t turn = max64(0, count - RUN_AHEAD);
    for (int64_t j = 0; j < count; j += W) {
        const int64_t few = min64(W, count - j);
        for (int64_t k = max64(j, turn); k < j + few; ++k) prefetch_row(values[k - turn], s.a.dim);
        score_keys(s, keys.from(j), rank + j, few, j);
    }
    weigh_keys(s, rows, count);
    for (int64_t j = 0; j < count; j += RUN_PART)
        add_weighted(s, values.from(j), j, min64(RUN_PART, count - j));
}

// Positions [begin, end) of a list. Values come while keys are met, and the next keys while
// values are added up.
template <class T>
static void stream_list(const Stream &s, const Rows<T> &head, const KeySpan &span, int64_t begin,
                        int64_t end) {
    const int64_t dim = s.a.dim;
    int32_t tokens[2 * LIST_STEP];  // of this step and the next
    const Rows<T> rows = head.list(tokens, 0);
    for (int64_t at = begin; at < end; at += LIST_STEP) {
        const int64_t ahead = fill_tokens(s.a, span, at, min64(end, at + 2 * LIST_STEP), tokens);
        const int64_t count = min64(ahead, LIST_STEP);
        if (count == 0) continue;
        if (at == begin)
            for (int64_t j = 0; j < min64(PREFETCH, count); ++j) prefetch_row(rows.key_row(j), dim);
        for (int64_t j = 0; j < count; j += W) {
            const int64_t few = min64(W, count - j);
            const T *keys[W];
            for (int64_t k = 0; k < few; ++k) {
                keys[k] = rows.key_row(j + k);
                prefetch_row(rows.value_row(j + k), dim);
                if (at == begin && j + k + PREFETCH < count)
                    prefetch_row(rows.key_row(j + k + PREFETCH), dim);
            }
            score_keys(s, keys, at + j, few, j);
        }
        weigh_keys(s, rows, count);
        for (int64_t j = 0; j < count; j += LIST_PART) {
            const int64_t part = min64(LIST_PART, count - j);
            const T *values[LIST_PART];
            for (int64_t k = 0; k < part; ++k) values[k] = rows.value_row(j + k);
            for (int64_t k = count + j; k < min64(count + j + part, ahead); ++k)
                prefetch_row(rows.key_row(k), dim);
            add_weighted(s, values, j, part);
        }
    }
}

// One task: fold positions [begin, end) of the span into the tile.
template <class T>
static void stream_keys(const Stream &s, const Rows<T> &head, const KeySpan &span, int64_t begin,
                        int64_t end) {
    if (span.ids != nullptr) {
        stream_list(s, head, span, begin, end);
        return;
    }
    for (int64_t at = begin, next; at < end; at = next) {
        next = min64(end, span.run_end(at));
        stream_run(s, head.run(span.token(at, 1)), at, next - at);
    }
}

GOSSAMER_INLINE void merge_row(const AttentionArgs &a, float *max, float *sum, float *acc,
                               float other_max, float other_sum, const float *other,
                               int64_t stride) {
    if (other_max == NEG_INF) return;
    const float c = a.scale * LOG2E;
    const float top = *max > other_max ? *max : other_max;
    const float mine = *max == NEG_INF ? 0.0f : exp2_nonpositive(broadcast((*max - top) * c))[0];
    const float theirs = exp2_nonpositive(broadcast((other_max - top) * c))[0];
    *max = top;
    *sum = *sum * mine + other_sum * theirs;
    for (int64_t d = 0; d < stride; d += W)
        store(acc + d, load(acc + d) * mine + load(other + d) * theirs);
}

GOSSAMER_INLINE bool few_rows(const AttentionArgs &a) {
    return a.q_len * (a.heads / a.kv_heads) <= STREAM_ROWS;
}

template <class T>
static void stream_attention(const AttentionArgs &a) {
    const Sharing sharing(a);
    const int64_t group = a.starts == nullptr ? a.q_len : a.group;
    const int64_t groups = ceil_div(a.q_len, group);
    const int64_t items = a.batch * sharing.sets * groups;
    const int64_t longest = a.starts == nullptr ? a.k_len : min64(a.k_len + a.unit, [&a] {
        int64_t most = 0;
        for (int64_t i = 0; i < a.batch * a.list_heads * a.groups; ++i)
            most = max64(most, a.counts[i] * a.unit);
        return most;
    }());
    // Even parts: a long list is followed by a wait for its shorter end.
    const int64_t at_most = a.starts == nullptr ? STREAM_SPLIT : LIST_SPLIT;
    const int64_t splits = max64(1, ceil_div(longest, at_most));
    const int64_t split = round_up(ceil_div(longest, splits), W);
    const int64_t stride = round_up(a.dim, W);
    const int64_t rows = sharing.heads * min64(group, a.q_len);
    const int64_t partial = round_up(rows * (stride + 2), 16);  // acc, max, sum of one task
    Scratch shared(sizeof(float) * static_cast<size_t>(items * splits * partial));
    float *partials = shared.take<float>(items * splits * partial);
    auto part = [&](int64_t task) {
        float *base = partials + task * partial;
        return Tile{0, 0, stride, base + rows * stride, base + rows * (stride + 1), base};
    };
    auto place = [&](int64_t item, int64_t &b, int64_t &set, int64_t &g) {
        g = item % groups;
        set = item / groups % sharing.sets;
        b = item / groups / sharing.sets;
    };
#pragma omp parallel num_threads(a.threads)
    {
        const FloatEngine<T> engine(a);
        Scratch scratch(sizeof(float) *
                        static_cast<size_t>(rows * (a.dim + SCORE_STRIDE) + W * a.dim + 48));
        float *query = scratch.take<float>(rows * a.dim);
        float *scores = scratch.take<float>(rows * SCORE_STRIDE);
        float *rotated = scratch.take<float>(W * a.dim);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < items * splits; ++task) {
            int64_t b, set, g;
            place(task / splits, b, set, g);
            const int64_t first = g * group, queries = min64(group, a.q_len - first);
            for (int64_t h = 0; h < sharing.heads; ++h)
                engine.pack_query(static_cast<const T *>(a.query.data) + b * a.query.batch +
                                      (set * sharing.heads + h) * a.query.head +
                                      first * a.query.token,
                                  queries, query + h * queries * a.dim);
            Tile tile = part(task);
            tile.rows = static_cast<int>(sharing.heads * queries);
            tile.position = first + a.k_len - a.q_len;
            for (int r = 0; r < tile.rows; ++r) {
                tile.max[r] = NEG_INF;
                tile.sum[r] = 0.0f;
            }
            fill(tile.acc, 0, tile.rows * stride, 0.0f);
            const KeySpan span =
                key_span(a, sharing, b, set, g, tile.position, tile.position + queries - 1);
            const int64_t begin = span.begin + task % splits * split;
            const int64_t end = min64(span.end, begin + split);
            const Stream stream{a, tile, query, queries, first_key(a, b), scores, rotated};
            stream_keys(stream, Rows<T>::head(a, b, sharing.kv_head(set)), span, begin, end);
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items; ++item) {
            int64_t b, set, g;
            place(item, b, set, g);
            const int64_t first = g * group, queries = min64(group, a.q_len - first);
            float acc[1024];
            for (int64_t h = 0; h < sharing.heads; ++h)
                for (int64_t i = 0; i < queries; ++i) {
                    float max, sum;
                    Tile row{1, 0, stride, &max, &sum, acc};
                    begin_rows(a, row, b, set * sharing.heads + h, first + i);
                    for (int64_t s = 0; s < splits; ++s) {
                        const Tile other = part(item * splits + s);
                        const int64_t r = h * queries + i;
                        merge_row(a, &max, &sum, acc, other.max[r], other.sum[r],
                                  other.acc + r * stride, stride);
                    }
                    finish_rows<T>(a, row, b, set * sharing.heads + h, first + i);
                }
        }
    }
}

}  // namespace gossamer::GOSSAMER_ISA
