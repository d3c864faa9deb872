// Few query rows against many keys (decode): every key and value row is read once,
// for all query heads that share it. Keys are split at fixed points, so the result does
// not depend on the number of threads.
#pragma once
#include "engine.hpp"

namespace gossamer::GOSSAMER_ISA {

constexpr int64_t STREAM_ROWS = 16;     // query rows a (batch, key head) that still count as few
constexpr int64_t STREAM_SPLIT = 1024;  // keys a task
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

// out[r, k] = query row r . keys[k] for the first `count` keys; the others must be readable.
template <class T>
GOSSAMER_INLINE void dot_keys(const float *query, int64_t rows, int64_t dim,
                              const T *const (&keys)[W], int64_t count, float *out,
                              int64_t stride) {
    for (int64_t r = 0; r < rows; ++r, query += dim) {
        Vec products[W] = {};
        int64_t d = 0;
        for (; d + W <= dim; d += W) {
            const Vec q = load(query + d);
#pragma GCC unroll 16
            for (int k = 0; k < W; ++k) products[k] += q * load(keys[k] + d);
        }
        for (; d < dim; ++d)
            for (int k = 0; k < W; ++k) products[k][0] += query[d] * scalar(keys[k][d]);
        const Vec dots = sums(products);
        if (count == W) {
            store(out + r * stride, dots);
        } else {
            for (int64_t k = 0; k < count; ++k) out[r * stride + k] = dots[k];
        }
    }
}

// out[r, k] = query row r . key k for W keys that lie `stride` apart.
template <class T>
GOSSAMER_INLINE void dot_run(const float *query, int64_t rows, int64_t dim, const T *keys,
                             int64_t stride, float *out, int64_t out_stride) {
    constexpr int QUADS = W / 4;  // few enough bases to stay in registers
    for (int64_t r = 0; r < rows; ++r, query += dim) {
        const T *bases[QUADS];
        for (int quad = 0; quad < QUADS; ++quad) bases[quad] = keys + 4 * quad * stride;
        Vec products[W] = {};
        int64_t d = 0;
        for (; d + W <= dim; d += W) {
            const Vec q = load(query + d);
#pragma GCC unroll 4
            for (int quad = 0; quad < QUADS; ++quad) {
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k)
                    products[quad * 4 + k] += q * load(bases[quad] + k * stride);
                bases[quad] += W;
            }
        }
        for (; d < dim; ++d)
            for (int k = 0; k < W; ++k) products[k][0] += query[d] * scalar(keys[k * stride + d]);
        store(out + r * out_stride, sums(products));
    }
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
static void stream_keys(const AttentionArgs &a, const FloatEngine<T> &engine, const Rows<T> &head,
                        const KeySpan &span, int64_t begin, int64_t end, const float *query,
                        const Tile &tile, int64_t queries, int64_t start, Scratch &scratch) {
    float *scores = scratch.take<float>(STREAM_ROWS * STREAM_STEP);
    float *values = scratch.take<float>(engine.value_cells(STREAM_STEP));
    float *rotated = scratch.take<float>(W * a.dim);
    const FloatEngine<T> runs(a, true);
    int32_t tokens[STREAM_STEP + PREFETCH];
    for (int64_t at = begin; at < end; at += STREAM_STEP) {
        const int64_t reach = min64(end, at + STREAM_STEP + PREFETCH);
        const int64_t ahead = fill_tokens(a, span, at, reach, tokens);
        const int64_t count = min64(ahead, STREAM_STEP);
        if (count == 0) continue;
        const Rows<T> rows = head.list(tokens, 0);
        const bool run = runs.in_place && tokens[count - 1] - tokens[0] == count - 1;
        if (at == begin)
            for (int64_t j = 0; j < min64(PREFETCH, ahead); ++j)
                prefetch_row(rows.key_row(j), a.dim);
        for (int64_t j = 0; j < count; j += W) {
            const int64_t many = min64(W, count - j);
            if (run && a.cosine == nullptr && many == W) {
                const T *near = rows.key_row(j);
                for (int k = 0; k < W; ++k) prefetch_row(rows.value_row(j + k), a.dim);
                dot_run(query, tile.rows, a.dim, near, a.key.token, scores + j, STREAM_STEP);
                continue;
            }
            const T *keys[W];
            for (int k = 0; k < W; ++k) {
                const int64_t key = min64(j + k, count - 1);
                keys[k] = rows.key_row(key);
                if (key + PREFETCH < ahead) prefetch_row(rows.key_row(key + PREFETCH), a.dim);
                if (!run) prefetch_row(rows.value_row(key), a.dim);
            }
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
        if (!run) engine.pack_values(rows, count, count, values);
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
        if (!run) {
            const float *const panel = values;
            engine.accumulate(tile, scores, STREAM_STEP, &panel, &count, 1, columns);
            continue;
        }
        // The values came while keys were met; the next keys come while these values are. Behind
        // the last key there may be no memory: a prefetch of it does nothing.
        for (int64_t j = 0; j < count; j += STREAM_PART) {
            const int64_t part = min64(STREAM_PART, count - j);
            for (int64_t k = 0; k < part; ++k)
                prefetch_row(rows.key_row(0) + (count + j + k) * a.key.token, a.dim);
            const float *const panel = reinterpret_cast<const float *>(rows.value_row(j));
            runs.accumulate(tile, scores + j, STREAM_STEP, &panel, &part, 1, round_up(part, W));
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
    const int64_t splits = max64(1, ceil_div(longest, STREAM_SPLIT));
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
            static_cast<size_t>(STREAM_ROWS * (a.dim + STREAM_STEP) +
                                engine.value_cells(STREAM_STEP) + (W + 1) * a.dim + 256);
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
            const int64_t begin = span.begin + task % splits * STREAM_SPLIT;
            const int64_t end = min64(span.end, begin + STREAM_SPLIT);
            if (begin < end)
                stream_keys(a, engine, Rows<T>::head(a, b, sharing.kv_head(set)), span, begin, end,
                            query, tile, queries, first_key(a, b), scratch);
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
