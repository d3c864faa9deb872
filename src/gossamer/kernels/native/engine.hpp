// The two products of attention over packed key panels.
// FloatEngine: float32 arithmetic, any input type, every instruction set.
// TileEngine (amx.hpp): bfloat16 operands on AMX tiles, float32 accumulation.
//
// An engine packs `count` key and value rows into a panel of `padded(count)` columns and then
//   scores(q, panel)         -> raw products [rows, padded]
//   accumulate(p, panels)    -> tile.acc += p @ values
#pragma once
#include "softmax.hpp"

namespace gossamer::GOSSAMER_ISA {

// Operands that meet one after the other in the same sums: part i is [depth[i], columns].
struct Parts {
    const float *const *operand;
    const int64_t *depth;
    int64_t count, a_step;  // part i starts at column i * a_step of a
};

// c[M, N*W] (+)= a[M, :] @ parts; the inner loop of both products.
template <int M, int N, bool Accumulate>
GOSSAMER_INLINE void multiply_tile(const float *a, int64_t a_stride, const Parts &parts, int64_t at,
                                   int64_t b_stride, float *c, int64_t c_stride) {
    Vec sums[M][N];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j)
            sums[i][j] = Accumulate ? load(c + i * c_stride + j * W) : Vec{};
    for (int64_t part = 0; part < parts.count; ++part) {
        const float *b = parts.operand[part] + at, *x = a + part * parts.a_step;
        for (int64_t t = parts.depth[part]; t > 0; --t, b += b_stride, ++x) {
            Vec columns[N];
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) columns[j] = load(b + j * W);
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i) {
                const Vec scalar_x = broadcast(x[i * a_stride]);
#pragma GCC unroll 4
                for (int j = 0; j < N; ++j) sums[i][j] += scalar_x * columns[j];
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) store(c + i * c_stride + j * W, sums[i][j]);
}

template <int N, bool Accumulate>
static void multiply_columns(int64_t rows, const float *a, int64_t a_stride, const Parts &parts,
                             int64_t at, int64_t b_stride, float *c, int64_t c_stride) {
    for (; rows >= MAX_ROWS; rows -= MAX_ROWS) {
        multiply_tile<MAX_ROWS, N, Accumulate>(a, a_stride, parts, at, b_stride, c, c_stride);
        a += MAX_ROWS * a_stride;
        c += MAX_ROWS * c_stride;
    }
    switch (rows) {
        case 5:
            multiply_tile<5, N, Accumulate>(a, a_stride, parts, at, b_stride, c, c_stride);
            break;
        case 4:
            multiply_tile<4, N, Accumulate>(a, a_stride, parts, at, b_stride, c, c_stride);
            break;
        case 3:
            multiply_tile<3, N, Accumulate>(a, a_stride, parts, at, b_stride, c, c_stride);
            break;
        case 2:
            multiply_tile<2, N, Accumulate>(a, a_stride, parts, at, b_stride, c, c_stride);
            break;
        case 1:
            multiply_tile<1, N, Accumulate>(a, a_stride, parts, at, b_stride, c, c_stride);
            break;
        default:
            break;
    }
}

// c[rows, columns] (+)= a @ parts; columns is a multiple of W.
template <bool Accumulate>
static void multiply(int64_t rows, int64_t columns, const float *a, int64_t a_stride,
                     const Parts &parts, int64_t b_stride, float *c, int64_t c_stride) {
    int64_t j = 0;
    for (; j + MAX_COLUMNS * W <= columns; j += MAX_COLUMNS * W)
        multiply_columns<MAX_COLUMNS, Accumulate>(rows, a, a_stride, parts, j, b_stride, c + j,
                                                  c_stride);
    for (; j < columns; j += W)
        multiply_columns<1, Accumulate>(rows, a, a_stride, parts, j, b_stride, c + j, c_stride);
}

// c[rows, columns] = a[rows, depth] @ b[depth, columns].
static void multiply(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t a_stride,
                     const float *b, int64_t b_stride, float *c, int64_t c_stride) {
    multiply<false>(rows, columns, a, a_stride, Parts{&b, &depth, 1, 0}, b_stride, c, c_stride);
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

// Rotary embedding of one row; pairs are (d, d + half).
template <class T, class Out>
GOSSAMER_INLINE void rotate_pairs(const T *row, const float *cosine, const float *sine,
                                  int64_t half, Out *out) {
    int64_t d = 0;
    for (; d + W <= half; d += W) {
        const Vec x = load(row + d), y = load(row + half + d);
        const Vec c = load(cosine + d), s = load(sine + d);
        store(out + d, x * c - y * s);
        store(out + half + d, y * c + x * s);
    }
    for (; d < half; ++d) {
        const float x = scalar(row[d]), y = scalar(row[half + d]);
        put(out + d, x * cosine[d] - y * sine[d]);
        put(out + half + d, y * cosine[d] + x * sine[d]);
    }
}

// The key row at `rank` of its list.
template <class T>
GOSSAMER_INLINE void rotate_row(const AttentionArgs &a, const T *row, int64_t rank, float *out) {
    const int64_t half = a.dim / 2;
    rotate_pairs(row, a.cosine + rank * half, a.sine + rank * half, half, out);
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
    using Cell = float;         // element of a packed panel
    using Probability = float;  // softmax output the second product reads

    const AttentionArgs &args;
    int64_t width;         // floats a packed value row, and an accumulator row
    bool in_place;         // read value rows where they are: they need no packing
    int64_t value_stride;  // floats between value rows

    explicit FloatEngine(const AttentionArgs &a, bool runs = false)
        : args(a),
          width(round_up(a.dim, W)),
          in_place(runs && sizeof(T) == sizeof(float) && width == a.dim),
          value_stride(in_place ? a.value.token : width) {}

    static int64_t padded(int64_t count) { return round_up(count, 16); }
    int64_t key_cells(int64_t columns) const { return columns * args.dim; }
    int64_t value_cells(int64_t columns) const { return in_place ? 0 : columns * width; }
    int64_t query_cells(int64_t rows) const { return rows * args.dim; }
    int64_t acc_stride() const { return width; }

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

    // out is [columns, width]; rows past count are never read back.
    void pack_values(const Rows<T> &rows, int64_t count, int64_t, float *out) const {
        if (in_place) return;
        for (int64_t j = 0; j < count; ++j) {
            const T *row = rows.value_row(j);
            float *to = out + j * width;
            int64_t d = 0;
            for (; d + W <= args.dim; d += W) store(to + d, load(row + d));
            for (; d < width; ++d) to[d] = d < args.dim ? scalar(row[d]) : 0.0f;
        }
    }

    // Where a run of value rows can be read: packed, or in place.
    const float *value_panel(const Rows<T> &rows, const float *packed) const {
        return in_place ? reinterpret_cast<const float *>(rows.value_row(0)) : packed;
    }

    void scores(const float *query, int64_t rows, const float *keys, int64_t columns, float *out,
                int64_t stride) const {
        multiply(rows, columns, args.dim, query, args.dim, keys, columns, out, stride);
    }

    // Panel i holds `counts[i]` value rows and meets columns i * columns ... of p.
    void accumulate(const Tile &tile, const float *p, int64_t p_stride, const float *const *values,
                    const int64_t *counts, int64_t panels, int64_t columns) const {
        multiply<true>(tile.rows, width, p, p_stride, Parts{values, counts, panels, columns},
                       value_stride, tile.acc, tile.acc_stride);
    }
};

}  // namespace gossamer::GOSSAMER_ISA
