// Few query rows against many keys (decode): every key and value row is read once,
// for all query heads that share it. Keys are split at fixed points, so the result does
// not depend on the number of threads.
#pragma once
#include "engine.hpp"

namespace gossamer::GOSSAMER_ISA {

constexpr int64_t STREAM_ROWS = 16;     // query rows a (batch, key head) that still count as few
constexpr int64_t STREAM_SPLIT = 1024;  // keys a task at most
constexpr int64_t LIST_SPLIT = 256;     // the same, of a list
constexpr int64_t STREAM_STEP = 128;    // keys between two softmax updates
constexpr int64_t STREAM_PART = 32;     // keys whose values are added up at a time
constexpr int64_t PREFETCH = 48;        // rows ahead

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

// A register tile: query rows, and keys or vectors of a value row; the operands fit beside it.
constexpr int FEW_ROWS = W == 16 ? 4 : 2;
constexpr int FEW_KEYS = 4;

// out[r, k] = query row r . keys[k] for R rows and the first `count` keys; the others must be
// readable. Dim > 0 unrolls a known width: every load then steps evenly, which is foreseen.
template <int R, int Dim, class T>
GOSSAMER_INLINE void dot_tile(const float *query, int64_t any_dim, const T *const (&keys)[W],
                              int64_t count, float *out, int64_t stride) {
    Vec parts[R][W];
    const int64_t dim = Dim > 0 ? Dim : any_dim;
    for (int first = 0; first < W; first += FEW_KEYS) {
        Vec products[R][FEW_KEYS] = {};
        int64_t d = 0;
#pragma GCC unroll 4
        for (; d + W <= dim; d += W) {
            Vec q[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) q[r] = load(query + r * dim + d);
#pragma GCC unroll 4
            for (int k = 0; k < FEW_KEYS; ++k) {
                const Vec key = load(keys[first + k] + d);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) products[r][k] += q[r] * key;
            }
        }
        for (; d < dim; ++d)
            for (int k = 0; k < FEW_KEYS; ++k)
                for (int r = 0; r < R; ++r)
                    products[r][k][0] += query[r * dim + d] * scalar(keys[first + k][d]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int k = 0; k < FEW_KEYS; ++k) parts[r][first + k] = products[r][k];
    }
    for (int r = 0; r < R; ++r, out += stride) {
        const Vec dots = sums(parts[r]);
        if (count == W) {
            store(out, dots);
        } else {
            for (int64_t k = 0; k < count; ++k) out[k] = dots[k];
        }
    }
}

template <int Dim, class T>
GOSSAMER_INLINE void dot_keys_of(const float *query, int64_t rows, int64_t dim,
                                 const T *const (&keys)[W], int64_t count, float *out,
                                 int64_t stride) {
    for (; rows >= FEW_ROWS; rows -= FEW_ROWS) {
        dot_tile<FEW_ROWS, Dim>(query, dim, keys, count, out, stride);
        query += FEW_ROWS * dim;
        out += FEW_ROWS * stride;
    }
    if (rows == 3) dot_tile<3, Dim>(query, dim, keys, count, out, stride);
    if (rows == 2) dot_tile<2, Dim>(query, dim, keys, count, out, stride);
    if (rows == 1) dot_tile<1, Dim>(query, dim, keys, count, out, stride);
}

template <class T>
GOSSAMER_INLINE void dot_keys(const float *query, int64_t rows, int64_t dim,
                              const T *const (&keys)[W], int64_t count, float *out,
                              int64_t stride) {
    dim == 64 ? dot_keys_of<64>(query, rows, dim, keys, count, out, stride)
              : dot_keys_of<0>(query, rows, dim, keys, count, out, stride);
}

