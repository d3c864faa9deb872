// Plain records of the kernels of sparse weights; the rules of params.hpp hold.
#pragma once
#include <cstdint>

namespace gossamer {

enum class Dtype : int { float32 = 0, bfloat16 = 1 };

// A dense operand [batch, columns, width] times a weight [rows, columns].
struct Strips {
    const void *dense;
    void *out;
    Dtype dtype;  // of both
    int64_t batch, rows, columns, width;
    int64_t dense_batch, dense_row, out_batch, out_row;  // strides in elements
    const float *bias;                                   // [rows] or nullptr
    float low, high;                                     // results are clamped to
    int threads;
};

// A weight in panels: gossamer.kernels.packed.Panels describes the tensors.
struct SpmmArgs {
    Strips strips;
    int64_t group;
    const int64_t *starts;
    int64_t panel;
    const int16_t *lines, *counts;
    const uint8_t *columns;
    const float *values;
};

}  // namespace gossamer

// Entry points: name, record.
#define GOSSAMER_WEIGHT_KERNELS(entry) entry(spmm, SpmmArgs)
