// Group-sparse int8 weight times byte matrix: the bytes of the four columns of a quad are
// interleaved once, so that every position's four lie together for all rows of the group.
//
// A quad of W * 4 positions costs four loads, eight shuffles and four stores, then each of its rows
// four dot products of 4 W bytes: with dot products of bytes (VNNI) 64 multiply-adds an
// instruction, and tiles (AMX) do 16 rows of 16 quads at once, so that shuffles are the limit.
#include "../native/amx.hpp"
#include "../native/params.hpp"
#include "../native/simd.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int POSITIONS = 4 * W;       // a strip: one vector of bytes
constexpr int WIDE = W >= 16 ? 4 : 2;  // vectors of sums a row keeps in registers
constexpr int64_t TASK_LINES = 256;    // at most, so that few rows still make many tasks
constexpr float MAGIC = 12582912.0f;   // 1.5 * 2^23: adding it rounds to the nearest integer

typedef uint8_t Bytes __attribute__((vector_size(POSITIONS), may_alias));
typedef uint8_t LooseBytes __attribute__((vector_size(POSITIONS), aligned(1), may_alias));
typedef int16_t Shorts __attribute__((vector_size(POSITIONS)));
typedef int32_t AnyInts __attribute__((vector_size(POSITIONS), may_alias));
typedef int32_t LooseInts __attribute__((vector_size(POSITIONS), aligned(4), may_alias));
typedef int32_t LooseInt __attribute__((aligned(1), may_alias));
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

GOSSAMER_INLINE void put_bytes(uint8_t *to, IntVec v) {
    *reinterpret_cast<FewBytes *>(to) = __builtin_convertvector(v & 0xff, FewBytes);
}
GOSSAMER_INLINE void put_words(int32_t *to, IntVec v) { *reinterpret_cast<LooseInts *>(to) = v; }

// `width` of the N vectors of a row's sums, as T.
template <class T, int N, class Put>
GOSSAMER_INLINE void put_vectors(T *to, const IntVec (&v)[N], int64_t width, const Put &put) {
    if (width >= N * W) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) put(to + n * W, v[n]);
        return;
    }
    alignas(64) T all[N * W];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) put(all + n * W, v[n]);
    for (int64_t i = 0; i < width; ++i) to[i] = all[i];
}

template <int N>
GOSSAMER_INLINE void put_row(const Int8SpmmArgs &a, IntVec (&v)[N], int64_t row, int64_t at,
                             int64_t width) {
    if (a.kind != Sums::int32) {
        const Vec factor = broadcast(a.factor[row]), offset = broadcast(a.offset[row]);
        const Vec low = broadcast(a.low), high = broadcast(a.high);
        // Adding MAGIC leaves a clamped result, rounded, in the lowest byte.
        const Vec shift = broadcast(a.kind == Sums::float32 ? 0.0f : MAGIC);
        const IntVec flip = IntVec{} + (a.kind == Sums::int8 ? 0x80 : 0);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            Vec real = __builtin_convertvector(v[n], Vec) * factor + offset;
            real = real < low ? low : real;
            real = real > high ? high : real;
            v[n] = reinterpret_cast<IntVec>(real + shift) ^ flip;
        }
    }
    if (a.kind == Sums::uint8 || a.kind == Sums::int8)
        put_vectors(static_cast<uint8_t *>(a.out) + at, v, width, put_bytes);
    else
        put_vectors(static_cast<int32_t *>(a.out) + at, v, width, put_words);
}

// R rows of a line at N vectors of a strip; `values` are those of the first of the rows.
template <int R, int N>
GOSSAMER_INLINE void multiply(const Int8SpmmArgs &a, const uint8_t *x, const int8_t *values,
                              int64_t quads, int64_t row, int64_t rows, int64_t to, int64_t width) {
    IntVec sums[R][N];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[r][n] = IntVec{} + (r < rows ? a.begin[row + r] : 0);
    const auto *quad = reinterpret_cast<const LooseInt *>(values);
    for (int64_t q = 0; q < quads; ++q, x += 4 * POSITIONS, ++quad) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const Positions p(*reinterpret_cast<const AnyInts *>(x + n * POSITIONS));
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r)
                sums[r][n] = add_dot(sums[r][n], p, Weights(quad[r * quads]));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
        if (r < rows) put_row(a, sums[r], row + r, to + r * a.out_row, width);
}

