// What the files of the Python binding share.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>

#include "params.hpp"

namespace nb = nanobind;
using Array = nb::ndarray<nb::device::cpu>;
using MaybeArray = std::optional<Array>;

namespace gossamer {

// Entry points of the instruction set in use.
const Kernels &active_kernels();

void bind_decoder(nb::module_ &m);
void bind_images(nb::module_ &m);
void bind_sets(nb::module_ &m);
void bind_weights(nb::module_ &m);

template <class T>
T *data(const MaybeArray &t) {
    return t ? static_cast<T *>(t->data()) : nullptr;
}

inline Dtype dtype_of(const Array &t) {
    return t.dtype() == nb::dtype<float>() ? Dtype::float32 : Dtype::bfloat16;
}

}  // namespace gossamer
