// The binding of the kernels of sparse weights.
#include <nanobind/stl/optional.h>

#include "binding.hpp"

namespace gossamer {
namespace {

// dense and out are [batch, rows, width] with contiguous last dimension.
Strips strips(const Array &dense, const Array &out, const MaybeArray &bias, float low, float high,
              int threads) {
    Strips s{};
    s.dense = dense.data();
    s.out = out.data();
    s.dtype = dtype_of(dense);
    s.batch = static_cast<int64_t>(dense.shape(0));
    s.columns = static_cast<int64_t>(dense.shape(1));
    s.width = static_cast<int64_t>(dense.shape(2));
    s.rows = static_cast<int64_t>(out.shape(1));
    s.dense_batch = dense.stride(0);
    s.dense_row = dense.stride(1);
    s.out_batch = out.stride(0);
    s.out_row = out.stride(1);
    s.bias = data<const float>(bias);
    s.low = low;
    s.high = high;
    s.threads = threads;
    return s;
}

template <class T>
const T *tensor(const Array &t) {
    return static_cast<const T *>(t.data());
}

void spmm(int64_t panel, const Array &starts, const Array &lines, const Array &counts,
          const Array &columns, const Array &values, const Array &dense, const Array &out,
          const MaybeArray &bias, float low, float high, int threads) {
    const SpmmArgs a{strips(dense, out, bias, low, high, threads),
                     static_cast<int64_t>(values.shape(1)),
                     tensor<int64_t>(starts),
                     panel,
                     tensor<int16_t>(lines),
                     tensor<int16_t>(counts),
                     tensor<uint8_t>(columns),
                     tensor<float>(values)};
    nb::gil_scoped_release release;
    active_kernels().spmm(a);
}

}  // namespace

void bind_weights(nb::module_ &m) { m.def("spmm", &spmm); }

}  // namespace gossamer
