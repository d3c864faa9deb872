// The binding of the kernels of sparse weights.
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <array>
#include <functional>
#include <initializer_list>
#include <limits>
#include <vector>

#include "binding.hpp"
#include "vector_weight.hpp"

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

// The panels of a weight, taken over once: crossing from Python costs as much as a small product.
struct PanelWeight {
    PanelWeight(int64_t panel, Array starts, Array lines, Array counts, Array columns, Array values)
        : panel(panel),
          starts(starts),
          lines(lines),
          counts(counts),
          columns(columns),
          values(values) {}

    SpmmArgs product(const Strips &strips) const {
        return {strips,
                static_cast<int64_t>(values.shape(1)),
                tensor<int64_t>(starts),
                panel,
                tensor<int16_t>(lines),
                tensor<int16_t>(counts),
                tensor<uint8_t>(columns),
                tensor<float>(values)};
    }

    // An operand [batch, columns, width] and a result [batch, rows, width] by address, which
    // crosses fastest; `apart`: their matrices, then their rows.
    void times(uintptr_t dense, bool half, const std::array<int64_t, 4> &shape,
               const std::array<int64_t, 2> &dense_apart, uintptr_t out,
               const std::array<int64_t, 2> &out_apart, uintptr_t bias, float low, float high,
               int threads) const {
        Strips s{};
        s.dense = reinterpret_cast<const void *>(dense);
        s.out = reinterpret_cast<void *>(out);
        s.dtype = half ? Dtype::bfloat16 : Dtype::float32;
        s.batch = shape[0];
        s.rows = shape[1];
        s.columns = shape[2];
        s.width = shape[3];
        s.dense_batch = dense_apart[0];
        s.dense_row = dense_apart[1];
        s.out_batch = out_apart[0];
        s.out_row = out_apart[1];
        s.bias = reinterpret_cast<const float *>(bias);
        s.low = low;
        s.high = high;
        s.threads = threads;
        nb::gil_scoped_release release;
        active_kernels().spmm(product(s));
    }

    int64_t panel;
    Array starts, lines, counts, columns, values;
};

Sums sums_of(const Array &t) {
    if (t.dtype() == nb::dtype<int32_t>()) return Sums::int32;
    if (t.dtype() == nb::dtype<float>()) return Sums::float32;
    return t.dtype() == nb::dtype<uint8_t>() ? Sums::uint8 : Sums::int8;
}

void int8_spmm(int64_t group, const Array &starts, const Array &quads, const Array &values,
               const Array &begin, const Array &dense, float inverse, float zero, const Array &out,
               const MaybeArray &factor, const MaybeArray &offset, float low, float high,
               int threads) {
    Int8SpmmArgs a{};
    a.dense = dense.data();
    a.real = dense.dtype() == nb::dtype<float>();
    a.inverse = inverse;
    a.zero = zero;
    a.flip = dense.dtype() == nb::dtype<int8_t>() ? 0x80 : 0;
    a.out = out.data();
    a.kind = sums_of(out);
    a.batch = static_cast<int64_t>(dense.shape(0));
    a.rows = static_cast<int64_t>(out.shape(1));
    a.columns = static_cast<int64_t>(dense.shape(1));
    a.width = static_cast<int64_t>(dense.shape(2));
    a.dense_batch = dense.stride(0);
    a.dense_row = dense.stride(1);
    a.out_batch = out.stride(0);
    a.out_row = out.stride(1);
    a.group = group;
    a.starts = tensor<int64_t>(starts);
    a.quads = tensor<int32_t>(quads);
    a.values = tensor<int8_t>(values);
    a.begin = tensor<int32_t>(begin);
    a.factor = data<const float>(factor);
    a.offset = data<const float>(offset);
    a.low = low;
    a.high = high;
    a.threads = threads;
    nb::gil_scoped_release release;
    active_kernels().int8_spmm(a);
}

void nm_matmul(int64_t m, const Array &values, const Array &indices, const Array &dense,
               const Array &out, int threads) {
    const float infinity = std::numeric_limits<float>::infinity();
    const NmMatmulArgs a{strips(dense, out, std::nullopt, -infinity, infinity, threads),
                         static_cast<int64_t>(values.shape(2)), m, tensor<float>(values),
                         tensor<uint8_t>(indices)};
    nb::gil_scoped_release release;
    active_kernels().nm_matmul(a);
}

Features features(const MaybeArray &t) {
    if (!t) return {};
    return {data<float>(t), t->stride(0), t->stride(1), t->stride(2)};
}

