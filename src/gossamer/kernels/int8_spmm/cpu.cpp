// Group-sparse int8 weight times byte matrix: the bytes of the four columns of a quad are
// interleaved once, so that every position's four lie together for all rows of the group.
//
// A quad costs W * 4 positions four loads, eight shuffles and four stores, and each of its rows
// four dot products of 4 W bytes. Dot products and shuffles share two ports where there are dot
// products of bytes, so groups of g rows reach g / (g + 2) of the peak: 64 multiply-adds a port.
#include "../native/params.hpp"
#include "../native/simd.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int POSITIONS = 4 * W;       // a strip: one vector of bytes
constexpr int WIDE = W >= 16 ? 4 : 2;  // vectors of sums a row keeps in registers
constexpr int64_t TASK_GROUPS = 256;   // at most, so that few rows still make many tasks
constexpr float MAGIC = 12582912.0f;   // 1.5 * 2^23: adding it rounds to the nearest integer

typedef uint8_t Bytes __attribute__((vector_size(POSITIONS)));
typedef uint8_t LooseBytes __attribute__((vector_size(POSITIONS), aligned(1), may_alias));
typedef int16_t Shorts __attribute__((vector_size(POSITIONS)));
typedef int32_t LooseInts __attribute__((vector_size(POSITIONS), aligned(4), may_alias));
typedef uint8_t FewBytes __attribute__((vector_size(W), aligned(1), may_alias));

// Within each 128-bit lane, units of `Size` bytes of the lower or upper half of a and b in turn.
template <int Size, bool Upper, size_t... I>
GOSSAMER_INLINE Bytes unpack(Bytes a, Bytes b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b,
                                   (I / 16 * 16 + (Upper ? 8 : 0) + I % 16 / (2 * Size) * Size +
                                    I % Size + (I / Size % 2 ? POSITIONS : 0))...);
}
using ByteLanes = std::make_index_sequence<POSITIONS>;

// The order of positions in a strip, from which unpacking makes consecutive ones.
template <size_t... I>
GOSSAMER_INLINE IntVec spread(IntVec v, std::index_sequence<I...>) {
    constexpr size_t lanes = W / 4;
    return __builtin_shufflevector(v, v, (I % 4 * lanes + I / 4)...);
}

