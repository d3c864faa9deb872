// The two products of attention over packed key panels.
// FloatEngine: float32 arithmetic, any input type, every instruction set.
// TileEngine (amx.hpp): bfloat16 operands on AMX tiles, float32 accumulation.
//
// An engine packs `count` key and value rows into a panel of `padded(count)` columns and then
//   scores(q, panel)         -> raw products [rows, padded]
//   accumulate(p, panel)     -> tile.acc += p @ values
#pragma once
#include "softmax.hpp"

namespace gossamer::GOSSAMER_ISA {

// c[M, N*W] (+)= a[M, k] @ b[k, N*W]; the inner loop of both products.
template <int M, int N, bool Accumulate>
GOSSAMER_INLINE void multiply_tile(int64_t k, const float *a, int64_t a_stride, const float *b,
                                   int64_t b_stride, float *c, int64_t c_stride) {
    Vec sums[M][N];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j)
            sums[i][j] = Accumulate ? load(c + i * c_stride + j * W) : Vec{};
    for (int64_t t = 0; t < k; ++t) {
        Vec columns[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) columns[j] = load(b + t * b_stride + j * W);
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) {
            const Vec x = broadcast(a[i * a_stride + t]);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) sums[i][j] += x * columns[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) store(c + i * c_stride + j * W, sums[i][j]);
}

template <int N, bool Accumulate>
static void multiply_columns(int64_t rows, int64_t k, const float *a, int64_t a_stride,
                             const float *b, int64_t b_stride, float *c, int64_t c_stride) {
    int64_t i = 0;
    for (; i + MAX_ROWS <= rows; i += MAX_ROWS)
        multiply_tile<MAX_ROWS, N, Accumulate>(k, a + i * a_stride, a_stride, b, b_stride,
                                               c + i * c_stride, c_stride);
    a += i * a_stride;
    c += i * c_stride;
    switch (rows - i) {
        case 5: multiply_tile<5, N, Accumulate>(k, a, a_stride, b, b_stride, c, c_stride); break;
        case 4: multiply_tile<4, N, Accumulate>(k, a, a_stride, b, b_stride, c, c_stride); break;
        case 3: multiply_tile<3, N, Accumulate>(k, a, a_stride, b, b_stride, c, c_stride); break;
        case 2: multiply_tile<2, N, Accumulate>(k, a, a_stride, b, b_stride, c, c_stride); break;
        case 1: multiply_tile<1, N, Accumulate>(k, a, a_stride, b, b_stride, c, c_stride); break;
        default: break;
    }
}

// columns is a multiple of W.
template <bool Accumulate>
static void multiply(int64_t rows, int64_t columns, int64_t k, const float *a, int64_t a_stride,
                     const float *b, int64_t b_stride, float *c, int64_t c_stride) {
    int64_t j = 0;
    for (; j + MAX_COLUMNS * W <= columns; j += MAX_COLUMNS * W)
        multiply_columns<MAX_COLUMNS, Accumulate>(rows, k, a, a_stride, b + j, b_stride, c + j,
                                                  c_stride);
    for (; j < columns; j += W)
        multiply_columns<1, Accumulate>(rows, k, a, a_stride, b + j, b_stride, c + j, c_stride);
}

// out[d * stride + i] = rows[i][d] for W rows.
template <class T>
GOSSAMER_INLINE void transpose_rows(const T *const (&rows)[W], int64_t dim, float *out,
                                    int64_t stride) {
    int64_t d = 0;
    for (; d + W <= dim; d += W) {
        Vec block[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) block[i] = load(rows[i] + d);
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(out + (d + i) * stride, block[i]);
    }
    for (; d < dim; ++d)
        for (int i = 0; i < W; ++i) out[d * stride + i] = scalar(rows[i][d]);
}

// Rotary embedding of one key row at `rank`; pairs are (d, d + dim / 2).
template <class T>
GOSSAMER_INLINE void rotate_row(const AttentionArgs &a, const T *row, int64_t rank, float *out) {
    const int64_t half = a.dim / 2;
    const float *cosine = a.cosine + rank * half, *sine = a.sine + rank * half;
    int64_t d = 0;
    for (; d + W <= half; d += W) {
        const Vec x = load(row + d), y = load(row + half + d);
        const Vec c = load(cosine + d), s = load(sine + d);
        store(out + d, x * c - y * s);
        store(out + half + d, y * c + x * s);
    }
    for (; d < half; ++d) {
        const float x = scalar(row[d]), y = scalar(row[half + d]);
        out[d] = x * cosine[d] - y * sine[d];
        out[half + d] = y * cosine[d] + x * sine[d];
    }
}

