// Products of a sparse weight with a dense operand of many columns, strip by strip: a panel of
// the operand's rows, a few vectors wide, is copied into cache, where it meets the weight's rows.
#pragma once
#include "params.hpp"
#include "simd.hpp"

namespace gossamer::GOSSAMER_ISA {

constexpr int64_t BLOCK = 128;          // rows of the weight whose entries lie together
constexpr int64_t TASK_BLOCKS = 16;     // at most: sums of a task stay in the second-level cache
constexpr int64_t NARROW = 32;          // vectors a thread: few for the rows that they share
constexpr int64_t ENTRY = 5;            // bytes of a weight and its column
constexpr int64_t FEW = 8;              // entries a row: the result costs more
constexpr int64_t SHALLOW = 128;        // a deeper panel leaves less room to be wide
constexpr int SUMS = W >= 16 ? 24 : 8;  // registers that hold sums
constexpr int STRIP = W >= 16 ? 6 : 8;  // vectors a strip is wide, at most
constexpr int64_t FAR_BYTES = 1 << 20;  // of both operands, a thread: no longer kept in cache
constexpr int64_t AHEAD = 8;            // rows between a prefetch and its use

// One panel of one strip and the blocks of rows that meet it.
struct StripTask {
    int64_t depth;   // rows of the operand in this panel
    const float *x;  // [depth, stride], zeros beyond the strip's width
    int64_t stride;  // floats; whole vectors
    float *sums;     // of rows 0, 1, ...; [row, stride], as the panels before have left them
    float *to;       // where the sums go: sums itself, or the result
    int64_t to_stride;
    const float *bias;  // not nullptr: what sums begin with, and not with `sums`
    bool clamped;       // on the way, to
    float low, high;
    int64_t rows;  // of the result; a line's other rows are not stored
    bool far;      // the sums go where no cache holds them
};

// A strip's rows lie too far apart for the hardware to guess the next one.
GOSSAMER_INLINE void prefetch_bytes(const void *row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(static_cast<const char *>(row) + i, 0, 2);
}

template <class T>
static void copy_in(const T *from, int64_t stride, int64_t rows, int64_t width, float *to) {
    const int64_t whole = width / W * W, padded = round_up(width, W);
    for (int64_t r = 0; r < rows; ++r, from += stride, to += padded) {
        prefetch_bytes(from + min64(AHEAD, rows - 1 - r) * stride,
                       width * static_cast<int64_t>(sizeof(T)));
        for (int64_t c = 0; c < whole; c += W) store(to + c, load(from + c));
        for (int64_t c = whole; c < width; ++c) to[c] = scalar(from[c]);
        for (int64_t c = max64(whole, width); c < padded; ++c) to[c] = 0.0f;
    }
}

template <class T>
static void copy_out(const float *from, int64_t from_stride, int64_t rows, int64_t width, T *to,
                     int64_t stride) {
    const int64_t whole = width / W * W;
    for (int64_t r = 0; r < rows; ++r, from += from_stride, to += stride) {
        for (int64_t c = 0; c < whole; c += W) store(to + c, load(from + c));
        for (int64_t c = whole; c < width; ++c) put(to + c, from[c]);
    }
}

// Whole float32 vectors can be stored to the result as they are.
GOSSAMER_INLINE float *direct(float *out) { return out; }
GOSSAMER_INLINE float *direct(uint16_t *) { return nullptr; }

// `multiply(task, block, panel)` adds a block of the weight times the panel in task.x to the sums;
// in a strip's first and last panel it must go through every row. How the work is split does not
// change any sum.
template <class T, class Multiply>
static void multiply_strips(const Strips &s, int64_t panel_rows, int64_t entries,
                            const Multiply &multiply) {
    const int64_t blocks = ceil_div(s.rows, BLOCK), vectors = ceil_div(s.width, W);
    const int64_t panels = max64(1, ceil_div(s.columns, panel_rows));
    if (blocks == 0) return;
    const int64_t depth = min64(panel_rows, s.columns), widest = depth > SHALLOW ? 4 : STRIP;
    const int64_t full = ceil_div(vectors, widest);  // strips of the widest kind
    const int64_t strips = max64(1, min64(vectors, round_up(full, s.threads)));
    // Threads with rows of their own share no cache line of the result, but each copies the whole
    // operand; threads with columns of their own each read the whole weight.
    const bool heavy = 2 * ENTRY * entries >= 4 * s.columns * s.width;
    const bool by_rows = heavy && vectors < NARROW * s.threads && blocks >= s.threads;
    const int64_t tasks = max64(1, s.batch * strips);
    const int64_t wanted = by_rows                  ? s.threads
                           : tasks >= 2 * s.threads ? 1
                                                    : ceil_div(4 * s.threads, tasks);
    const int64_t task_blocks = min64(TASK_BLOCKS, ceil_div(blocks, wanted));
    const int64_t parts = ceil_div(blocks, task_blocks);
    const bool far =
        entries <= FEW * s.rows && (s.rows + s.columns) * s.width * 4 > FAR_BYTES * s.threads;
#pragma omp parallel num_threads(s.threads)
    {
        const int64_t rows = task_blocks * BLOCK;
        const int64_t floats = (rows + panel_rows) * STRIP * W + rows;
        Scratch scratch(sizeof(float) * static_cast<size_t>(floats));
        float *x = scratch.take<float>(panel_rows * STRIP * W);
        float *sums = scratch.take<float>(rows * STRIP * W), *bias = scratch.take<float>(rows);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < s.batch * strips * parts; ++i) {
            const int64_t strip = i % tasks % strips, batch = i % tasks / strips;
            const int64_t first = i / tasks * task_blocks, end = min64(blocks, first + task_blocks);
            const int64_t top = first * BLOCK, bottom = min64(s.rows, end * BLOCK);
            for (int64_t r = 0; r < rows; ++r)
                bias[r] = s.bias == nullptr || top + r >= bottom ? 0.0f : s.bias[top + r];
            const int64_t column = strip * vectors / strips * W;
            const int64_t width = min64(s.width, (strip + 1) * vectors / strips * W) - column;
            const T *dense = static_cast<const T *>(s.dense) + batch * s.dense_batch + column;
            T *out = static_cast<T *>(s.out) + batch * s.out_batch + column;
            StripTask t{};
            t.x = x;
            t.stride = round_up(width, W);
            t.sums = t.to = sums - top * t.stride;
            t.to_stride = t.stride;
            t.low = s.low;
            t.high = s.high;
            t.rows = top + rows;
            const bool in_place = direct(out) != nullptr && width == t.stride;
            for (int64_t panel = 0; panel < panels; ++panel) {
                const T *from = dense + panel * panel_rows * s.dense_row;
                t.depth = min64(panel_rows, s.columns - panel * panel_rows);
                copy_in(from, s.dense_row, t.depth, width, x);
                t.bias = panel == 0 ? bias - top : nullptr;
                if (panel == panels - 1) {
                    t.clamped = s.low > NEG_INF || s.high < -NEG_INF;
                    if (in_place) {
                        t.to = direct(out);
                        t.far = far;
                        t.to_stride = s.out_row;
                        t.rows = s.rows;
                    }
                }
                for (int64_t block = first; block < end; ++block) multiply(t, block, panel);
            }
            if (!in_place)
                copy_out(t.sums + top * t.stride, t.stride, bottom - top, width,
                         out + top * s.out_row, s.out_row);
        }
    }
}

