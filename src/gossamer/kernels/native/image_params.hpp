// Plain record of the kernels on image sequences; see params.hpp for the rules.
#pragma once
#include <cstdint>

namespace gossamer {

// Complex float32 images [sequences, frames, rows, columns], contiguous, real and imaginary parts
// interleaved; a dual holds one such image for each direction.
struct TotalVariationArgs {
    const float *dual;
    const float *image;  // not read by the adjoint
    float *out;          // a dual for the ascent, an image for the adjoint
    int directions;      // bits: 1 time, 2 rows, 4 columns
    int64_t sequences, frames, rows, columns;
    float step, radius;
    int threads;
};

}  // namespace gossamer

// clang-format off
// Entry points: name, record.
#define GOSSAMER_IMAGE_KERNELS(entry)         \
    entry(tv_dual_ascent, TotalVariationArgs) \
    entry(tv_adjoint, TotalVariationArgs)
// clang-format on
