// Online softmax over a tile of query rows: masks, running maxima, final division.
// Scores are raw query-key products; `scale` is applied inside the exponent.
#pragma once
#include "params.hpp"
#include "simd.hpp"

extern "C" float logf(float);

namespace gossamer::GOSSAMER_ISA {

constexpr int TILE_ROWS = 64;  // query rows that go through the registers together
constexpr int CHUNK = 256;     // keys between two rescalings of the accumulator

// Rows of one (batch, head) in flight. acc is [rows, acc_stride].
struct Tile {
    int rows;
    int64_t position;  // absolute position of row 0
    int64_t acc_stride;
    float *max, *sum, *acc;
};

// Elements between rows of a tile of `columns`: whole cache lines, so that no vector or tile row
// straddles two, and an odd number of them, so that rows do not fall into the same cache sets.
constexpr int64_t row_stride(int64_t columns, int64_t bytes) {
    return ((columns * bytes + 63) / 64 | 1) * 64 / bytes;
}

GOSSAMER_INLINE void fill(float *p, int64_t begin, int64_t end, float value) {
    for (int64_t i = begin; i < end; ++i) p[i] = value;
}

// Hide the keys first .. first + count - 1 that a row may not see; columns past count are padding.
GOSSAMER_INLINE void mask_range(const AttentionArgs &a, float *scores, int64_t stride,
                                const Tile &tile, int64_t first, int64_t count, int64_t padded,
                                int64_t start) {
    const int64_t last_row = tile.position + tile.rows - 1, sink_end = start + a.sink;
    const bool future = a.causal && first + count - 1 > tile.position;
    const bool windowed = a.local > 0 && first + count > sink_end && first <= last_row - a.local;
    if (!future && !windowed && first >= start && count == padded) return;
    for (int r = 0; r < tile.rows; ++r) {
        float *row = scores + r * stride;
        const int64_t position = tile.position + r;
        int64_t visible = count;
        if (a.causal) visible = max64(0, min64(count, position + 1 - first));
        fill(row, visible, padded, NEG_INF);
        fill(row, 0, min64(visible, start - first), NEG_INF);
        if (a.local > 0)
            fill(row, max64(0, sink_end - first), min64(visible, position - a.local + 1 - first),
                 NEG_INF);
    }
}

// The same for an ascending list of key ids.
GOSSAMER_INLINE void mask_list(const AttentionArgs &a, float *scores, int64_t stride,
                               const Tile &tile, const int32_t *ids, int64_t count, int64_t padded,
                               int64_t start) {
    const bool future = a.causal && count > 0 && ids[count - 1] > tile.position;
    const bool before = count > 0 && ids[0] < start;
    if (!future && !before && count == padded) return;
    int64_t visible = future ? 0 : count, hidden = 0;
    while (hidden < count && ids[hidden] < start) ++hidden;
    for (int r = 0; r < tile.rows; ++r) {
        float *row = scores + r * stride;
        while (visible < count && ids[visible] <= tile.position + r) ++visible;
        fill(row, visible, padded, NEG_INF);
        fill(row, 0, hidden, NEG_INF);
    }
}

// Turn scores into unnormalised probabilities (written as P), fold them into the running
// maximum and sum, and rescale the accumulator rows whose maximum grew.
template <class P>
GOSSAMER_INLINE void softmax_rows(const Tile &tile, float *scores, int64_t stride, int64_t columns,
                                  float scale, P *probabilities, int64_t p_stride) {
    const float c = scale * LOG2E;
    for (int r = 0; r < tile.rows; ++r) {
        const float *row = scores + r * stride;
        P *out = probabilities + r * p_stride;
        Vec m0 = load(row), m1 = m0;
        int64_t j = 0;
        for (; j + 2 * W <= columns; j += 2 * W) {
            m0 = maximum(m0, load(row + j));
            m1 = maximum(m1, load(row + j + W));
        }
        for (; j < columns; j += W) m0 = maximum(m0, load(row + j));
        const float old = tile.max[r];
        float top = maximum(maximum(m0, m1));
        if (old > top) top = old;
        if (top == NEG_INF) {  // nothing visible yet, or NaN, which maximum may drop
            Vec nan{};
            for (j = 0; j < columns; j += W) {
                const Vec x = load(row + j);
                nan = x == x ? nan : x;
            }
            const float any = sum(nan);
            if (any == 0.0f) {
                for (j = 0; j < columns; j += W) store(out + j, Vec{});
                continue;
            }
            top = any;
        }
        const Vec vc = broadcast(c), shift = broadcast(top * c);
        Vec s0{}, s1{};
        for (j = 0; j + 2 * W <= columns; j += 2 * W) {
            Vec p0 = exp2_nonpositive(load(row + j) * vc - shift);
            Vec p1 = exp2_nonpositive(load(row + j + W) * vc - shift);
            store(out + j, p0);
            store(out + j + W, p1);
            s0 += p0;
            s1 += p1;
        }
        for (; j < columns; j += W) {
            Vec p0 = exp2_nonpositive(load(row + j) * vc - shift);
            store(out + j, p0);
            s0 += p0;
        }
        const float added = sum(s0 + s1);
        if (top == old) {
            tile.sum[r] += added;
            continue;
        }
        const float shrink =
            old == NEG_INF ? 0.0f : exp2_nonpositive(broadcast((old - top) * c))[0];
        tile.max[r] = top;
        tile.sum[r] = tile.sum[r] * shrink + added;
        float *acc = tile.acc + r * tile.acc_stride;
        for (j = 0; j < tile.acc_stride; j += W) store(acc + j, load(acc + j) * shrink);
    }
}

// Where row `token` of (batch, head) lives in [B, H, Nq] arrays.
GOSSAMER_INLINE int64_t flat_row(const AttentionArgs &a, int64_t b, int64_t h, int64_t token) {
    return (b * a.heads + h) * a.q_len + token;
}

GOSSAMER_INLINE void begin_rows(const AttentionArgs &a, const Tile &tile, int64_t b, int64_t h,
                                int64_t token) {
    for (int r = 0; r < tile.rows; ++r) {
        float *acc = tile.acc + r * tile.acc_stride;
        if (a.state_in.max == nullptr) {
            tile.max[r] = NEG_INF;
            tile.sum[r] = 0.0f;
            memset(acc, 0, sizeof(float) * static_cast<size_t>(tile.acc_stride));
            continue;
        }
        const int64_t row = flat_row(a, b, h, token + r);
        tile.max[r] = a.state_in.max[row] / a.scale;
        tile.sum[r] = a.state_in.sum[row];
        memcpy(acc, a.state_in.acc + row * a.dim, sizeof(float) * static_cast<size_t>(a.dim));
        fill(acc, a.dim, tile.acc_stride, 0.0f);
    }
}

template <class T>
GOSSAMER_INLINE void finish_rows(const AttentionArgs &a, const Tile &tile, int64_t b, int64_t h,
                                 int64_t token) {
    for (int r = 0; r < tile.rows; ++r) {
        const float *acc = tile.acc + r * tile.acc_stride;
        const int64_t row = flat_row(a, b, h, token + r);
        const float total = tile.sum[r];
        if (a.state_out.max != nullptr) {
            a.state_out.max[row] = tile.max[r] * a.scale;
            a.state_out.sum[row] = total;
            memcpy(a.state_out.acc + row * a.dim, acc, sizeof(float) * static_cast<size_t>(a.dim));
        }
        if (a.lse != nullptr)
            a.lse[row] = total == 0.0f ? NEG_INF : tile.max[r] * a.scale + logf(total);
        if (a.out.data == nullptr) continue;
        T *out = static_cast<T *>(a.out.data) + b * a.out.batch + h * a.out.head +
                 (token + r) * a.out.token;
        const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
        int64_t d = 0;
        for (; d + W <= a.dim; d += W) store(out + d, load(acc + d) * inverse);
        for (; d < a.dim; ++d) put(out + d, acc[d] * inverse);
    }
}

GOSSAMER_INLINE int64_t first_key(const AttentionArgs &a, int64_t b) {
    return a.key_start == nullptr ? 0 : a.key_start[b];
}

}  // namespace gossamer::GOSSAMER_ISA