SparseRowsArgs sparse_rows(const Array &input, const Array &offsets, const Array &indices,
                           const MaybeArray &order, int threads) {
    SparseRowsArgs a{};
    a.matrix = {data<const int64_t>(offsets), data<const int32_t>(indices),
                data<const int32_t>(order), static_cast<int64_t>(offsets.shape(0)) - 1,
                static_cast<int64_t>(input.shape(2))};
    a.images = static_cast<int64_t>(input.shape(0));
    a.positions = static_cast<int64_t>(input.shape(1));
    a.input = features(input);
    a.threads = threads;
    return a;
}

void sparse_linear(const Array &input, const Array &offsets, const Array &indices,
                   const MaybeArray &order, const Array &values, const MaybeArray &bias,
                   const Array &output, const MaybeArray &left, const MaybeArray &dots,
                   int threads) {
    SparseRowsArgs a = sparse_rows(input, offsets, indices, order, threads);
    a.values = data<const float>(values);
    a.bias = data<const float>(bias);
    a.output = features(output);
    a.left = features(left);
    a.dots = data<float>(dots);
    nb::gil_scoped_release release;
    active_kernels().sparse_linear(a);
}

void sddmm(const Array &left, const Array &input, const Array &offsets, const Array &indices,
           const Array &dots, int threads) {
    SparseRowsArgs a = sparse_rows(input, offsets, indices, std::nullopt, threads);
    a.left = features(left);
    a.dots = data<float>(dots);
    nb::gil_scoped_release release;
    active_kernels().sddmm(a);
}

void activation_sparse_matmul(const Array &activations, const Array &weight, const Array &out,
                              int threads) {
    const ActivationSparseArgs a{data<const float>(activations),
                                 weight.data(),
                                 dtype_of(weight),
                                 static_cast<int64_t>(activations.shape(0)),
                                 static_cast<int64_t>(weight.shape(0)),
                                 static_cast<int64_t>(weight.shape(1)),
                                 data<float>(out),
                                 threads};
    nb::gil_scoped_release release;
    active_kernels().activation_sparse_matmul(a);
}

DepthwiseConvArgs depthwise_args(const Array &image, const Array &weight, const Array &out,
                                 const MaybeArray &bias, int64_t stride, int64_t left, int64_t top,
                                 float low, float high, int threads) {
    DepthwiseConvArgs a{};
    a.image = tensor<float>(image);
    a.weight = tensor<float>(weight);
    a.bias = data<const float>(bias);
    a.out = static_cast<float *>(out.data());
    a.images = static_cast<int64_t>(image.shape(0));
    a.channels = static_cast<int64_t>(image.shape(1));
    a.height = static_cast<int64_t>(image.shape(2));
    a.width = static_cast<int64_t>(image.shape(3));
    a.out_height = static_cast<int64_t>(out.shape(2));
    a.out_width = static_cast<int64_t>(out.shape(3));
    a.kernel_height = static_cast<int64_t>(weight.shape(1));
    a.kernel_width = static_cast<int64_t>(weight.shape(2));
    a.stride = stride;
    a.left = left;
    a.top = top;
    a.low = low;
    a.high = high;
    a.threads = threads;
    return a;
}

void depthwise_conv(const Array &image, const Array &weight, const Array &out,
                    const MaybeArray &bias, int64_t stride, int64_t left, int64_t top, float low,
                    float high, int threads) {
    const DepthwiseConvArgs a =
        depthwise_args(image, weight, out, bias, stride, left, top, low, high, threads);
    nb::gil_scoped_release release;
    active_kernels().depthwise_conv(a);
}

void sparsegpt_sweep(const Array &weight, const Array &factor, const Array &mask,
                     const Array &errors, const Array &loss, int64_t n, int64_t m, int threads) {
    SparsegptSweepArgs a{};
    a.weight = static_cast<float *>(weight.data());
    a.factor = tensor<float>(factor);
    a.mask = static_cast<uint8_t *>(mask.data());
    a.errors = static_cast<float *>(errors.data());
    a.loss = static_cast<float *>(loss.data());
    a.rows = static_cast<int64_t>(weight.shape(0));
    a.width = static_cast<int64_t>(weight.shape(1));
    a.weight_row = weight.stride(0);
    a.factor_row = factor.stride(0);
    a.mask_row = mask.stride(0);
    a.n = n;
    a.m = m;
    a.threads = threads;
    nb::gil_scoped_release release;
    active_kernels().sparsegpt_sweep(a);
}

