// The columns of one block in order: each pruned weight's error moves to the columns after it.
// Rows are independent, so every thread sweeps rows of its own.
#include "../native/params.hpp"
#include "../native/simd.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

// Keeps the n weights of the m at `from` whose loss would cost most, ties by lowest index.
void keep_best(const SparsegptSweepArgs &a, int64_t from, const float *row, uint8_t *mask) {
    for (int64_t i = from; i < from + a.m; ++i) {
        const float score = __builtin_fabsf(row[i] / a.factor[i * a.factor_row + i]);
        int64_t better = 0;
        for (int64_t j = from; j < from + a.m; ++j) {
            const float other = __builtin_fabsf(row[j] / a.factor[j * a.factor_row + j]);
            better += other > score || (other == score && j < i);
        }
        mask[i] = better < a.n;
    }
}

float sweep_row(const SparsegptSweepArgs &a, float *row, uint8_t *mask, float *errors) {
    float loss = 0.0f;
    for (int64_t i = 0; i < a.width; ++i) {
        if (a.m > 0 && i % a.m == 0) keep_best(a, i, row, mask);
        errors[i] = 0.0f;
        if (mask[i]) continue;
        const float *factor = a.factor + i * a.factor_row;
        const float error = row[i] / factor[i];
        errors[i] = error;
        loss += 0.5f * error * error;
        row[i] = 0.0f;
        int64_t j = i + 1;
        for (; j + W <= a.width; j += W) store(row + j, load(row + j) - error * load(factor + j));
        for (; j < a.width; ++j) row[j] -= error * factor[j];
    }
    return loss;
}

}  // namespace

void sparsegpt_sweep(const SparsegptSweepArgs &a) {
#pragma omp parallel for schedule(static) num_threads(a.threads)
    for (int64_t r = 0; r < a.rows; ++r)
        a.loss[r] += sweep_row(a, a.weight + r * a.weight_row, a.mask + r * a.mask_row,
                               a.errors + r * a.width);
}

}  // namespace gossamer::GOSSAMER_ISA
