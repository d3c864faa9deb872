// TokenSelect's scoring: one pass over the keys for all query heads that share them,
// softmax votes summed over heads, and the positions of the largest votes.
#include "../native/stream.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class Q, class T>
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
            const Q *row = static_cast<const Q *>(p.query.data) + b * p.query.batch +
                           (kv_head * heads + h) * p.query.head;
            for (int64_t d = 0; d < p.dim; ++d) query[h * p.dim + d] = scalar(row[d]) * p.scale;
            fill(out + h * p.k_len, from, begin, NEG_INF);
            fill(out + h * p.k_len, end, to, NEG_INF);
        }
        for (int64_t j = begin; j < end; j += W) {
            const T *keys[W];
            for (int k = 0; k < W; ++k) {
                const int64_t at = min64(j + k, end - 1);
                keys[k] = key + at * p.key.token;
                prefetch_row(key + min64(at + PREFETCH, p.k_len - 1) * p.key.token, p.dim);
            }
            dot_keys(query, heads, p.dim, keys, min64(W, end - j), out + j, p.k_len);
        }
    }
}

// Bits that order as the scores do, not NaN; -0 ties with +0.
GOSSAMER_INLINE uint32_t ordered_bits(float score) {
    const float whole = score + 0.0f;
    uint32_t bits;
    memcpy(&bits, &whole, 4);
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

// The k-th largest (k >= 1) of n keys; leaves in `k` how many of its equals belong to the k
// largest. Reorders the keys.
static uint32_t kth_largest(uint32_t *keys, int64_t n, int64_t &k) {
    const int shifts[] = {22, 11, 0};  // digits of 10, 11 and 11 bits
    for (const int shift : shifts) {
        int64_t counts[2048] = {};
        for (int64_t i = 0; i < n; ++i) ++counts[(keys[i] >> shift) & 2047];
        uint32_t digit = 2047;
        while (counts[digit] < k) k -= counts[digit--];
        int64_t kept = 0;
        for (int64_t i = 0; i < n; ++i) {
            keys[kept] = keys[i];
            kept += ((keys[i] >> shift) & 2047) == digit;
        }
        n = kept;
    }
    return keys[0];
}

}  // namespace

void paged_dot(const PagedDotArgs &p) {
    if (p.dtype == Dtype::float32) {
        run<float, float>(p);
    } else {
        p.query_dtype == Dtype::float32 ? run<float, uint16_t>(p) : run<uint16_t, uint16_t>(p);
    }
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
            int64_t j = 0;
            Vec tops = broadcast(NEG_INF), sums{};
            for (; j + W <= v.k_len; j += W) tops = maximum(tops, load(s + j));
            float most = maximum(tops), total = 0.0f;
            for (; j < v.k_len; ++j) most = s[j] > most ? s[j] : most;
            j = 0;
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
        Scratch scratch(static_cast<size_t>(t.columns) * 4);
        uint32_t *keys = scratch.take<uint32_t>(t.columns);
        for (int64_t j = 0; j < t.columns; ++j) keys[j] = ordered_bits(values[j]);
        int64_t equals = t.k;
        const uint32_t last = kth_largest(keys, t.columns, equals);
        int32_t *out = t.indices + row * t.k;
        for (int64_t j = 0, n = 0; n < t.k; ++j) {
            const uint32_t bits = ordered_bits(values[j]);
            out[n] = static_cast<int32_t>(j);
            const bool equal = bits == last && equals > 0;
            equals -= equal;
            n += bits > last || equal;
        }
    }
}

}  // namespace gossamer::GOSSAMER_ISA