void mask_swaps(const Array &weight, const Array &mask, const Array &total, const Array &norm,
                const Array &steady, const Array &scores, const Array &out, const Array &swaps,
                const Array &before, const Array &after, int64_t cycles, double threshold,
                bool guarded, int64_t group, int threads) {
    MaskSwapsArgs a{};
    a.weight = tensor<float>(weight);
    a.mask = tensor<uint8_t>(mask);
    a.total = tensor<float>(total);
    a.norm = tensor<float>(norm);
    a.steady = tensor<float>(steady);
    a.scores = tensor<float>(scores);
    a.out = static_cast<uint8_t *>(out.data());
    a.swaps = static_cast<int64_t *>(swaps.data());
    a.before = static_cast<double *>(before.data());
    a.after = static_cast<double *>(after.data());
    a.rows = static_cast<int64_t>(weight.shape(0));
    a.width = static_cast<int64_t>(weight.shape(1));
    a.cycles = cycles;
    a.threshold = threshold;
    a.guarded = guarded;
    a.group = group;
    a.threads = threads;
    nb::gil_scoped_release release;
    active_kernels().mask_swaps(a);
}

// Images held from frame to frame: values, mask of the changed positions, changes.
struct HeldImages {
    HeldImages(Array values, Array changed, Array change)
        : values(values), changed(changed), change(change) {}

    Array values, changed, change;
};

// A convolution whose output is quantised, and the sums of its own that it holds.
struct DeltaConv {
    DeltaConv(Array weight, Array bias, Array step, MaybeArray sums,
              const std::array<int64_t, 6> &geometry, float low, float high, float sparse_below)
        : weight(weight),
          bias(bias),
          step(step),
          sums(sums),
          geometry(geometry),
          low(low),
          high(high),
          sparse_below(sparse_below) {}

    DeltaConvArgs between(const HeldImages &input, const HeldImages *addend,
                          const HeldImages &output, const Array &afresh,
                          const Array &products) const {
        DeltaConvArgs a{};
        a.input = tensor<float>(input.values);
        a.changed = tensor<uint8_t>(input.changed);
        a.change = tensor<float>(input.change);
        a.weight = tensor<float>(weight);
        a.bias = tensor<float>(bias);
        a.addend = addend == nullptr ? nullptr : tensor<float>(addend->values);
        a.addend_changed = addend == nullptr ? nullptr : tensor<uint8_t>(addend->changed);
        a.step = tensor<float>(step);
        a.afresh = tensor<uint8_t>(afresh);
        a.sums = data<float>(sums);
        a.output = static_cast<float *>(output.values.data());
        a.output_changed = static_cast<uint8_t *>(output.changed.data());
        a.output_change = static_cast<float *>(output.change.data());
        a.products = static_cast<int64_t *>(products.data());
        a.images = static_cast<int64_t>(input.values.shape(0));
        a.height = static_cast<int64_t>(input.values.shape(1));
        a.width = static_cast<int64_t>(input.values.shape(2));
        a.channels = static_cast<int64_t>(input.values.shape(3));
        a.out_height = static_cast<int64_t>(output.values.shape(1));
        a.out_width = static_cast<int64_t>(output.values.shape(2));
        a.features = static_cast<int64_t>(output.values.shape(3));
        a.kernel_height = static_cast<int64_t>(weight.shape(0));
        a.kernel_width = static_cast<int64_t>(weight.shape(1));
        a.depthwise = weight.ndim() == 3;
        a.depth = a.depthwise ? 1 : static_cast<int64_t>(weight.shape(2));
        a.stride_y = geometry[0];
        a.stride_x = geometry[1];
        a.dilation_y = geometry[2];
        a.dilation_x = geometry[3];
        a.top = geometry[4];
        a.left = geometry[5];
        a.low = low;
        a.high = high;
        a.sparse_below = sparse_below;
        a.threads = 1;
        return a;
    }

    Array weight, bias, step;
    MaybeArray sums;
    std::array<int64_t, 6> geometry;
    float low, high, sparse_below;
};

void delta_conv(const HeldImages &input, const DeltaConv &layer, const HeldImages *addend,
                const HeldImages &output, const Array &afresh, const Array &products, int threads) {
    DeltaConvArgs a = layer.between(input, addend, output, afresh, products);
    a.threads = threads;
    nb::gil_scoped_release release;
    active_kernels().delta_conv(a);
}

// Calls of kernels, recorded with their tensors, which are kept alive. Two tensors stand for what
// every run brings along: its input and its output.
class Program {
  public:
    Program(const Array &source, const Array &target) : source_(source), target_(target) {}

    void spmm(const PanelWeight &weight, const Array &dense, const Array &out,
              const MaybeArray &bias, float low, float high) {
        keep(
            {weight.starts, weight.lines, weight.counts, weight.columns, weight.values, dense, out},
            bias);
        const SpmmArgs recorded = weight.product(strips(dense, out, bias, low, high, 1));
        steps_.emplace_back([this, recorded](const Run &run) {
            SpmmArgs a = recorded;
            a.strips.dense = read(a.strips.dense, run);
            a.strips.out = write(a.strips.out, run);
            a.strips.threads = run.threads;
            active_kernels().spmm(a);
        });
    }

