// Sparse weight times dense operand: for each line of the weight, sums of a strip in registers.
#include "../native/strips.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

// A cell of the weight times N vectors, from `column` on, of the panel.
template <int G, int N>
static void multiply_cell(const SpmmArgs &a, const StripTask &task, int64_t column, int64_t block,
                          int64_t cell, int64_t least) {
    constexpr int64_t LINES = BLOCK / G;
    const int16_t *lines = a.lines + cell * LINES, *counts = a.counts + cell * LINES;
    const uint8_t *columns = a.columns + a.starts[cell];
    const float *values = a.values + a.starts[cell] * G, *x = task.x + column;
    const int64_t stride = task.stride;
    for (int64_t i = 0; i < LINES && counts[i] >= least; ++i) {
        const int64_t row = block * BLOCK + lines[i] * G;
        if (task.far && column == 0)
            prefetch_out(task, block * BLOCK + lines[min64(i + AHEAD / G, LINES - 1)] * G, G);
        Vec sums[G][N];
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) begin(task, row + g, column, sums[g]);
        for (const uint8_t *last = columns + counts[i]; columns < last; ++columns, values += G)
            add_unit<G, N>(x + *columns * stride, values, sums);
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) end(task, row + g, column, sums[g]);
    }
}

template <class T, int G>
static void run(const SpmmArgs &a) {
    const int64_t panels = max64(1, ceil_div(a.strips.columns, a.panel));
    const int64_t cells = ceil_div(a.strips.rows, BLOCK) * panels;
    const int64_t entries = a.starts[cells] * G;
    multiply_strips<T>(
        a.strips, a.panel, entries, [&](const StripTask &task, int64_t block, int64_t panel) {
            const int64_t least = panel == 0 || panel == panels - 1 ? 0 : 1;
            in_passes<(SUMS / G < STRIP ? SUMS / G : STRIP)>(
                0, task.stride, [&](auto n, int64_t column) {
                    multiply_cell<G, n()>(a, task, column, block, block * panels + panel, least);
                });
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
