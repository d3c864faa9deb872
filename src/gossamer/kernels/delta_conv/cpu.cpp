// A layer of a streamed network in one pass: find the positions that read a change, bring their
// sums up to date from what changed or, where that is much, afresh; add, clamp and quantise them,
// and note where the held values moved and by how much.
#include "../native/engine.hpp"
#include "../native/expand.hpp"
#include "../native/params.hpp"
#include "../native/simd.hpp"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t BLOCK = 64;  // most positions that are gathered, multiplied, quantised together
constexpr int WIDE = 4;        // vectors of a depthwise sum under way at a time

// To the nearest integer, ties to even; beyond 2^23 every float is one.
GOSSAMER_INLINE Vec round_even(Vec x) {
    const IntVec sign = reinterpret_cast<IntVec>(x) & static_cast<int32_t>(0x80000000u);
    const Vec size = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(x) & 0x7fffffff);
    const Vec magic = reinterpret_cast<Vec>(sign | reinterpret_cast<IntVec>(broadcast(8388608.0f)));
    return size < broadcast(8388608.0f) ? (x + magic) - magic : x;
}

// Sums of the features f, f + 1, ... of a position to held values; returns lanes that moved.
GOSSAMER_INLINE IntVec finish(const DeltaConvArgs &a, int64_t position, int64_t f, Vec v) {
    const int64_t at = position * a.features + f;
    v += load(a.bias + f);
    if (a.addend != nullptr) v += load(a.addend + at);
    const Vec low = broadcast(a.low), high = broadcast(a.high), step = load(a.step + f);
    v = v < low ? low : v;  // NaN passes
    v = v > high ? high : v;
    v = round_even(v / step) * step;
    const Vec change = v - load(a.output + at);
    store(a.output + at, v);
    store(a.output_change + at, change);
    return change != Vec{};
}

GOSSAMER_INLINE bool any(IntVec lanes) {
    int32_t found = 0;
    for (int i = 0; i < W; ++i) found |= lanes[i];
    return found != 0;
}

struct Place {
    int64_t image, y, x;  // of a position of the output: its first tap's row and column
};

GOSSAMER_INLINE Place place(const DeltaConvArgs &a, int64_t position) {
    const int64_t row = position / a.out_width;
    return {row / a.out_height, row % a.out_height * a.stride_y - a.top,
            position % a.out_width * a.stride_x - a.left};
}

// The position of the input that a tap reads, -1 where that is padding.
GOSSAMER_INLINE int64_t tap(const DeltaConvArgs &a, const Place &p, int64_t ky, int64_t kx) {
    const int64_t y = p.y + ky * a.dilation_y, x = p.x + kx * a.dilation_x;
    if (y < 0 || y >= a.height || x < 0 || x >= a.width) return -1;
    return (p.image * a.height + y) * a.width + x;
}

// Taps of `kernel` that lie inside of `size` elements.
GOSSAMER_INLINE int64_t inside(int64_t first, int64_t kernel, int64_t dilation, int64_t size) {
    int64_t count = 0;
    for (int64_t k = 0; k < kernel; ++k, first += dilation) count += first >= 0 && first < size;
    return count;
}

// Marks positions of which a tap reads a change: along rows first, then across them.
void spread(const DeltaConvArgs &a, uint8_t *rows, uint8_t *needed) {
    memset(rows, 0, static_cast<size_t>(a.images * a.height * a.out_width));
    memset(needed, 0, static_cast<size_t>(a.images * a.out_height * a.out_width));
    for (int64_t k = 0; k < a.kernel_width; ++k) {
        // Positions [first, last) read the column x * stride_x + shift inside of the image.
        const int64_t shift = k * a.dilation_x - a.left;
        const int64_t first = shift < 0 ? ceil_div(-shift, a.stride_x) : 0;
        const int64_t last =
            min64(a.out_width, shift < a.width ? (a.width - 1 - shift) / a.stride_x + 1 : 0);
        for (int64_t y = 0; y < a.images * a.height; ++y) {
            const uint8_t *from = a.changed + y * a.width + shift;
            uint8_t *to = rows + y * a.out_width;
            if (a.stride_x == 1)
                for (int64_t x = first; x < last; ++x) to[x] |= from[x];
            else
                for (int64_t x = first; x < last; ++x) to[x] |= from[x * a.stride_x];
        }
    }
    for (int64_t y = 0; y < a.images * a.out_height; ++y) {
        uint8_t *to = needed + y * a.out_width;
        int64_t from = y % a.out_height * a.stride_y - a.top;
        for (int64_t k = 0; k < a.kernel_height; ++k, from += a.dilation_y) {
            if (from < 0 || from >= a.height) continue;
            const uint8_t *row = rows + (y / a.out_height * a.height + from) * a.out_width;
            for (int64_t x = 0; x < a.out_width; ++x) to[x] |= row[x];
        }
    }
}

