// The engine for bfloat16 on AMX: operands in tiles of 16 rows by 64 bytes, sums in float32.
#pragma once
#if defined(__AMX_BF16__)
#include <immintrin.h>

#include "engine.hpp"

namespace gossamer::GOSSAMER_ISA {

struct alignas(64) TileShape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct TileEngine {
    using Input = uint16_t;
    using Cell = uint16_t;
    using Probability = uint16_t;

    const AttentionArgs &args;
    int64_t dim;  // padded to whole tiles

    explicit TileEngine(const AttentionArgs &a, bool = false) : args(a), dim(round_up(a.dim, 32)) {
        static const TileShape shape;
        _tile_loadconfig(&shape);
    }
    ~TileEngine() { _tile_release(); }

    static int64_t padded(int64_t count) { return round_up(count, 32); }
    int64_t key_cells(int64_t columns) const { return columns * dim; }
    int64_t value_cells(int64_t columns) const { return columns * dim; }
    int64_t query_cells(int64_t rows) const { return round_up(rows, 32) * dim; }
    int64_t acc_stride() const { return dim; }

    void pack_query(const uint16_t *query, int64_t rows, uint16_t *out) const {
        const size_t row_bytes = sizeof(uint16_t) * static_cast<size_t>(args.dim);
        memset(out, 0, sizeof(uint16_t) * static_cast<size_t>(query_cells(rows)));
        for (int64_t r = 0; r < rows; ++r)
            memcpy(out + r * dim, query + r * args.query.token, row_bytes);
    }

    // Keys in tiles [column / 16][d / 32] of 16 pairs (d, d + 1) by 16 keys.
    void pack_keys(const Rows<uint16_t> &rows, int64_t count, int64_t columns, uint16_t *out,
                   float *spare) const {
        uint16_t *row_copy = reinterpret_cast<uint16_t *>(spare + 16 * args.dim);
        for (int64_t j = 0; j < columns; j += 16) {
            const uint16_t *source[16];
            for (int i = 0; i < 16; ++i) {
                const int64_t at = min64(j + i, count - 1);
                source[i] = rows.key_row(at);
                if (args.cosine == nullptr && dim == args.dim) continue;
                uint16_t *copy = row_copy + i * dim;
                memset(copy, 0, sizeof(uint16_t) * static_cast<size_t>(dim));
                if (args.cosine == nullptr) {
                    memcpy(copy, source[i], sizeof(uint16_t) * static_cast<size_t>(args.dim));
                } else {
                    rotate_row(args, source[i], rows.first + at, spare);
                    for (int64_t d = 0; d < args.dim; ++d) copy[d] = narrow(spare[d]);
                }
                source[i] = copy;
            }
            for (int64_t d = 0; d < dim; d += 32) {
                Vec pairs[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i)
                    pairs[i] = load(reinterpret_cast<const float *>(source[i] + d));
                transpose(pairs);
                float *tile = reinterpret_cast<float *>(out + (j / 16 * (dim / 32) + d / 32) * 512);
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) store(tile + i * 16, pairs[i]);
            }
        }
    }

    // Values in tiles [key / 32][d / 16] of 16 key pairs by 16 dims.
    void pack_values(const Rows<uint16_t> &rows, int64_t count, int64_t columns,
                     uint16_t *out) const {
        const size_t row_bytes = sizeof(uint16_t) * static_cast<size_t>(args.dim);
        alignas(64) uint16_t copies[2][1024] = {};  // rows that need padding, or are missing
        for (int64_t j = 0; j < columns; j += 2) {
            const uint16_t *pair[2];
            for (int i = 0; i < 2; ++i) {
                pair[i] = j + i < count ? rows.value_row(j + i) : nullptr;
                if (pair[i] != nullptr && dim == args.dim) continue;
                memset(copies[i], 0, row_bytes);
                if (pair[i] != nullptr) memcpy(copies[i], pair[i], row_bytes);
                pair[i] = copies[i];
            }
            uint16_t *tile = out + j / 32 * (dim / 16) * 512 + j % 32 * 16;
            for (int64_t d = 0; d < dim; d += 16, tile += 512) {
                const IntVec even = __builtin_convertvector(
                    *reinterpret_cast<const HalfVec *>(pair[0] + d), IntVec);
                const IntVec odd = __builtin_convertvector(
                    *reinterpret_cast<const HalfVec *>(pair[1] + d), IntVec);
                store(reinterpret_cast<float *>(tile), reinterpret_cast<Vec>(even | (odd << 16)));
            }
        }
    }

    const uint16_t *value_panel(const Rows<uint16_t> &, const uint16_t *packed) const {
        return packed;
    }

    void scores(const uint16_t *query, int64_t rows, const uint16_t *keys, int64_t columns,
                float *out, int64_t stride) const {
        const int64_t depth = dim / 32;
        for (int64_t r = 0; r < rows; r += 32)
            for (int64_t j = 0; j < columns; j += 32) {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
                for (int64_t t = 0; t < depth; ++t) {
                    const uint16_t *a = query + r * dim + t * 32;
                    const uint16_t *b = keys + (j / 16 * depth + t) * 512;
                    _tile_loadd(4, a, static_cast<size_t>(dim) * 2);
                    _tile_loadd(6, b, 64);
                    _tile_loadd(7, b + depth * 512, 64);
                    _tile_loadd(5, a + 16 * dim, static_cast<size_t>(dim) * 2);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                float *c = out + r * stride + j;
                _tile_stored(0, c, static_cast<size_t>(stride) * 4);
                _tile_stored(1, c + 16, static_cast<size_t>(stride) * 4);
                _tile_stored(2, c + 16 * stride, static_cast<size_t>(stride) * 4);
                _tile_stored(3, c + 16 * stride + 16, static_cast<size_t>(stride) * 4);
            }
    }

    void accumulate(const Tile &tile, const uint16_t *p, int64_t p_stride,
                    const uint16_t *const *values, const int64_t *, int64_t panels,
                    int64_t columns) const {
        const size_t acc_bytes = static_cast<size_t>(tile.acc_stride) * 4;
        const size_t p_bytes = static_cast<size_t>(p_stride) * 2;
        for (int64_t r = 0; r < tile.rows; r += 32)
            for (int64_t d = 0; d < dim; d += 32) {
                float *c = tile.acc + r * tile.acc_stride + d;
                _tile_loadd(0, c, acc_bytes);
                _tile_loadd(1, c + 16, acc_bytes);
                _tile_loadd(2, c + 16 * tile.acc_stride, acc_bytes);
                _tile_loadd(3, c + 16 * tile.acc_stride + 16, acc_bytes);
                for (int64_t j = 0; j < panels * columns; j += 32) {
                    const uint16_t *a = p + r * p_stride + j;
                    const uint16_t *b =
                        values[j / columns] + (j % columns / 32 * (dim / 16) + d / 16) * 512;
                    _tile_loadd(4, a, p_bytes);
                    _tile_loadd(6, b, 64);
                    _tile_loadd(7, b + 512, 64);
                    _tile_loadd(5, a + 16 * p_stride, p_bytes);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, c, acc_bytes);
                _tile_stored(1, c + 16, acc_bytes);
                _tile_stored(2, c + 16 * tile.acc_stride, acc_bytes);
                _tile_stored(3, c + 16 * tile.acc_stride + 16, acc_bytes);
            }
    }
};

}  // namespace gossamer::GOSSAMER_ISA
#endif