// One line at one strip.
struct Line {
    const uint8_t *strip;
    const int32_t *columns;    // [quads, 4]
    const int8_t *values;      // [group, quads, 4]
    int64_t quads, row, rows;  // `rows` of the line are in the matrix
    int64_t to, width;
    uint8_t *x;  // room for the interleaved bytes of all quads
};

template <int R>
static void multiply_line(const Int8SpmmArgs &a, const Line &line) {
    for (int64_t q = 0; q < line.quads; ++q)
        interleave(line.strip, line.columns + 4 * q, line.x + q * 4 * POSITIONS);
    for (int64_t r = 0; r < line.rows; r += R) {
        const int8_t *values = line.values + r * line.quads * 4;
        for (int64_t c = 0; c < line.width; c += WIDE * W) {
            const auto go = [&](auto n) {
                multiply<R, n()>(a, line.x + c * 4, values, line.quads, line.row + r, line.rows - r,
                                 line.to + r * a.out_row + c, line.width - c);
            };
            const int64_t vectors = ceil_div(line.width - c, W);
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

#if defined(__AMX_INT8__)
// Lines of 8 or 16 rows as tiles: 16 quads of each row, times 16 quads of 16 positions.
constexpr int64_t TILE_QUADS = 16;

struct Tiles {
    explicit Tiles(int64_t rows) {
        TileShape shape;
        for (int i = 0; i < 5; ++i) shape.rows[i] = static_cast<uint8_t>(rows);
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
};

static void multiply_tiles(const Int8SpmmArgs &a, const Line &line) {
    alignas(64) int32_t sums[4][16][W];
    const int64_t stride = 4 * line.quads;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t q = 0; q < line.quads; q += TILE_QUADS) {
        // A few quads at a time stay in the first-level cache; the next go elsewhere.
        uint8_t *x = line.x + q / TILE_QUADS % 2 * TILE_QUADS * 4 * POSITIONS;
        const int64_t count = min64(TILE_QUADS, line.quads - q);
        for (int64_t i = 0; i < count; ++i)
            interleave(line.strip, line.columns + 4 * (q + i), x + i * 4 * POSITIONS);
        // Behind a row's last quad come other weights, but zeros to multiply them with.
        memset(x + count * 4 * POSITIONS, 0,
               static_cast<size_t>((TILE_QUADS - count) * 4 * POSITIONS));
        _tile_loadd(4, line.values + 4 * q, stride);
        _tile_loadd(5, x, 4 * POSITIONS);
        _tile_dpbsud(0, 4, 5);
        if (line.width > W) {
            _tile_loadd(6, x + POSITIONS, 4 * POSITIONS);
            _tile_dpbsud(1, 4, 6);
        }
        if (line.width > 2 * W) {
            _tile_loadd(7, x + 2 * POSITIONS, 4 * POSITIONS);
            _tile_dpbsud(2, 4, 7);
        }
        if (line.width > 3 * W) {
            _tile_loadd(5, x + 3 * POSITIONS, 4 * POSITIONS);
            _tile_dpbsud(3, 4, 5);
        }
    }
    _tile_stored(0, sums[0], POSITIONS);
    _tile_stored(1, sums[1], POSITIONS);
    _tile_stored(2, sums[2], POSITIONS);
    _tile_stored(3, sums[3], POSITIONS);
    for (int64_t r = 0; r < line.rows; ++r) {
        IntVec row[4];
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n)
            row[n] = *reinterpret_cast<const AnyInts *>(sums[n][r]) + a.begin[line.row + r];
        put_row(a, row, line.row + r, line.to + r * a.out_row, line.width);
    }
}
#endif

// Strips share the vectors there are, so that none is nearly empty.
struct Span {
    int64_t begin, width;
};
GOSSAMER_INLINE Span span(int64_t strip, int64_t strips, int64_t width) {
    const int64_t vectors = ceil_div(width, W);
    const int64_t begin = strip * vectors / strips * W;
    return {begin, min64(width, (strip + 1) * vectors / strips * W) - begin};
}

GOSSAMER_INLINE Bytes read_bytes(const Int8SpmmArgs &a, const uint8_t *from, int64_t width) {
    Bytes bytes{};
    if (width == POSITIONS)
        bytes = *reinterpret_cast<const LooseBytes *>(from);
    else
        memcpy(&bytes, from, static_cast<size_t>(width));
    return bytes ^ (Bytes{} + a.flip);
}

GOSSAMER_INLINE Bytes read_bytes(const Int8SpmmArgs &a, const float *from, int64_t width) {
    alignas(64) float all[POSITIONS];
    alignas(64) uint8_t bytes[POSITIONS];
    if (width < POSITIONS) {
        memset(all, 0, sizeof all);
        memcpy(all, from, sizeof(float) * static_cast<size_t>(width));
        from = all;
    }
    const Vec inverse = broadcast(a.inverse), zero = broadcast(a.zero);
    const Vec low = broadcast(0.0f), high = broadcast(255.0f);
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
        Vec byte = load(from + n * W) * inverse + zero;
        byte = byte > low ? byte : low;  // NaN becomes 0
        byte = byte < high ? byte : high;
        put_bytes(bytes + n * W, reinterpret_cast<IntVec>(byte + broadcast(MAGIC)));
    }
    return *reinterpret_cast<const Bytes *>(bytes);
}

template <class T>
static void copy_in(const Int8SpmmArgs &a, const T *from, int64_t width, uint8_t *to) {
    for (int64_t k = 0; k < a.columns; ++k, from += a.dense_row, to += POSITIONS)
        *reinterpret_cast<AnyInts *>(to) =
            spread(reinterpret_cast<IntVec>(read_bytes(a, from, width)), Lanes{});
}

template <class Multiply>
static void run(const Int8SpmmArgs &a, const Multiply &multiply) {
    const int64_t lines = ceil_div(a.rows, a.group), strips = ceil_div(a.width, POSITIONS);
    const int64_t wanted = a.threads == 1 ? 1 : ceil_div(4 * a.threads, max64(1, a.batch * strips));
    const int64_t task = max64(1, min64(TASK_LINES, ceil_div(lines, wanted)));
    const int64_t parts = ceil_div(lines, task);
    int64_t longest = 2 * 16;  // the tiles' room
    for (int64_t g = 0; g < lines; ++g) longest = max64(longest, a.starts[g + 1] - a.starts[g]);
#pragma omp parallel num_threads(a.threads)
    {
        Scratch scratch(static_cast<size_t>((a.columns + 4 * longest) * POSITIONS));
        uint8_t *strip = scratch.take<uint8_t>(a.columns * POSITIONS);
        uint8_t *x = scratch.take<uint8_t>(4 * longest * POSITIONS);
#if defined(__AMX_INT8__)
        const Tiles tiles(min64(16, a.group));
#endif
#pragma omp for schedule(static)
        for (int64_t i = 0; i < a.batch * strips * parts; ++i) {
            const int64_t batch = i / parts / strips;
            const auto [begin, width] = span(i / parts % strips, strips, a.width);
            const int64_t from = batch * a.dense_batch + begin;
            if (a.real)
                copy_in(a, static_cast<const float *>(a.dense) + from, width, strip);
            else
                copy_in(a, static_cast<const uint8_t *>(a.dense) + from, width, strip);
            const int64_t end = min64(lines, (i % parts + 1) * task);
            for (int64_t g = i % parts * task; g < end; ++g) {
                const int64_t first = a.starts[g], quads = a.starts[g + 1] - first;
                const int64_t row = g * a.group;
                multiply(Line{strip, a.quads + 4 * first, a.values + first * a.group * 4, quads,
                              row, min64(a.group, a.rows - row),
                              batch * a.out_batch + row * a.out_row + begin, width, x});
            }
        }
    }
}

}  // namespace

void int8_spmm(const Int8SpmmArgs &a) {
#if defined(__AMX_INT8__)
    if (a.group >= 8) return run(a, [&](const Line &line) { multiply_tiles(a, line); });
#endif
    if (a.group >= 4)
        run(a, [&](const Line &line) { multiply_line<4>(a, line); });
    else if (a.group == 2)
        run(a, [&](const Line &line) { multiply_line<2>(a, line); });
    else
        run(a, [&](const Line &line) { multiply_line<1>(a, line); });
}

}  // namespace gossamer::GOSSAMER_ISA
