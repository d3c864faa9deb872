// Sparse weight times one to sixteen vectors: each weight is read once, in order, from memory.
// Three ways to bring weights and vector elements together:
//   gather: W rows at a time, elements by index, for one vector or two of few weights;
//   spread: the vectors' elements of a column lie together, one load a weight, for more vectors;
//   expand: W weights put in place by a bit mask, for many weights (where there is an instruction).
#include "../native/expand.hpp"
#include "../native/params.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t ROWS = 32;     // rows a task
constexpr int64_t SLICE = 16;    // rows a slice
constexpr int64_t BYTES = 3072;  // between a prefetch and its use
constexpr int64_t SLACK = 32;    // values that expanding may read behind a row's last
constexpr int GATHERED = 2;      // vectors at a time
constexpr int EXPANDED = W >= 16 ? 8 : 4;

template <class T>
GOSSAMER_INLINE void prefetch_stream(const T *p) {
    __builtin_prefetch(reinterpret_cast<const char *>(p) + BYTES, 0, 2);
}

// A slice's rows, one a lane, times N vectors.
template <class T, class Index, int N>
GOSSAMER_INLINE void gather_slice(const float *x, int64_t stride, const T *values,
                                  const Index *columns, int64_t lines, const int32_t *lanes,
                                  float *out, int64_t out_stride) {
    constexpr int PARTS = SLICE / W;
    Vec sums[N][PARTS] = {};
    for (int64_t i = 0; i < lines * SLICE; i += SLICE) {
        prefetch_stream(values + i);
        prefetch_stream(columns + i);
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part) {
            const Vec weights = load(values + i + part * W);
#pragma GCC unroll 2
            for (int v = 0; v < N; ++v)
                sums[v][part] += weights * gather(x + v * stride, columns + i + part * W);
        }
    }
    float all[SLICE];
    for (int v = 0; v < N; ++v) {
        for (int part = 0; part < PARTS; ++part) store(all + part * W, sums[v][part]);
        for (int lane = 0; lane < SLICE; ++lane)
            if (lanes[lane] >= 0) out[v * out_stride + lanes[lane]] = all[lane];
    }
}

// x is [columns, N * W]: the vectors side by side.
template <class T, class Index, int N>
GOSSAMER_INLINE void spread_row(const float *x, const T *values, const Index *columns,
                                int64_t count, float *out, int64_t out_stride, int64_t vectors) {
    constexpr int CHAINS = 4;
    Vec sums[CHAINS][N] = {};
    int64_t i = 0;
    for (; i + CHAINS <= count; i += CHAINS) {
#pragma GCC unroll 4
        for (int chain = 0; chain < CHAINS; ++chain) {
            const Vec weight = broadcast(scalar(values[i + chain]));
            const float *row = x + static_cast<int64_t>(columns[i + chain]) * (N * W);
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) sums[chain][v] += weight * load(row + v * W);
        }
    }
    for (; i < count; ++i)
        for (int v = 0; v < N; ++v)
            sums[0][v] += broadcast(scalar(values[i])) *
                          load(x + static_cast<int64_t>(columns[i]) * (N * W) + v * W);
    float all[N * W];
    for (int v = 0; v < N; ++v)
        store(all + v * W, (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]));
    for (int64_t v = 0; v < vectors; ++v) out[v * out_stride] = all[v];
}

#if defined(__AVX512VBMI2__)
// 32 bfloat16 weights at a time; x holds 16 even columns, then 16 odd ones, of every 32.
template <int N>
GOSSAMER_INLINE void expand_word(const float *x, int64_t stride, uint64_t bits,
                                 const uint16_t *values, Vec (&sums)[N][2]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, bits >>= 32) {
        const IntVec pairs = expand_halves(static_cast<uint32_t>(bits), values);
        const Vec even = reinterpret_cast<Vec>(pairs << 16);
        const Vec odd = reinterpret_cast<Vec>(pairs & ~0xffff);
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) {
            sums[v][0] += even * load(x + v * stride + half * 32);
            sums[v][1] += odd * load(x + v * stride + half * 32 + 16);
        }
        values += __builtin_popcount(static_cast<uint32_t>(bits));
    }
}
constexpr bool PAIRED = true;
#else
constexpr bool PAIRED = false;
#endif

template <class T, int N>
GOSSAMER_INLINE void expand_word(const float *x, int64_t stride, uint64_t bits, const T *values,
                                 Vec (&sums)[N][2]) {
#if defined(__AVX512F__)
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part, bits >>= 16) {
        const uint32_t lanes = static_cast<uint16_t>(bits);
        const Vec weights = expand(lanes, load(values));
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) sums[v][part % 2] += weights * load(x + v * stride + part * 16);
        values += __builtin_popcount(lanes);
    }
#else
    for (; bits != 0; bits &= bits - 1, ++values) {
        const int column = __builtin_ctzll(bits);
        for (int v = 0; v < N; ++v)
            sums[v][0][column % W] += scalar(*values) * x[v * stride + column];
    }
#endif
}

