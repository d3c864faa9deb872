// Depth-wise convolution: a few rows of an image at a time are copied between zeros into cache,
// where sums of up to eight result rows stay in registers while a kernel passes over them.
#include "../native/params.hpp"
#include "../native/simd.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int TILE = 8;                   // result rows at a time
constexpr int64_t BAND_BYTES = 24 << 10;  // of copied rows: half the first-level cache

// A copied row holds its columns 0, S, 2 S, ... then 1, S + 1, ...: vectors of what neighbouring
// results read are contiguous for every stride S.
struct Rows {
    int64_t part;    // floats for the columns of one remainder
    int64_t stride;  // floats a row
};

#if defined(__AVX2__) && !defined(__AVX512F__)
GOSSAMER_INLINE __m256i first_lanes(int64_t count) {
    const IntVec lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    return reinterpret_cast<__m256i>(lanes < static_cast<int32_t>(count));
}
#endif

// Up to W elements, and zeros behind them.
GOSSAMER_INLINE Vec load_some(const float *from, int64_t count) {
    if (count >= W) return load(from);
    if (count <= 0) return Vec{};
#if defined(__AVX512F__)
    return reinterpret_cast<Vec>(
        _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from));
#elif defined(__AVX2__)
    return reinterpret_cast<Vec>(_mm256_maskload_ps(from, first_lanes(count)));
#else
    Vec v{};
    for (int64_t i = 0; i < count; ++i) v[i] = from[i];
    return v;
#endif
}

GOSSAMER_INLINE void store_some(float *to, Vec v, int64_t count) {
    if (count >= W) return store(to, v);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1),
                          reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
    _mm256_maskstore_ps(to, first_lanes(count), reinterpret_cast<__m256>(v));
#else
    for (int64_t i = 0; i < count; ++i) to[i] = v[i];
#endif
}

template <int First, size_t... I>
GOSSAMER_INLINE Vec every_second(Vec a, Vec b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (2 * static_cast<int>(I) + First)...);
}

// from[0, width) to the columns left, left + 1, ... of a copied row, and zeros up to a whole
// vector behind them.
template <int S>
GOSSAMER_INLINE void copy_row(const float *from, int64_t width, int64_t left, int64_t part,
                              float *to) {
    if constexpr (S == 1) {
        for (int64_t c = 0; c < width; c += W) store(to + left + c, load_some(from + c, width - c));
    } else {
        float *even = to + left % 2 * part + left / 2;
        float *odd = to + (left + 1) % 2 * part + (left + 1) / 2;
        for (int64_t c = 0; c < width; c += 2 * W) {
            const Vec a = load_some(from + c, width - c);
            const Vec b = load_some(from + c + W, width - c - W);
            store(even + c / 2, every_second<0>(a, b, Lanes{}));
            store(odd + c / 2, every_second<1>(a, b, Lanes{}));
        }
    }
}

// R rows of the result from the copied rows at `rows`. K is the kernel's size, 0 for any.
template <int K, int S, int R>
static void filter(const DepthwiseConvArgs &a, const Rows &layout, const float *rows,
                   const float *weight, float bias, float *out) {
    const Vec low = broadcast(a.low), high = broadcast(a.high);
    const auto column = [&](int64_t kx) { return kx % S * layout.part + kx / S; };
    for (int64_t x = 0; x < a.out_width; x += W) {
        Vec sums[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r] = broadcast(bias);
        if constexpr (K > 0) {
#pragma GCC unroll 8
            for (int kx = 0; kx < K; ++kx) {
                Vec weights[K];
#pragma GCC unroll 8
                for (int ky = 0; ky < K; ++ky) weights[ky] = keep(broadcast(weight[ky * K + kx]));
                const float *from = rows + column(kx) + x;
#pragma GCC unroll 32
                for (int i = 0; i < (R - 1) * S + K; ++i) {
                    const Vec image = keep(load(from + i * layout.stride));
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r)
                        if (i >= r * S && i < r * S + K) sums[r] += weights[i - r * S] * image;
                }
            }
        } else {
            for (int64_t ky = 0; ky < a.kernel_height; ++ky)
                for (int64_t kx = 0; kx < a.kernel_width; ++kx) {
                    const Vec one = broadcast(weight[ky * a.kernel_width + kx]);
                    const float *from = rows + ky * layout.stride + column(kx) + x;
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) sums[r] += one * load(from + r * S * layout.stride);
                }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Vec v = sums[r];
            v = v < low ? low : v;  // NaN passes
            v = v > high ? high : v;
            float *to = out + r * a.out_width + x;
            store_some(to, v, a.out_width - x);
        }
    }
}

