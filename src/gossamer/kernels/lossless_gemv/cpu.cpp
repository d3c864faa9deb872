// Dense weight times one to sixteen vectors: codes are read in order from memory, and turned into
// the very weights that they stand for in registers.
#include "../native/params.hpp"
#include "../native/simd.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t BLOCK = 32;    // weights that share a scale
constexpr int64_t TASK = 32;     // rows
constexpr int64_t AHEAD = 2048;  // bytes between a prefetch and its use, at least
constexpr int AT_ONCE = 4;       // rows times vectors
constexpr int PARTS = BLOCK / W;

GOSSAMER_INLINE Vec floats(IntVec v) { return __builtin_convertvector(v, Vec); }

// W bytes as integers. GCC takes the vector extensions' conversion apart, and warns of the
// registers that intrinsics without a mask leave undefined.
template <class T>
GOSSAMER_INLINE IntVec integers(const T *bytes) {
#if defined(__AVX512F__)
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes));
    return reinterpret_cast<IntVec>(static_cast<T>(-1) < 0 ? _mm512_maskz_cvtepi8_epi32(0xffff, v)
                                                           : _mm512_maskz_cvtepu8_epi32(0xffff, v));
#elif defined(__AVX2__)
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes));
    return reinterpret_cast<IntVec>(static_cast<T>(-1) < 0 ? _mm256_cvtepi8_epi32(v)
                                                           : _mm256_cvtepu8_epi32(v));
#else
    IntVec v;
    for (int i = 0; i < W; ++i) v[i] = bytes[i];
    return v;
#endif
}

#if defined(__AVX512F__)
constexpr IntVec LANES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

GOSSAMER_INLINE Vec look_up(Vec table, IntVec index) {
    return reinterpret_cast<Vec>(_mm512_maskz_permutexvar_ps(
        0xffff, reinterpret_cast<__m512i>(index), reinterpret_cast<__m512>(table)));
}
#endif

// The forms: how many codes and scales a block has, and its weights.

// Byte i: the codes of weights i and i + 16, the first one in the low half.
struct Nibbles {
    static constexpr int64_t BYTES = 16, SCALES = 2;
};
GOSSAMER_INLINE void decode(Nibbles, const uint8_t *codes, const float *scales,
                            Vec (&weights)[PARTS]) {
    const Vec step = broadcast(scales[0]), low = broadcast(scales[1]);
#if defined(__AVX512F__)  // a code looks its weight up, by its lower four bits
    const Vec table = floats(LANES) * step + low;
    const IntVec both = integers(codes);
    weights[0] = look_up(table, both);
    weights[1] = look_up(table, both >> 4);
#else
#pragma GCC unroll 4
    for (int part = 0; part < PARTS / 2; ++part) {
        const IntVec both = integers(codes + part * W);
        weights[part] = floats(both & 15) * step + low;
        weights[part + PARTS / 2] = floats(both >> 4) * step + low;
    }
#endif
}

struct Bytes {
    static constexpr int64_t BYTES = 32, SCALES = 1;
};
GOSSAMER_INLINE void decode(Bytes, const uint8_t *codes, const float *scales,
                            Vec (&weights)[PARTS]) {
    const Vec step = broadcast(scales[0]);
#pragma GCC unroll 8
    for (int part = 0; part < PARTS; ++part)
        weights[part] = floats(integers(reinterpret_cast<const int8_t *>(codes) + part * W)) * step;
}

template <class T>
struct Plain {
    static constexpr int64_t BYTES = BLOCK * sizeof(T), SCALES = 0;
};
template <class T>
GOSSAMER_INLINE void decode(Plain<T>, const uint8_t *codes, const float *, Vec (&weights)[PARTS]) {
#pragma GCC unroll 8
    for (int part = 0; part < PARTS; ++part)
        weights[part] = load(reinterpret_cast<const T *>(codes) + part * W);
}

// Rows lie one behind the other and are read side by side, `Bytes` of them at step `b`; what comes
// behind them is fetched meanwhile, in order.
template <int64_t Bytes>
GOSSAMER_INLINE void fetch(const void *rows, int64_t ahead, int64_t b) {
    if (b % ceil_div(64, Bytes) != 0) return;
    const char *from = static_cast<const char *>(rows) + ahead + b * Bytes;
    for (int64_t i = 0; i < Bytes; i += 64) __builtin_prefetch(from + i, 0, 3);
}