template <class T, int N>
GOSSAMER_INLINE void expand_row(const float *x, int64_t stride, const T *values,
                                const uint64_t *bits, int64_t words, float *out,
                                int64_t out_stride) {
    Vec sums[N][2] = {};
    for (int64_t w = 0; w < words; ++w) {
        prefetch_stream(values);
        if (w % 8 == 0) prefetch_stream(bits + w);
        expand_word(x + w * 64, stride, bits[w], values, sums);
        values += __builtin_popcountll(bits[w]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) out[v * out_stride] = sum(sums[v][0] + sums[v][1]);
}

// Calls row(N, v) for runs of N <= Most vectors until all are done.
template <int Most, class Row>
GOSSAMER_INLINE void for_vectors(int64_t vectors, const Row &row) {
    int64_t v = 0;
    for (; vectors - v >= Most; v += Most) row(std::integral_constant<int, Most>{}, v);
    if constexpr (Most >= 8)
        for (; vectors - v >= 4; v += 4) row(std::integral_constant<int, 4>{}, v);
    if constexpr (Most >= 4)
        for (; vectors - v >= 2; v += 2) row(std::integral_constant<int, 2>{}, v);
    for (; v < vectors; ++v) row(std::integral_constant<int, 1>{}, v);
}

template <class T, class Index>
static void multiply_rows(const GemvArgs &a, const float *x, int64_t stride, int64_t first,
                          int64_t last) {
    const T *values = static_cast<const T *>(a.values);
    const Index *columns = static_cast<const Index *>(a.columns);
    for (int64_t r = first; r < last; ++r) {
        const int64_t begin = a.offsets[r], count = a.offsets[r + 1] - begin;
        float *out = a.out + r;
        if (a.way == GemvWay::gather) {
            for_vectors<GATHERED>(a.vectors, [&](auto n, int64_t v) {
                gather_slice<T, Index, n()>(x + v * stride, stride, values + begin * SLICE,
                                            columns + begin * SLICE, count, a.lanes + r * SLICE,
                                            a.out + v * a.rows, a.rows);
            });
        } else if (stride == W) {
            spread_row<T, Index, 1>(x, values + begin, columns + begin, count, out, a.rows,
                                    a.vectors);
        } else {
            for (int64_t v = 0; v < a.vectors; v += 2 * W)
                spread_row<T, Index, 2>(x + v * a.depth, values + begin, columns + begin, count,
                                        out + v * a.rows, a.rows, min64(2 * W, a.vectors - v));
        }
    }
}

template <class T>
static void expand_rows(const GemvArgs &a, const float *x, int64_t stride, int64_t first,
                        int64_t last, T *tail) {
    const int64_t words = ceil_div(a.depth, 64), end = a.offsets[a.rows];
    for (int64_t r = first; r < last; ++r) {
        const T *values = static_cast<const T *>(a.values) + a.offsets[r];
        if (a.offsets[r + 1] + SLACK > end) {  // never read behind the last value
            memcpy(tail, values, sizeof(T) * static_cast<size_t>(a.offsets[r + 1] - a.offsets[r]));
            values = tail;
        }
        for_vectors<EXPANDED>(a.vectors, [&](auto n, int64_t v) {
            expand_row<T, n()>(x + v * stride, stride, values, a.bits + r * words, words,
                               a.out + v * a.rows + r, a.rows);
        });
    }
}

// The vectors as a way wants them; returns the stride of a vector, or of a column (spread).
template <class T>
static int64_t arrange(const GemvArgs &a, float *x) {
    if (a.way == GemvWay::spread) {
        const int64_t side = a.vectors <= W ? W : 2 * W;  // vectors side by side
        for (int64_t v = 0; v < round_up(a.vectors, side); ++v)
            for (int64_t k = 0; k < a.depth; ++k)
                x[v / side * side * a.depth + k * side + v % side] =
                    v < a.vectors ? a.x[v * a.depth + k] : 0.0f;
        return side;
    }
    const int64_t stride = round_up(a.depth, 64);
    for (int64_t v = 0; v < a.vectors; ++v) {
        const float *from = a.x + v * a.depth;
        float *to = x + v * stride;
        memset(to + a.depth, 0, sizeof(float) * static_cast<size_t>(stride - a.depth));
        if (!PAIRED || sizeof(T) == 4) {
            memcpy(to, from, sizeof(float) * static_cast<size_t>(a.depth));
            continue;
        }
        for (int64_t k = 0; k < stride; ++k)
            to[k / 32 * 32 + k % 2 * 16 + k % 32 / 2] = k < a.depth ? from[k] : 0.0f;
    }
    return stride;
}

template <class T>
static void run(const GemvArgs &a) {
    const int64_t room = round_up(a.vectors, 2 * W) * (a.depth + 64);
    Scratch shared(sizeof(float) * static_cast<size_t>(a.way == GemvWay::gather ? 1 : room));
    float *arranged = shared.take<float>(0);
    const int64_t stride = a.way == GemvWay::gather ? a.depth : arrange<T>(a, arranged);
    const float *x = a.way == GemvWay::gather ? a.x : arranged;
    const int64_t step = a.way == GemvWay::gather ? ROWS / SLICE : ROWS;
    if (a.way == GemvWay::gather)  // rows without entries are in no slice
        memset(a.out, 0, sizeof(float) * static_cast<size_t>(a.vectors * a.rows));
#pragma omp parallel num_threads(a.threads)
    {
        const int64_t room = a.way == GemvWay::expand ? a.depth + SLACK : 0;
        Scratch scratch(sizeof(T) * static_cast<size_t>(room));
        T *tail = scratch.take<T>(room);
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < a.runs; first += step) {
            const int64_t last = min64(a.runs, first + step);
            if (a.way == GemvWay::expand) {
                expand_rows<T>(a, x, stride, first, last, tail);
            } else if (a.wide) {
                multiply_rows<T, uint32_t>(a, x, stride, first, last);
            } else {
                multiply_rows<T, uint16_t>(a, x, stride, first, last);
            }
        }
    }
}

}  // namespace

void sparse_gemv(const GemvArgs &a) {
    a.dtype == Dtype::float32 ? run<float>(a) : run<uint16_t>(a);
}

}  // namespace gossamer::GOSSAMER_ISA