using Filter = void (*)(const DepthwiseConvArgs &, const Rows &, const float *, const float *,
                        float, float *);

template <int K, int S, size_t... I>
GOSSAMER_INLINE Filter filter_of(int64_t rows, std::index_sequence<I...>) {
    constexpr Filter table[] = {filter<K, S, I + 1>...};
    return table[rows - 1];
}

// Rows y, y + 1, ... of a plane; `clean`: rows of zeros are zero already.
template <int S>
static void copy_rows(const DepthwiseConvArgs &a, const Rows &layout, int64_t plane, int64_t y,
                      int64_t rows, bool clean, float *to) {
    const float *image = a.image + plane * a.height * a.width;
    for (int64_t i = 0; i < rows; ++i, ++y, to += layout.stride) {
        if (y >= 0 && y < a.height)
            copy_row<S>(image + y * a.width, a.width, a.left, layout.part, to);
        else if (!clean)
            memset(to, 0, sizeof(float) * static_cast<size_t>(layout.stride));
    }
}

// Rows begin to end of a plane's result from the copied rows, tile by tile.
template <int K, int S>
static void filter_rows(const DepthwiseConvArgs &a, const Rows &layout, int64_t plane,
                        int64_t begin, int64_t end, const float *copied) {
    const int64_t channel = plane % a.channels, tiles = ceil_div(end - begin, TILE);
    const float *weight = a.weight + channel * a.kernel_height * a.kernel_width;
    const float bias = a.bias == nullptr ? 0.0f : a.bias[channel];
    float *out = a.out + plane * a.out_height * a.out_width;
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t y = t * (end - begin) / tiles, rows = (t + 1) * (end - begin) / tiles - y;
        filter_of<K, S>(rows, std::make_index_sequence<TILE>{})(
            a, layout, copied + y * S * layout.stride, weight, bias,
            out + (begin + y) * a.out_width);
    }
}

template <int K, int S>
static void run(const DepthwiseConvArgs &a) {
    Rows layout{};
    const int64_t read = round_up(a.out_width, W) + (a.kernel_width - 1) / S;
    const int64_t written = ceil_div(a.left, S) + round_up(ceil_div(a.width, S), W);
    layout.part = round_up(max64(read, written), W);
    layout.stride = layout.part * S;
    const int64_t row_bytes = layout.stride * static_cast<int64_t>(sizeof(float));
    const int64_t fits = (BAND_BYTES / row_bytes - a.kernel_height) / S + 1;
    const int64_t bands = ceil_div(a.out_height, max64(TILE, fits));
    const int64_t most = (ceil_div(a.out_height, bands) - 1) * S + a.kernel_height;
    const int64_t room = most * layout.stride, planes = a.images * a.channels;
    // Several small planes are copied before the first is read: a load that meets parts of two
    // stores which are still under way has to wait for them.
    const int64_t together = max64(1, BAND_BYTES / (most * row_bytes));
    const int64_t group = min64(together, ceil_div(planes, a.threads));
#pragma omp parallel num_threads(a.threads)
    {
        Scratch scratch(static_cast<size_t>(group * most * row_bytes));
        float *copied = scratch.take<float>(group * room);
        memset(copied, 0, static_cast<size_t>(group * most * row_bytes));
#pragma omp for schedule(static)
        for (int64_t first = 0; first < planes; first += group) {
            const int64_t last = min64(first + group, planes);
            for (int64_t band = 0; band < bands; ++band) {
                const int64_t begin = band * a.out_height / bands;
                const int64_t end = (band + 1) * a.out_height / bands;
                for (int64_t p = first; p < last; ++p)
                    copy_rows<S>(a, layout, p, begin * S - a.top,
                                 (end - begin - 1) * S + a.kernel_height, bands == 1,
                                 copied + (p - first) * room);
                for (int64_t p = first; p < last; ++p)
                    filter_rows<K, S>(a, layout, p, begin, end, copied + (p - first) * room);
            }
        }
    }
}

template <int S>
static void run(const DepthwiseConvArgs &a) {
    if (a.kernel_height == 3 && a.kernel_width == 3) return run<3, S>(a);
    if (a.kernel_height == 5 && a.kernel_width == 5) return run<5, S>(a);
    return run<0, S>(a);
}

}  // namespace

void depthwise_conv(const DepthwiseConvArgs &a) {
    if (a.images * a.channels * a.out_height * a.out_width == 0) return;
    a.stride == 1 ? run<1>(a) : run<2>(a);
}

}  // namespace gossamer::GOSSAMER_ISA
