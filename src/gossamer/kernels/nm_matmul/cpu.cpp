// N:M weight times dense operand: the strips of SpMM, with groups of a known size.
#include "../native/strips.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Even groups alternate between two chains of additions: whatever the width of a strip, which
// differs with the number of threads, so that the sums do not.
template <int Count>
constexpr bool TWO = Count > 0 && Count % 2 == 0;

// A block of rows times N vectors, from `column` on, of the panel. Count: weights a group, 0 where
// only known at run time.
template <int Count, int N>
static void multiply_groups(const NmMatmulArgs &a, const StripTask &task, int64_t column,
                            int64_t block, int64_t first_group) {
    const int64_t n = Count > 0 ? Count : a.n, groups = task.depth / a.m;
    const int64_t row_size = a.strips.columns / a.m * n, step = a.m * task.stride;
    for (int64_t row = block * BLOCK; row < min64(a.strips.rows, (block + 1) * BLOCK); ++row) {
        const float *values = a.values + row * row_size + first_group * n;
        const uint8_t *indices = a.indices + row * row_size + first_group * n;
        const float *x = task.x + column;
        Vec sums[1][N], others[1][N] = {};
        begin(task, row, column, sums[0]);
        for (int64_t g = 0; g < groups; ++g, x += step)
#pragma GCC unroll 4
            for (int64_t i = 0; i < n; ++i, ++values, ++indices)
                add_unit<1, N>(x + *indices * task.stride, values,
                               TWO<Count> && i % 2 ? others : sums);
        if constexpr (TWO<Count>)
#pragma GCC unroll 8
            for (int c = 0; c < N; ++c) sums[0][c] += others[0][c];
        end(task, row, column, sums[0]);
    }
}

template <class T, int Count>
static void run(const NmMatmulArgs &a) {
    constexpr int64_t TARGET = 128;  // the operand's rows a panel, where groups are not larger
    constexpr int MOST = TWO<Count> && SUMS / 2 < STRIP ? SUMS / 2 : STRIP;
    const int64_t groups = max64(1, TARGET / a.m);
    const int64_t entries = a.strips.rows * a.strips.columns / a.m * a.n;
    multiply_strips<T>(a.strips, groups * a.m, entries,
                       [&](const StripTask &task, int64_t block, int64_t panel) {
                           in_passes<MOST>(0, task.stride, [&](auto n, int64_t column) {
                               multiply_groups<Count, n()>(a, task, column, block, panel * groups);
                           });
                       });
}

template <class T>
static void run(const NmMatmulArgs &a) {
    switch (a.n) {
        case 1:
            return run<T, 1>(a);
        case 2:
            return run<T, 2>(a);
        case 4:
            return run<T, 4>(a);
        default:
            return run<T, 0>(a);
    }
}

}  // namespace

void nm_matmul(const NmMatmulArgs &a) {
    a.strips.dtype == Dtype::float32 ? run<float>(a) : run<uint16_t>(a);
}

}  // namespace gossamer::GOSSAMER_ISA