// R rows from `row` on times N vectors.
template <class Form, int R, int N>
GOSSAMER_INLINE void multiply(const GemvArgs &a, int64_t row, const float *x, int64_t stride,
                              float *out) {
    const int64_t blocks = stride / BLOCK;
    const uint8_t *codes = static_cast<const uint8_t *>(a.values) + row * blocks * Form::BYTES;
    const float *scales = a.scales + row * blocks * Form::SCALES;
    constexpr int64_t CODES = R * Form::BYTES, SCALES = R * Form::SCALES * int64_t{sizeof(float)};
    Vec sums[R][N][2] = {};
    for (int64_t b = 0; b < blocks; ++b, x += BLOCK) {
        fetch<CODES>(codes, max64(AHEAD, blocks * CODES), b);
        if constexpr (SCALES > 0) fetch<SCALES>(scales, max64(AHEAD, blocks * SCALES), b);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const int64_t at = r * blocks + b;
            Vec weights[PARTS];
            decode(Form{}, codes + at * Form::BYTES, scales + at * Form::SCALES, weights);
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v)
#pragma GCC unroll 8
                for (int part = 0; part < PARTS; ++part)
                    sums[r][v][part % 2] += weights[part] * load(x + v * stride + part * W);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < N; ++v) out[v * a.rows + row + r] = sum(sums[r][v][0] + sums[r][v][1]);
}

template <class Form, int N>
void multiply_rows(const GemvArgs &a, int64_t first, int64_t last, const float *x, int64_t stride,
                   float *out) {
    constexpr int R = AT_ONCE / N;
    int64_t row = first;
    for (; row + R <= last; row += R) multiply<Form, R, N>(a, row, x, stride, out);
    for (; row < last; ++row) multiply<Form, 1, N>(a, row, x, stride, out);
}

// One thread's rows of a product. Rows are shared out evenly and in order, so that each thread
// reads one stream.
template <class Form>
void multiply_share(const GemvArgs &a) {
    const int64_t stride = round_up(a.depth, BLOCK);
    const int64_t padded = stride == a.depth ? 0 : a.vectors * stride;
    Scratch scratch(sizeof(float) * static_cast<size_t>(padded));
    const float *x = a.x;
    if (padded) {
        float *copy = scratch.take<float>(padded);
        memset(copy, 0, sizeof(float) * static_cast<size_t>(padded));
        for (int64_t v = 0; v < a.vectors; ++v)
            memcpy(copy + v * stride, x + v * a.depth,
                   sizeof(float) * static_cast<size_t>(a.depth));
        x = copy;
    }
#pragma omp for schedule(static) nowait
    for (int64_t first = 0; first < a.rows; first += TASK) {
        const int64_t last = min64(a.rows, first + TASK);
        int64_t v = 0;
        for (; v + 4 <= a.vectors; v += 4)
            multiply_rows<Form, 4>(a, first, last, x + v * stride, stride, a.out + v * a.rows);
        for (; v + 2 <= a.vectors; v += 2)
            multiply_rows<Form, 2>(a, first, last, x + v * stride, stride, a.out + v * a.rows);
        if (v < a.vectors)
            multiply_rows<Form, 1>(a, first, last, x + v * stride, stride, a.out + v * a.rows);
    }
}

}  // namespace

// Products that do not wait for each other.
void lossless_gemvs(const GemvArgs *products, int64_t count) {
#pragma omp parallel num_threads(products->threads)
    for (const GemvArgs *a = products; a < products + count; ++a) {
        if (a->way == GemvWay::nibbles)
            multiply_share<Nibbles>(*a);
        else if (a->way == GemvWay::bytes)
            multiply_share<Bytes>(*a);
        else if (a->dtype == Dtype::float32)
            multiply_share<Plain<float>>(*a);
        else
            multiply_share<Plain<uint16_t>>(*a);
    }
}

void lossless_gemv(const GemvArgs &a) { lossless_gemvs(&a, 1); }

}  // namespace gossamer::GOSSAMER_ISA
