// The binding of the kernels on image sequences.
#include "binding.hpp"

namespace gossamer {
namespace {

void tv_dual_ascent(const Array &dual, const Array &image, const Array &out, int directions,
                    int64_t sequences, int64_t frames, int64_t rows, int64_t columns, float step,
                    float radius, int threads) {
    const TotalVariationArgs a{static_cast<const float *>(dual.data()),
                               static_cast<const float *>(image.data()),
                               static_cast<float *>(out.data()),
                               directions,
                               sequences,
                               frames,
                               rows,
                               columns,
                               step,
                               radius,
                               threads};
    nb::gil_scoped_release release;
    active_kernels().tv_dual_ascent(a);
}

void tv_adjoint(const Array &dual, const Array &out, int directions, int64_t sequences,
                int64_t frames, int64_t rows, int64_t columns, int threads) {
    const TotalVariationArgs a{static_cast<const float *>(dual.data()),
                               nullptr,
                               static_cast<float *>(out.data()),
                               directions,
                               sequences,
                               frames,
                               rows,
                               columns,
                               0.0f,
                               0.0f,
                               threads};
    nb::gil_scoped_release release;
    active_kernels().tv_adjoint(a);
}

}  // namespace

void bind_images(nb::module_ &m) {
    m.def("tv_dual_ascent", &tv_dual_ascent);
    m.def("tv_adjoint", &tv_adjoint);
}

}  // namespace gossamer
