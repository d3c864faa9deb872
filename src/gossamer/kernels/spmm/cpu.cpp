// Sparse weight times dense operand: for each line of the weight, sums of a strip in registers.
#include "../native/strips.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

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

// A cell of the weight times N vectors, from `column` on, of the panel.
template <int G, int N>
static void multiply_cell(const SpmmArgs &a, const StripTask &task, int64_t column, int64_t block,
                          int64_t cell, int64_t least) {
    constexpr bool TWO = 2 * G * N <= SUMS;  // chains of additions, to hide their latency
    constexpr int64_t LINES = BLOCK / G;
    const int16_t *lines = a.lines + cell * LINES, *counts = a.counts + cell * LINES;
    const uint8_t *columns = a.columns + a.starts[cell];
    const float *values = a.values + a.starts[cell] * G, *x = task.x + column;
    const int64_t stride = task.stride;
    for (int64_t i = 0; i < LINES && counts[i] >= least; ++i) {
        const int64_t row = block * BLOCK + lines[i] * G, count = counts[i];
        if (column == 0) {
            const int64_t next = block * BLOCK + lines[min64(i + AHEAD, LINES - 1)] * G;
            prefetch_bytes(task.to + min64(next, task.rows - 1) * task.to_stride, stride * 4);
            if (row < task.ahead_rows)
                prefetch_bytes(task.ahead + row * task.ahead_stride, task.ahead_bytes);
        }
        Vec sums[G][N], others[G][N] = {};
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) begin(task, row + g, column, sums[g]);
        for (int64_t j = 0; j < count; j += 2, columns += 2, values += 2 * G) {
            add_unit<G, N>(x + columns[0] * stride, values, sums);
            add_unit<G, N>(x + columns[1] * stride, values + G, TWO ? others : sums);
        }
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) {
            if constexpr (TWO)
#pragma GCC unroll 8
                for (int c = 0; c < N; ++c) sums[g][c] += others[g][c];
            end(task, row + g, column, sums[g]);
        }
    }
}

// The strip in passes of at most N vectors.
template <int G, int N>
GOSSAMER_INLINE void multiply_from(int64_t column, const SpmmArgs &a, const StripTask &task,
                                   int64_t block, int64_t cell, int64_t least) {
    for (; column + N * W <= task.stride; column += N * W)
        multiply_cell<G, N>(a, task, column, block, cell, least);
    if constexpr (N > 1)
        if (column < task.stride) multiply_from<G, N - 1>(column, a, task, block, cell, least);
}

template <class T, int G>
static void run(const SpmmArgs &a) {
    const int64_t panels = max64(1, ceil_div(a.strips.columns, a.panel));
    multiply_strips<T>(a.strips, a.panel, [&](const StripTask &task, int64_t block, int64_t panel) {
        const int64_t least = panel == 0 || panel == panels - 1 ? 0 : 2;
        multiply_from < G,
            SUMS / G<STRIP ? SUMS / G : STRIP>(0, a, task, block, block * panels + panel, least);
    });
}

template <class T>
static void run(const SpmmArgs &a) {
    switch (a.group) {
        case 8:
            return run<T, 8>(a);
        case 4:
            return run<T, 4>(a);
        case 2:
            return run<T, 2>(a);
        default:
            return run<T, 1>(a);
    }
}

}  // namespace

void spmm(const SpmmArgs &a) {
    a.strips.dtype == Dtype::float32 ? run<float>(a) : run<uint16_t>(a);
}

}  // namespace gossamer::GOSSAMER_ISA