GOSSAMER_INLINE void interleave(const uint8_t *strip, const int32_t *quad, uint8_t *to) {
    Bytes row[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        row[i] = *reinterpret_cast<const Bytes *>(strip + int64_t{quad[i]} * POSITIONS);
    const Bytes low_a = unpack<1, false>(row[0], row[1], ByteLanes{});
    const Bytes low_b = unpack<1, false>(row[2], row[3], ByteLanes{});
    const Bytes high_a = unpack<1, true>(row[0], row[1], ByteLanes{});
    const Bytes high_b = unpack<1, true>(row[2], row[3], ByteLanes{});
    Bytes *out = reinterpret_cast<Bytes *>(to);
    out[0] = unpack<2, false>(low_a, low_b, ByteLanes{});
    out[1] = unpack<2, true>(low_a, low_b, ByteLanes{});
    out[2] = unpack<2, false>(high_a, high_b, ByteLanes{});
    out[3] = unpack<2, true>(high_a, high_b, ByteLanes{});
}

#if defined(__AVX512VNNI__)
// Four products of unsigned and signed bytes a lane.
struct Positions {
    __m512i bytes;
    explicit Positions(IntVec v) : bytes(reinterpret_cast<__m512i>(v)) {}
};
struct Weights {
    __m512i bytes;
    explicit Weights(int32_t quad) : bytes(_mm512_set1_epi32(quad)) {}
};
GOSSAMER_INLINE IntVec add_dot(IntVec sum, const Positions &x, const Weights &w) {
    return reinterpret_cast<IntVec>(
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), x.bytes, w.bytes));
}
#else
// Pairs of products of 16-bit integers: products of bytes in pairs could overflow those.
GOSSAMER_INLINE IntVec pairs(IntVec a, IntVec b) {
#if defined(__AVX512BW__)
    return reinterpret_cast<IntVec>(
        _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
    return reinterpret_cast<IntVec>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
    return reinterpret_cast<IntVec>(
        _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}
struct Positions {
    IntVec even, odd;
    explicit Positions(IntVec v) : even(v & 0x00ff00ff), odd((v >> 8) & 0x00ff00ff) {}
};
struct Weights {
    IntVec even, odd;
    explicit Weights(int32_t quad) {
        const Shorts both = reinterpret_cast<Shorts>(IntVec{} + quad);
        even = reinterpret_cast<IntVec>(both << 8 >> 8);
        odd = reinterpret_cast<IntVec>(both >> 8);
    }
};
GOSSAMER_INLINE IntVec add_dot(IntVec sum, const Positions &x, const Weights &w) {
    return sum + pairs(x.even, w.even) + pairs(x.odd, w.odd);
}
#endif

GOSSAMER_INLINE Vec clamped(const Int8SpmmArgs &a, IntVec sum, int64_t row) {
    Vec v = __builtin_convertvector(sum, Vec) * broadcast(a.factor[row]) + broadcast(a.offset[row]);
    const Vec low = broadcast(a.low), high = broadcast(a.high);
    v = v < low ? low : v;
    return v > high ? high : v;
}

// `count` <= W sums of a row go to `to`.
GOSSAMER_INLINE void put_sums(const Int8SpmmArgs &a, IntVec sum, int64_t row, int64_t at,
                              int64_t count) {
    if (a.kind == Sums::uint8 || a.kind == Sums::int8) {
        const Vec rounded = clamped(a, sum, row) + MAGIC;
        const IntVec whole = reinterpret_cast<IntVec>(rounded) ^ (a.kind == Sums::int8 ? 0x80 : 0);
        const FewBytes bytes = __builtin_convertvector(whole & 0xff, FewBytes);
        memcpy(static_cast<uint8_t *>(a.out) + at, &bytes, static_cast<size_t>(count));
        return;
    }
    if (a.kind == Sums::float32) sum = reinterpret_cast<IntVec>(clamped(a, sum, row));
    memcpy(static_cast<int32_t *>(a.out) + at, &sum, static_cast<size_t>(4 * count));
}

// R rows of a group at one strip of `vectors` vectors.
template <int R, int N>
GOSSAMER_INLINE void multiply(const Int8SpmmArgs &a, const uint8_t *x, const int8_t *values,
                              int64_t quads, int64_t row, int64_t rows, int64_t to, int64_t width) {
    IntVec sums[R][N];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[r][n] = IntVec{} + (r < rows ? a.begin[row + r] : 0);
    for (int64_t q = 0; q < quads; ++q, x += 4 * POSITIONS, values += 4 * a.group) {
        int32_t quad[R];
        memcpy(quad, values, sizeof quad);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const Positions p(*reinterpret_cast<const IntVec *>(x + n * POSITIONS));
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sums[r][n] = add_dot(sums[r][n], p, Weights(quad[r]));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
        if (r >= rows) break;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n)
            if (n * W < width)
                put_sums(a, sums[r][n], row + r, to + r * a.out_row + n * W,
                         min64(W, width - n * W));
    }
}

template <int R>
static void multiply_strip(const Int8SpmmArgs &a, const uint8_t *x, int64_t group, int64_t to,
                           int64_t width) {
    const int64_t quads = a.starts[group + 1] - a.starts[group];
    const int64_t rows = min64(a.group, a.rows - group * a.group);
    for (int64_t r = 0; r < rows; r += R) {
        const int64_t row = group * a.group + r;
        const int8_t *values = a.values + (a.starts[group] * a.group + r) * 4;
        for (int64_t c = 0; c < width; c += WIDE * W) {
            const auto go = [&](auto n) {
                multiply<R, n()>(a, x + c * 4, values, quads, row, rows - r, to + r * a.out_row + c,
                                 width - c);
            };
            const int64_t vectors = ceil_div(width - c, W);
            if (vectors >= WIDE)
                go(std::integral_constant<int, WIDE>{});
            else if (vectors == 3)
                go(std::integral_constant < int, WIDE<3 ? WIDE : 3>{});
            else if (vectors == 2)
                go(std::integral_constant<int, 2>{});
            else
                go(std::integral_constant<int, 1>{});
        }
    }
}

// Strips of one width share the vectors there are, so that none is nearly empty.
struct Span {
    int64_t begin, width;
};
GOSSAMER_INLINE Span span(int64_t strip, int64_t strips, int64_t width) {
    const int64_t vectors = ceil_div(width, W);
    const int64_t begin = strip * vectors / strips * W;
    return {begin, min64(width, (strip + 1) * vectors / strips * W) - begin};
}

static void copy_in(const Int8SpmmArgs &a, const uint8_t *from, int64_t width, uint8_t *to) {
    const Bytes flip = Bytes{} + a.flip;
    for (int64_t k = 0; k < a.columns; ++k, from += a.dense_row, to += POSITIONS) {
        Bytes bytes{};
        if (width == POSITIONS)
            bytes = *reinterpret_cast<const LooseBytes *>(from);
        else
            memcpy(&bytes, from, static_cast<size_t>(width));
        *reinterpret_cast<IntVec *>(to) = spread(reinterpret_cast<IntVec>(bytes ^ flip), Lanes{});
    }
}

template <int R>
static void run(const Int8SpmmArgs &a) {
    const int64_t groups = ceil_div(a.rows, a.group), strips = ceil_div(a.width, POSITIONS);
    const int64_t wanted = a.threads == 1 ? 1 : ceil_div(4 * a.threads, max64(1, a.batch * strips));
    const int64_t task = max64(1, min64(TASK_GROUPS, ceil_div(groups, wanted)));
    const int64_t parts = ceil_div(groups, task);
    int64_t longest = 0;
    for (int64_t g = 0; g < groups; ++g) longest = max64(longest, a.starts[g + 1] - a.starts[g]);
#pragma omp parallel num_threads(a.threads)
    {
        Scratch scratch(static_cast<size_t>((a.columns + 4 * longest) * POSITIONS));
        uint8_t *strip = scratch.take<uint8_t>(a.columns * POSITIONS);
        uint8_t *quads = scratch.take<uint8_t>(4 * longest * POSITIONS);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < a.batch * strips * parts; ++i) {
            const int64_t batch = i / parts / strips;
            const auto [begin, width] = span(i / parts % strips, strips, a.width);
            copy_in(a, a.dense + batch * a.dense_batch + begin, width, strip);
            const int64_t end = min64(groups, (i % parts + 1) * task);
            for (int64_t g = i % parts * task; g < end; ++g) {
                for (int64_t q = a.starts[g]; q < a.starts[g + 1]; ++q)
                    interleave(strip, a.quads + 4 * q, quads + (q - a.starts[g]) * 4 * POSITIONS);
                multiply_strip<R>(a, quads, g,
                                  batch * a.out_batch + g * a.group * a.out_row + begin, width);
            }
        }
    }
}

}  // namespace

void int8_spmm(const Int8SpmmArgs &a) {
    if (a.group >= 4)
        run<4>(a);
    else if (a.group == 2)
        run<2>(a);
    else
        run<1>(a);
}

}  // namespace gossamer::GOSSAMER_ISA