// A line's sums of N vectors begin here and end there.
template <int N>
GOSSAMER_INLINE void begin(const StripTask &t, int64_t row, int64_t column, Vec (&v)[N]) {
    if (t.bias != nullptr) {
        const Vec bias = broadcast(t.bias[row]);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) v[i] = bias;
        return;
    }
    const float *from = t.sums + row * t.stride + column;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = load(from + i * W);
}

template <int N>
GOSSAMER_INLINE void end(const StripTask &t, int64_t row, int64_t column, Vec (&v)[N]) {
    if (row >= t.rows) return;
    if (t.clamped) {
        const Vec low = broadcast(t.low), high = broadcast(t.high);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
            v[i] = v[i] < low ? low : v[i];  // NaN passes
            v[i] = v[i] > high ? high : v[i];
        }
    }
    float *to = t.to + row * t.to_stride + column;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store(to + i * W, v[i]);
}

// Adds G weights of one column times N vectors of the operand's row.
template <int G, int N>
GOSSAMER_INLINE void add_unit(const float *row, const float *values, Vec (&sums)[G][N]) {
    Vec columns[N];
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c) columns[c] = load(row + c * W);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
        const Vec value = broadcast(values[g]);
#pragma GCC unroll 8
        for (int c = 0; c < N; ++c) sums[g][c] += value * columns[c];
    }
}

// The result's rows of a line that comes later.
GOSSAMER_INLINE void prefetch_out(const StripTask &t, int64_t row, int64_t rows) {
    for (int64_t r = row; r < min64(row + rows, t.rows); ++r)
        for (int64_t c = 0; c < t.stride; c += W)
            __builtin_prefetch(t.to + r * t.to_stride + c, 1, 3);
}

// The strip in passes of at most N vectors: cell(std::integral_constant<int, n>, column).
template <int N, class Cell>
GOSSAMER_INLINE void in_passes(int64_t column, int64_t stride, const Cell &cell) {
    for (; column + N * W <= stride; column += N * W)
        cell(std::integral_constant<int, N>{}, column);
    if constexpr (N > 1)
        if (column < stride) in_passes<N - 1>(column, stride, cell);
}

}  // namespace gossamer::GOSSAMER_ISA
