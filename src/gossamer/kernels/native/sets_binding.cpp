// The binding of the kernels of token sets.
#include <nanobind/stl/optional.h>

#include "binding.hpp"

namespace gossamer {
namespace {

TokenView tokens(const Array &t) {
    return {static_cast<float *>(t.data()), t.stride(0), t.stride(1)};
}

SetAttentionArgs set_args(const Array &query, const Array &key, const Array &value,
                          const Array &indices, const Array &repeated, float scale, int threads) {
    SetAttentionArgs a{};
    a.query = tokens(query);
    a.key = tokens(key);
    a.value = tokens(value);
    a.indices = static_cast<const int64_t *>(indices.data());
    a.repeated = static_cast<const uint8_t *>(repeated.data());
    a.sets = static_cast<int64_t>(indices.shape(0));
    a.size = static_cast<int64_t>(indices.shape(1));
    a.heads = static_cast<int64_t>(query.shape(0));
    a.dim = static_cast<int64_t>(query.shape(2));
    a.scale = scale;
    a.threads = threads;
    return a;
}

void set_attention(const Array &query, const Array &key, const Array &value, const Array &indices,
                   const Array &repeated, float scale, const Array &out, int threads) {
    SetAttentionArgs a = set_args(query, key, value, indices, repeated, scale, threads);
    a.out = tokens(out);
    nb::gil_scoped_release release;
    active_kernels().set_attention(a);
}

void set_attention_backward(const Array &grad, const Array &query, const Array &key,
                            const Array &value, const Array &indices, const Array &repeated,
                            float scale, const Array &query_grad, const Array &key_grad,
                            const Array &value_grad, int threads) {
    SetAttentionArgs a = set_args(query, key, value, indices, repeated, scale, threads);
    a.grad = tokens(grad);
    a.query_grad = tokens(query_grad);
    a.key_grad = tokens(key_grad);
    a.value_grad = tokens(value_grad);
    nb::gil_scoped_release release;
    active_kernels().set_attention_backward(a);
}

// Without room for the slots it counts the sets.
int64_t balanced_sets(const Array &groups, const Array &keys, int64_t span, int64_t size,
                      const MaybeArray &indices, const MaybeArray &repeated) {
    int64_t count = 0;
    BalancedSetsArgs a{};
    a.groups = static_cast<const int64_t *>(groups.data());
    a.keys = static_cast<const int64_t *>(keys.data());
    a.orders = static_cast<int64_t>(keys.shape(0));
    a.tokens = static_cast<int64_t>(keys.shape(1));
    a.span = span;
    a.size = size;
    a.sets = indices ? static_cast<int64_t>(indices->shape(1)) : 0;
    a.count = indices ? nullptr : &count;
    a.indices = data<int64_t>(indices);
    a.repeated = data<uint8_t>(repeated);
    nb::gil_scoped_release release;
    active_kernels().balanced_sets(a);
    return count;
}

}  // namespace

void bind_sets(nb::module_ &m) {
    m.def("set_attention", &set_attention);
    m.def("set_attention_backward", &set_attention_backward);
    m.def("balanced_sets", &balanced_sets);
}

}  // namespace gossamer