// Rows of one key/value head, named by position in a list or by a run of tokens.
template <class T>
struct Rows {
    const AttentionArgs &args;
    const T *key, *value;
    const int32_t *ids;  // nullptr: the run first, first + 1, ...
    int64_t first;       // first token of the run, or first rank in the list

    GOSSAMER_INLINE Rows head(const AttentionArgs &a, int64_t b, int64_t kv_head) {
        return {a, static_cast<const T *>(a.key.data) + b * a.key.batch + kv_head * a.key.head,
                static_cast<const T *>(a.value.data) + b * a.value.batch + kv_head * a.value.head,
                nullptr, 0};
    }
    Rows run(int64_t token) const { return {args, key, value, nullptr, token}; }
    Rows list(const int32_t *list_ids, int64_t rank) const {
        return {args, key, value, list_ids + rank, rank};
    }
    int64_t token(int64_t i) const { return ids == nullptr ? first + i : ids[i]; }
    const T *key_row(int64_t i) const { return key + token(i) * args.key.token; }
    const T *value_row(int64_t i) const { return value + token(i) * args.value.token; }
};

template <class T>
struct FloatEngine {
    using Input = T;
    using Cell = float;          // element of a packed panel
    using Probability = float;   // softmax output the second product reads

    const AttentionArgs &args;
    int64_t value_stride;        // floats a packed value row

    explicit FloatEngine(const AttentionArgs &a) : args(a), value_stride(round_up(a.dim, W)) {}

    static int64_t padded(int64_t count) { return round_up(count, 16); }
    int64_t key_cells(int64_t columns) const { return columns * args.dim; }
    int64_t value_cells(int64_t columns) const { return columns * value_stride; }
    int64_t query_cells(int64_t rows) const { return rows * args.dim; }
    int64_t acc_stride() const { return value_stride; }

    void pack_query(const T *query, int64_t rows, float *out) const {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t d = 0; d < args.dim; ++d)
                out[r * args.dim + d] = scalar(query[r * args.query.token + d]);
    }

    // out is [dim, columns].
    void pack_keys(const Rows<T> &rows, int64_t count, int64_t columns, float *out,
                   float *spare) const {
        const bool rotated = args.cosine != nullptr;
        for (int64_t j = 0; j < columns; j += W) {
            if (j >= count) {
                for (int64_t d = 0; d < args.dim; ++d) store(out + d * columns + j, Vec{});
                continue;
            }
            if (rotated) {
                const float *source[W];
                for (int i = 0; i < W; ++i) {
                    float *row = spare + i * args.dim;
                    source[i] = row;
                    rotate_row(args, rows.key_row(min64(j + i, count - 1)),
                               rows.first + min64(j + i, count - 1), row);
                }
                transpose_rows(source, args.dim, out + j, columns);
            } else {
                const T *source[W];
                for (int i = 0; i < W; ++i) source[i] = rows.key_row(min64(j + i, count - 1));
                transpose_rows(source, args.dim, out + j, columns);
            }
        }
    }

    // out is [columns, value_stride]; rows past count are never read back.
    void pack_values(const Rows<T> &rows, int64_t count, int64_t, float *out) const {
        for (int64_t j = 0; j < count; ++j) {
            const T *row = rows.value_row(j);
            float *to = out + j * value_stride;
            int64_t d = 0;
            for (; d + W <= args.dim; d += W) store(to + d, load(row + d));
            for (; d < value_stride; ++d) to[d] = d < args.dim ? scalar(row[d]) : 0.0f;
        }
    }

    void scores(const float *query, int64_t rows, const float *keys, int64_t columns, float *out,
                int64_t stride) const {
        multiply<false>(rows, columns, args.dim, query, args.dim, keys, columns, out, stride);
    }

    void accumulate(const Tile &tile, const float *p, int64_t p_stride, const float *values,
                    int64_t count, int64_t) const {
        multiply<true>(tile.rows, value_stride, count, p, p_stride, values, value_stride, tile.acc,
                       tile.acc_stride);
    }
};

}  // namespace gossamer::GOSSAMER_ISA