// Lists the positions to compute; returns their number.
int64_t list_needed(const DeltaConvArgs &a, uint8_t *rows, uint8_t *needed, int32_t *list) {
    const int64_t positions = a.images * a.out_height * a.out_width;
    if (*a.afresh) {
        memset(needed, 1, static_cast<size_t>(positions));
    } else {
        spread(a, rows, needed);
        if (a.addend != nullptr)
            for (int64_t p = 0; p < positions; ++p) needed[p] |= a.addend_changed[p];
    }
    int64_t count = 0;
    for (int64_t p = 0; p < positions; ++p) {
        list[count] = static_cast<int32_t>(p);
        count += needed[p] != 0;
    }
    return count;
}

int64_t count_taps(const DeltaConvArgs &a, const int32_t *list, int64_t count) {
    const bool no_zeros = a.top == 0 && a.left == 0 && (a.out_height - 1) * a.stride_y < a.height &&
                          (a.out_width - 1) * a.stride_x < a.width;
    if (a.kernel_height * a.kernel_width == 1 && no_zeros) return count;
    int64_t taps = 0;
    for (int64_t i = 0; i < count; ++i) {
        const Place p = place(a, list[i]);
        taps += inside(p.y, a.kernel_height, a.dilation_y, a.height) *
                inside(p.x, a.kernel_width, a.dilation_x, a.width);
    }
    return taps;
}

// What one thread works in.
struct Room {
    float *rows, *sums;  // of a block: gathered inputs, and their products
    float *values;       // of one position: the inputs that changed
    int32_t *places;     // and where they are
    int32_t *afresh;     // of a block: positions that multiply all of their inputs
};

// Copies what the taps of a position read from `image`, zeros for padding and for positions
// outside of `mask`, where there is one.
static void gather(const DeltaConvArgs &a, const float *image, const uint8_t *mask,
                   int64_t position, float *to) {
    const size_t bytes = sizeof(float) * static_cast<size_t>(a.depth);
    const Place p = place(a, position);
    for (int64_t ky = 0; ky < a.kernel_height; ++ky)
        for (int64_t kx = 0; kx < a.kernel_width; ++kx, to += a.depth) {
            const int64_t from = tap(a, p, ky, kx);
            if (from < 0 || (mask != nullptr && mask[from] == 0))
                memset(to, 0, bytes);
            else
                memcpy(to, image + from * a.channels, bytes);
        }
}

// Lists what is not zero in a row; returns how much that is.
static int64_t list_row(const float *row, int64_t count, float *values, int32_t *places) {
    int64_t found = 0, k = 0;
#if defined(__AVX512F__)
    IntVec at = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (; k + W <= count; k += W, at += W) {
        const Vec v = load(row + k);
        const uint32_t kept =
            _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        compress(kept, reinterpret_cast<IntVec>(v), values + found);
        found += compress(kept, at, places + found);
    }
#endif
    for (; k < count; ++k) {
        values[found] = row[k];
        places[found] = static_cast<int32_t>(k);
        found += row[k] != 0.0f;
    }
    return found;
}

// sums[N vectors] += values @ the listed rows of the weight, from feature f on.
template <int N>
static void add_rows(const DeltaConvArgs &a, const Room &room, int64_t count, int64_t f,
                     float *sums) {
    Vec held[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) held[i] = load(sums + f + i * W);
    for (int64_t k = 0; k < count; ++k) {
        const float *weight = a.weight + room.places[k] * a.features + f;
        const Vec x = broadcast(room.values[k]);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) held[i] += x * load(weight + i * W);
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store(sums + f + i * W, held[i]);
}

// Adds the products with changed inputs to the sums of a position, if those are few; returns
// their number, -1 if they are not.
static int64_t add_changes(const DeltaConvArgs &a, int64_t position, int64_t depth,
                           const Room &room) {
    gather(a, a.change, a.changed, position, room.rows);
    const int64_t count = list_row(room.rows, depth, room.values, room.places);
    if (static_cast<float>(count) > a.sparse_below * static_cast<float>(depth)) return -1;
    float *sums = a.sums + position * a.features;
    int64_t f = 0;
    for (; f + 8 * W <= a.features; f += 8 * W) add_rows<8>(a, room, count, f, sums);
    for (; f + 4 * W <= a.features; f += 4 * W) add_rows<4>(a, room, count, f, sums);
    for (; f < a.features; f += W) add_rows<1>(a, room, count, f, sums);
    return count;
}

