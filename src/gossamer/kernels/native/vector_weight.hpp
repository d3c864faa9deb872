// A weight that multiplies a few vectors, as Python hands it over.
#pragma once
#include "binding.hpp"

namespace gossamer {

// A weight as one way of `sparse_gemv` or `lossless_gemv` reads it, taken over once. Vectors come
// as addresses, which cross fastest.
struct VectorWeight {
    // Sparse; `places` are the columns of the entries, or bit masks when expanding.
    VectorWeight(int way, int64_t rows, Array values, Array offsets, Array places, MaybeArray lanes)
        : way(static_cast<GemvWay>(way)),
          rows(rows),
          values(values),
          offsets(offsets),
          places(places),
          lanes(lanes) {}

    // Dense, in blocks.
    VectorWeight(int way, int64_t rows, Array values, MaybeArray scales)
        : way(static_cast<GemvWay>(way)), rows(rows), values(values), scales(scales) {}

    GemvArgs product(int64_t vectors, int64_t depth, float *out, int threads) const {
        GemvArgs a{};
        a.way = way;
        a.values = values.data();
        a.dtype = dtype_of(values);
        a.scales = data<const float>(scales);
        if (offsets) {
            a.offsets = static_cast<const int64_t *>(offsets->data());
            a.runs = static_cast<int64_t>(offsets->shape(0)) - 1;
            a.columns = places->data();
            a.wide = places->itemsize() == sizeof(int32_t);
            a.bits = static_cast<const uint64_t *>(places->data());
            a.lanes = data<const int32_t>(lanes);
        }
        a.out = out;
        a.vectors = vectors;
        a.depth = depth;
        a.rows = rows;
        a.threads = threads;
        return a;
    }

    void times(uintptr_t x, int64_t vectors, int64_t depth, uintptr_t out, int threads) const {
        GemvArgs a = product(vectors, depth, reinterpret_cast<float *>(out), threads);
        a.x = reinterpret_cast<const float *>(x);
        nb::gil_scoped_release release;
        const Kernels &kernels = active_kernels();
        way < GemvWay::nibbles ? kernels.sparse_gemv(a) : kernels.lossless_gemv(a);
    }

    GemvWay way;
    int64_t rows;
    Array values;
    MaybeArray offsets, places, lanes, scales;
};

}  // namespace gossamer
