// TokenSelect's scoring: one pass over the keys for all query heads that share them,
// softmax votes summed over heads, and the positions of the largest votes.
#include "../native/amx.hpp"
#include "../native/expand.hpp"
#include "../native/stream.hpp"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace gossamer::GOSSAMER_ISA {
namespace {

// Dots of whole groups of W keys with some queries [heads, dim], as far as a faster way does them;
// returns how many keys it did.
template <class T>
int64_t dot_groups(const float *, int64_t, int64_t, const T *, int64_t, int64_t, float *, int64_t) {
    return 0;
}

#if defined(__AMX_BF16__)
constexpr int64_t SHARES = 3;        // a float32 is the sum of three bfloat16
constexpr int64_t TILE_AHEAD = 256;  // keys between a prefetch and its use

// A tile has the shares of up to five queries for columns, so that products are as of float32.
template <>
int64_t dot_groups(const float *query, int64_t heads, int64_t dim, const uint16_t *key,
                   int64_t stride, int64_t count, float *out, int64_t out_stride) {
    if (heads * SHARES > 16 || dim % 32 != 0 || dim > 128) return 0;
    alignas(64) uint16_t columns[4][16][16][2] = {};  // [d / 32][pair][column]
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t d = 0; d < dim; ++d) {
            float rest = query[h * dim + d];
            for (int64_t share = 0; share < SHARES; ++share) {
                const uint16_t part = narrow(rest);
                columns[d / 32][d % 32 / 2][h * SHARES + share][d % 2] = part;
                rest -= scalar(part);
            }
        }
    static const TileShape shape;
    _tile_loadconfig(&shape);
    _tile_loadd(4, columns[0], 64);
    _tile_loadd(5, columns[1], 64);
    _tile_loadd(6, columns[2], 64);
    _tile_loadd(7, columns[3], 64);
    const size_t row = static_cast<size_t>(stride) * sizeof(uint16_t);
    alignas(64) float products[16][16];
    int64_t done = 0;
    for (; done + 16 <= count; done += 16, key += 16 * stride) {
        for (int64_t k = 0; k < 16; ++k) prefetch_row(key + (TILE_AHEAD + k) * stride, dim);
        _tile_zero(0);
        _tile_loadd(1, key, row);
        _tile_dpbf16ps(0, 1, 4);
        if (dim > 32) {
            _tile_loadd(2, key + 32, row);
            _tile_dpbf16ps(0, 2, 5);
        }
        if (dim > 64) {
            _tile_loadd(3, key + 64, row);
            _tile_dpbf16ps(0, 3, 6);
        }
        if (dim > 96) {
            _tile_loadd(1, key + 96, row);
            _tile_dpbf16ps(0, 1, 7);
        }
        _tile_stored(0, products, 64);
        Vec keys[W];
        for (int k = 0; k < W; ++k) keys[k] = load(products[k]);
        transpose(keys);
#pragma GCC unroll 5
        for (int64_t h = 0; h < 5; ++h)
            if (h < heads)
                store(out + h * out_stride + done,
                      keys[h * SHARES] + keys[h * SHARES + 1] + keys[h * SHARES + 2]);
    }
    _tile_release();
    return done;
}
#endif

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
        const int64_t done = dot_groups(query, heads, p.dim, key + begin * p.key.token, p.key.token,
                                        end - begin, out + begin, p.k_len);
        const Run<T> keys{key, p.key.token};
        for (int64_t j = begin + done; j < end; j += W)
            dot_keys(query, heads, p.dim, keys.from(j), min64(W, end - j), out + j, p.k_len);
    }
}

// Bits that order as the scores do, not NaN; -0 ties with +0.
GOSSAMER_INLINE uint32_t ordered_bits(float score) {
    const float whole = score + 0.0f;
    uint32_t bits;
    memcpy(&bits, &whole, 4);
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

// Moves the keys that have `digit` at `shift` to the front; returns how many there are.
static int64_t keep_digit(uint32_t *keys, int64_t n, int shift, uint32_t digit) {
    int64_t kept = 0, i = 0;
#if defined(__AVX512F__)
    const auto field = static_cast<int32_t>(2047u << shift);
    const IntVec wanted = IntVec{} + static_cast<int32_t>(digit << shift);
    for (; i + W <= n; i += W) {  // what is written lies behind what was read
        IntVec some;
        memcpy(&some, keys + i, sizeof some);
        const __mmask16 mask = _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(some & field),
                                                       reinterpret_cast<__m512i>(wanted));
        some = compress(mask, some);
        memcpy(keys + kept, &some, sizeof some);
        kept += __builtin_popcount(mask);
    }
#endif
    for (; i < n; ++i) {
        keys[kept] = keys[i];
        kept += ((keys[i] >> shift) & 2047) == digit;
    }
    return kept;
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
        n = keep_digit(keys, n, shift, digit);
    }
    return keys[0];
}

// Positions, ascending, of the values above `last` and of the first `equals` that equal it.
static void positions(const float *values, [[maybe_unused]] int64_t columns, uint32_t last,
                      int64_t equals, int64_t k, int32_t *out) {
    int64_t n = 0, j = 0;
#if defined(__AVX512F__)
    const auto bar = reinterpret_cast<__m512i>(IntVec{} + static_cast<int32_t>(last));
    IntVec place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (; j + W <= columns; j += W, place += W) {
        const auto raw = reinterpret_cast<IntVec>(load(values + j) + 0.0f);
        const auto bits = reinterpret_cast<__m512i>(raw ^ ((raw >> 31) | INT32_MIN));
        uint32_t mask = _mm512_cmpgt_epu32_mask(bits, bar);
        uint32_t same = _mm512_cmpeq_epi32_mask(bits, bar);
        for (; same != 0 && equals > 0; same &= same - 1, --equals) mask |= same & -same;
        n += compress(mask, place, out + n);
    }
#endif
    for (; n < k; ++j) {
        const uint32_t bits = ordered_bits(values[j]);
        out[n] = static_cast<int32_t>(j);
        const bool equal = bits == last && equals > 0;
        equals -= equal;
        n += bits > last || equal;
    }
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
        positions(values, t.columns, last, equals, t.k, t.indices + row * t.k);
    }
}

}  // namespace gossamer::GOSSAMER_ISA