// acc row r += the sum of p[r, j] * values[j], for R rows and C vectors from column `at` on.
template <int R, int C, class T>
GOSSAMER_INLINE void add_tile(const float *p, int64_t p_stride, const T *const *values,
                              int64_t count, int64_t at, float *acc, int64_t acc_stride) {
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

template <int R, class T>
GOSSAMER_INLINE void add_columns(const float *p, int64_t p_stride, const T *const *values,
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

template <class T>
GOSSAMER_INLINE void add_values(int64_t rows, const float *p, int64_t p_stride,
                                const T *const *values, int64_t count, int64_t dim, float *acc,
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

// Tokens of positions [at, end) of the span; returns how many there are.
GOSSAMER_INLINE int64_t fill_tokens(const AttentionArgs &a, const KeySpan &span, int64_t at,
                                    int64_t end, int32_t *tokens) {
    int64_t count = 0;
    if (span.ids == nullptr && (end <= span.gap_at || at >= span.gap_at)) {  // in a row
        const int64_t first = span.token(at, 1);
        for (; count < min64(end - at, a.k_len - first); ++count)
            tokens[count] = static_cast<int32_t>(first + count);
        return count;
    }
    for (int64_t i = at; i < end; ++i) {
        const int64_t token = span.token(i, a.unit);
        if (token < a.k_len) tokens[count++] = static_cast<int32_t>(token);
    }
    return count;
}

// One task: fold positions [begin, end) of the span into `tile`, whose rows are
// heads x queries with queries fastest.
template <class T>
static void stream_keys(const AttentionArgs &a, const Rows<T> &head, const KeySpan &span,
                        int64_t begin, int64_t end, const float *query, const Tile &tile,
                        int64_t queries, int64_t start, Scratch &scratch) {
    float *scores = scratch.take<float>(STREAM_ROWS * STREAM_STEP);
    float *rotated = scratch.take<float>(W * a.dim);
    int32_t tokens[2 * STREAM_STEP];  // of this step and the next
    for (int64_t at = begin; at < end; at += STREAM_STEP) {
        const int64_t reach = min64(end, at + 2 * STREAM_STEP);
        const int64_t ahead = fill_tokens(a, span, at, reach, tokens);
        const int64_t count = min64(ahead, STREAM_STEP);
        if (count == 0) continue;
        const Rows<T> rows = head.list(tokens, 0);
        if (at == begin)
            for (int64_t j = 0; j < min64(PREFETCH, count); ++j)
                prefetch_row(rows.key_row(j), a.dim);
        // Values come while keys are met, and the next keys while values are added up.
        for (int64_t j = 0; j < count; j += W) {
            const T *keys[W];
            for (int k = 0; k < W; ++k) {
                const int64_t key = min64(j + k, count - 1);
                keys[k] = rows.key_row(key);
                prefetch_row(rows.value_row(key), a.dim);
                if (at == begin && key + PREFETCH < count)
                    prefetch_row(rows.key_row(key + PREFETCH), a.dim);
            }
            const int64_t many = min64(W, count - j);
            if (a.cosine == nullptr) {
                dot_keys(query, tile.rows, a.dim, keys, many, scores + j, STREAM_STEP);
                continue;
            }
            const float *turned[W];
            for (int k = 0; k < W; ++k) {
                turned[k] = rotated + k * a.dim;
                rotate_row(a, keys[k], at + min64(j + k, count - 1), rotated + k * a.dim);
            }
            dot_keys(query, tile.rows, a.dim, turned, many, scores + j, STREAM_STEP);
        }
        const int64_t columns = round_up(count, W);
        const bool all_visible =
            tokens[0] >= start && a.local == 0 && (!a.causal || tokens[count - 1] <= tile.position);
        for (int64_t r = 0; r < tile.rows; ++r) {
            const int64_t position = tile.position + r % queries;
            float *row = scores + r * STREAM_STEP;
            for (int64_t j = 0; j < count && !all_visible; ++j) {
                const int64_t token = tokens[j];
                const bool gap =
                    a.local > 0 && token >= start + a.sink && token <= position - a.local;
                if ((a.causal && token > position) || token < start || gap) row[j] = NEG_INF;
            }
            fill(row, count, columns, NEG_INF);
        }
        softmax_rows(tile, scores, STREAM_STEP, columns, a.scale, scores, STREAM_STEP);
        const T *values[STREAM_STEP];
        for (int64_t j = 0; j < count; ++j) values[j] = rows.value_row(j);
        for (int64_t j = 0; j < count; j += STREAM_PART) {
            const int64_t part = min64(STREAM_PART, count - j);
            for (int64_t k = count + j; k < min64(count + j + part, ahead); ++k)
                prefetch_row(rows.key_row(k), a.dim);
            add_values(tile.rows, scores + j, STREAM_STEP, values + j, part, a.dim, tile.acc,
                       tile.acc_stride);
        }
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
    const int64_t partial = STREAM_ROWS * (stride + 2 * 16);  // acc, max, sum of one task
    Scratch shared(sizeof(float) * static_cast<size_t>(items * splits * partial));
    float *partials = shared.take<float>(items * splits * partial);
    auto part = [&](int64_t task) {
        float *base = partials + task * partial;
        return Tile{
            0,   0, stride, base + STREAM_ROWS * stride, base + STREAM_ROWS * stride + STREAM_ROWS,
            base};
    };
    auto place = [&](int64_t item, int64_t &b, int64_t &set, int64_t &g) {
        g = item % groups;
        set = item / groups % sharing.sets;
        b = item / groups / sharing.sets;
    };
#pragma omp parallel num_threads(a.threads)
    {
        const FloatEngine<T> engine(a);
        const size_t floats =
            static_cast<size_t>(STREAM_ROWS * (a.dim + STREAM_STEP) + (W + 1) * a.dim + 256);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < items * splits; ++task) {
            int64_t b, set, g;
            place(task / splits, b, set, g);
            const int64_t first = g * group, queries = min64(group, a.q_len - first);
            Scratch scratch(sizeof(float) * floats);
            float *query = scratch.take<float>(STREAM_ROWS * a.dim);
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
            if (begin < end)
                stream_keys(a, Rows<T>::head(a, b, sharing.kv_head(set)), span, begin, end, query,
                            tile, queries, first_key(a, b), scratch);
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