// Brings a block of positions up to date; returns the inputs that it multiplied.
static int64_t update_block(const DeltaConvArgs &a, const int32_t *list, int64_t count,
                            const Room &room) {
    const int64_t depth = a.kernel_height * a.kernel_width * a.depth;
    const size_t bytes = sizeof(float) * static_cast<size_t>(a.features);
    int64_t products = 0, rest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t few = *a.afresh ? -1 : add_changes(a, list[i], depth, room);
        room.afresh[rest] = list[i];
        rest += few < 0;
        products += max64(few, 0);
    }
    for (int64_t i = 0; i < rest; ++i)
        gather(a, a.input, nullptr, room.afresh[i], room.rows + i * depth);
    if (rest > 0)
        multiply(rest, a.features, depth, room.rows, depth, a.weight, a.features, room.sums,
                 a.features);
    for (int64_t i = 0; i < rest; ++i)
        memcpy(a.sums + room.afresh[i] * a.features, room.sums + i * a.features, bytes);
    for (int64_t i = 0; i < count; ++i) {
        IntVec moved{};
        for (int64_t f = 0; f < a.features; f += W)
            moved |= finish(a, list[i], f, load(a.sums + list[i] * a.features + f));
        a.output_changed[list[i]] = any(moved);
    }
    return products + count_taps(a, room.afresh, rest) * a.depth;
}

template <int N>
GOSSAMER_INLINE IntVec filter(const DeltaConvArgs &a, int64_t position, int64_t f, int64_t taps,
                              const float *const *inputs, const float *const *weights) {
    Vec sums[N] = {};
    for (int64_t t = 0; t < taps; ++t) {
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i)
            sums[i] += load(inputs[t] + f + i * W) * load(weights[t] + f + i * W);
    }
    IntVec moved{};
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) moved |= finish(a, position, f + i * W, sums[i]);
    return moved;
}

// One position of a depthwise convolution. `inputs` and `weights` have room for every tap.
static void filter_position(const DeltaConvArgs &a, int64_t position, const float **inputs,
                            const float **weights) {
    const Place p = place(a, position);
    int64_t taps = 0;
    for (int64_t ky = 0; ky < a.kernel_height; ++ky)
        for (int64_t kx = 0; kx < a.kernel_width; ++kx)
            if (const int64_t from = tap(a, p, ky, kx); from >= 0) {
                inputs[taps] = a.input + from * a.channels;
                weights[taps++] = a.weight + (ky * a.kernel_width + kx) * a.features;
            }
    IntVec moved{};
    int64_t f = 0;
    for (; f + WIDE * W <= a.features; f += WIDE * W)
        moved |= filter<WIDE>(a, position, f, taps, inputs, weights);
    for (; f < a.features; f += W) moved |= filter<1>(a, position, f, taps, inputs, weights);
    a.output_changed[position] = any(moved);
}

}  // namespace

void delta_conv(const DeltaConvArgs &a) {
    const int64_t positions = a.images * a.out_height * a.out_width;
    const int64_t kernel = a.kernel_height * a.kernel_width;
    const int64_t spread_rows = a.images * a.height * a.out_width;
    Scratch shared(static_cast<size_t>(spread_rows + 5 * positions) + 256);
    uint8_t *rows = shared.take<uint8_t>(spread_rows), *needed = shared.take<uint8_t>(positions);
    int32_t *list = shared.take<int32_t>(positions);
    const int64_t count = list_needed(a, rows, needed, list);
    memset(a.output_changed, 0, static_cast<size_t>(positions));
    if (a.depthwise) {
        *a.products = count_taps(a, list, count);
#pragma omp parallel num_threads(a.threads)
        {
            Scratch scratch(sizeof(float *) * static_cast<size_t>(2 * kernel) + 128);
            const float **inputs = scratch.take<const float *>(kernel);
            const float **weights = scratch.take<const float *>(kernel);
#pragma omp for schedule(dynamic, 16)
            for (int64_t i = 0; i < count; ++i) filter_position(a, list[i], inputs, weights);
        }
        return;
    }
    const int64_t depth = kernel * a.depth;
    const int64_t blocks = round_up(ceil_div(count, BLOCK), a.threads);  // as many for each
    int64_t products = 0;
#pragma omp parallel num_threads(a.threads) reduction(+ : products)
    {
        Scratch scratch(sizeof(float) * static_cast<size_t>(BLOCK * (depth + a.features + 1) +
                                                            2 * (depth + W)) +
                        512);
        Room room{};
        room.rows = scratch.take<float>(BLOCK * depth);
        room.sums = scratch.take<float>(BLOCK * a.features);
        room.values = scratch.take<float>(depth + W);
        room.places = scratch.take<int32_t>(depth + W);
        room.afresh = scratch.take<int32_t>(BLOCK);
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t first = b * count / blocks;
            products += update_block(a, list + first, (b + 1) * count / blocks - first, room);
        }
    }
    *a.products = products;
}

}  // namespace gossamer::GOSSAMER_ISA