    void depthwise_conv(const Array &image, const Array &weight, const Array &out,
                        const MaybeArray &bias, int64_t stride, int64_t left, int64_t top,
                        float low, float high) {
        keep({image, weight, out}, bias);
        const DepthwiseConvArgs recorded =
            depthwise_args(image, weight, out, bias, stride, left, top, low, high, 1);
        steps_.emplace_back([this, recorded](const Run &run) {
            DepthwiseConvArgs a = recorded;
            a.image = static_cast<const float *>(read(a.image, run));
            a.out = static_cast<float *>(write(a.out, run));
            a.threads = run.threads;
            active_kernels().depthwise_conv(a);
        });
    }

    // Reads and writes fixed tensors only.
    void delta_conv(const HeldImages &input, const DeltaConv &layer, const HeldImages *addend,
                    const HeldImages &output, const Array &afresh, const Array &products) {
        for (const HeldImages *held : {&input, addend, &output})
            if (held != nullptr) keep({held->values, held->changed, held->change}, std::nullopt);
        keep({layer.weight, layer.bias, layer.step, afresh, products}, layer.sums);
        const DeltaConvArgs recorded = layer.between(input, addend, output, afresh, products);
        steps_.emplace_back([recorded](const Run &run) {
            DeltaConvArgs a = recorded;
            a.threads = run.threads;
            active_kernels().delta_conv(a);
        });
    }

    void add(const Array &left, const Array &right, const Array &out) {
        keep({left, right, out}, std::nullopt);
        const AddArgs recorded{tensor<float>(left), tensor<float>(right),
                               static_cast<float *>(out.data()), static_cast<int64_t>(out.size()),
                               1};
        steps_.emplace_back([this, recorded](const Run &run) {
            AddArgs a = recorded;
            a.left = static_cast<const float *>(read(a.left, run));
            a.right = static_cast<const float *>(read(a.right, run));
            a.out = static_cast<float *>(write(a.out, run));
            a.threads = run.threads;
            active_kernels().add(a);
        });
    }

    void run(const Array &source, const Array &target, int threads) const {
        const Run run{source.data(), target.data(), threads};
        nb::gil_scoped_release release;
        for (const auto &step : steps_) step(run);
    }

  private:
    struct Run {
        const void *source;
        void *target;
        int threads;
    };

    const void *read(const void *recorded, const Run &run) const {
        if (recorded == source_.data()) return run.source;
        return recorded == target_.data() ? run.target : recorded;
    }
    void *write(void *recorded, const Run &run) const {
        return recorded == target_.data() ? run.target : recorded;
    }
    void keep(std::initializer_list<Array> tensors, const MaybeArray &bias) {
        kept_.insert(kept_.end(), tensors);
        if (bias) kept_.push_back(*bias);
    }

    Array source_, target_;
    std::vector<Array> kept_;
    std::vector<std::function<void(const Run &)>> steps_;
};

}  // namespace

void bind_weights(nb::module_ &m) {
    nb::class_<PanelWeight>(m, "PanelWeight")
        .def(nb::init<int64_t, Array, Array, Array, Array, Array>())
        .def("times", &PanelWeight::times);
    m.def("int8_spmm", &int8_spmm);
    m.def("nm_matmul", &nm_matmul);
    nb::class_<VectorWeight>(m, "VectorWeight")
        .def(nb::init<int, int64_t, Array, Array, Array, MaybeArray>(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg(), nb::arg(), nb::arg().none())
        .def(nb::init<int, int64_t, Array, MaybeArray>(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg().none())
        .def_ro("rows", &VectorWeight::rows)
        .def("times", &VectorWeight::times);
    m.def("sparse_linear", &sparse_linear);
    m.def("sddmm", &sddmm);
    m.def("depthwise_conv", &depthwise_conv);
    m.def("sparsegpt_sweep", &sparsegpt_sweep);
    m.def("mask_swaps", &mask_swaps);
    nb::class_<HeldImages>(m, "HeldImages").def(nb::init<Array, Array, Array>());
    nb::class_<DeltaConv>(m, "DeltaConv")
        .def(nb::init<Array, Array, Array, MaybeArray, const std::array<int64_t, 6> &, float, float,
                      float>());
    m.def("delta_conv", &delta_conv, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg());
    nb::class_<Program>(m, "Program")
        .def(nb::init<const Array &, const Array &>())
        .def("spmm", &Program::spmm)
        .def("depthwise_conv", &Program::depthwise_conv)
        .def("delta_conv", &Program::delta_conv, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
             nb::arg(), nb::arg())
        .def("add", &Program::add)
        .def("run", &Program::run);
    m.def("activation_sparse_matmul", &activation_sparse_matmul);
}

}  // namespace gossamer
