// TokenSelect's scoring: one pass over the keys for all query heads that share them,
// softmax votes summed over heads, and the positions of the largest votes.
#include "../native/select.hpp"
#include "../native/stream.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class T>
void run(const PagedDotArgs &p) {
    const int64_t heads = p.heads / p.kv_heads, splits = ceil_div(p.k_len, STREAM_SPLIT);
#pragma omp parallel for schedule(dynamic, 1) num_threads(p.threads)
    for (int64_t task = 0; task < p.batch * p.kv_heads * splits; ++task) {
        const int64_t b = task / splits / p.kv_heads, kv_head = task / splits % p.kv_heads;
        const int64_t from = task % splits * STREAM_SPLIT;
        const int64_t to = min64(p.k_len, from + STREAM_SPLIT);
        const int64_t begin = min64(to, max64(from, p.begin[b]));
        const int64_t end = max64(begin, min64(to, p.end));
        float *out = p.scores + (b * p.heads + kv_head * heads) * p.k_len;
        const T *key = static_cast<const T *>(p.key.data) + b * p.key.batch + kv_head * p.key.head;
        Scratch scratch(static_cast<size_t>(heads * p.dim) * 4 + 64);
        float *query = scratch.take<float>(heads * p.dim);
        for (int64_t h = 0; h < heads; ++h) {
            const T *row = static_cast<const T *>(p.query.data) + b * p.query.batch +
                           (kv_head * heads + h) * p.query.head;
            for (int64_t d = 0; d < p.dim; ++d) query[h * p.dim + d] = scalar(row[d]) * p.scale;
            fill(out + h * p.k_len, from, begin, NEG_INF);
            fill(out + h * p.k_len, end, to, NEG_INF);
        }
        for (int64_t j = begin; j < end; ++j) {
            prefetch_row(key + min64(j + PREFETCH, p.k_len - 1) * p.key.token, p.dim);
            dot_rows(query, heads, p.dim, key + j * p.key.token, out + j, p.k_len);
        }
    }
}

}  // namespace

void paged_dot(const PagedDotArgs &p) {
    p.dtype == Dtype::float32 ? run<float>(p) : run<uint16_t>(p);
}

void soft_votes(const SoftVotesArgs &v) {
    const int64_t rows = v.batch * v.heads;
    Scratch shared(static_cast<size_t>(rows) * 8 + 128);
    float *top = shared.take<float>(rows), *inverse = shared.take<float>(rows);
#pragma omp parallel num_threads(v.threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const float *s = v.scores + row * v.k_len;
            float most = NEG_INF, total = 0.0f;
            for (int64_t j = 0; j < v.k_len; ++j) most = s[j] > most ? s[j] : most;
            int64_t j = 0;
            Vec sums{};
            for (; j + W <= v.k_len; j += W) sums += exp2_nonpositive((load(s + j) - most) * LOG2E);
            total = sum(sums);
            for (; j < v.k_len; ++j) total += exp2_nonpositive(broadcast((s[j] - most) * LOG2E))[0];
            top[row] = most;
            inverse[row] = most == NEG_INF ? 0.0f : 1.0f / total;
        }
#pragma omp for schedule(static)
        for (int64_t task = 0; task < v.batch * ceil_div(v.k_len, 512); ++task) {
            const int64_t b = task / ceil_div(v.k_len, 512);
            const int64_t from = task % ceil_div(v.k_len, 512) * 512;
            const int64_t to = min64(v.k_len, from + 512);
            float *out = v.votes + b * v.k_len;
            const float *s = v.scores + b * v.heads * v.k_len;
            for (int64_t j = from; j < to; j += W) {
                float tail[W] = {};
                const int64_t count = min64(W, to - j);
                Vec total{};
                for (int64_t h = 0; h < v.heads; ++h) {
                    const float *row = s + h * v.k_len + j;
                    Vec x = broadcast(NEG_INF);
                    if (count == W) {
                        x = load(row);
                    } else {
                        for (int64_t i = 0; i < count; ++i) x[i] = row[i];
                    }
                    if (inverse[b * v.heads + h] == 0.0f) continue;
                    total += exp2_nonpositive((x - top[b * v.heads + h]) * LOG2E) *
                             inverse[b * v.heads + h];
                }
                store(tail, total);
                for (int64_t i = 0; i < count; ++i)
                    out[j + i] = s[j + i] == NEG_INF ? NEG_INF : tail[i];
            }
        }
    }
}

void top_indices(const TopIndicesArgs &t) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(t.threads)
    for (int64_t row = 0; row < t.rows; ++row) {
        const float *values = t.values + row * t.columns;
        Scratch scratch(static_cast<size_t>(t.columns) * 8);
        uint64_t *keys = scratch.take<uint64_t>(t.columns);
        for (int64_t j = 0; j < t.columns; ++j)
            keys[j] = rank_key(values[j], static_cast<uint32_t>(j));
        const uint64_t last = kth_key(keys, t.columns, t.k);
        int32_t *out = t.indices + row * t.k;
        for (int64_t j = 0, n = 0; j < t.columns; ++j)
            if (rank_key(values[j], static_cast<uint32_t>(j)) <= last)
                out[n++] = static_cast<int32_t>(j);
    }
}

}  // namespace gossamer::GOSSAMER_ISA
