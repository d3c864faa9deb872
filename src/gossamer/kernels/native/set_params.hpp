// Plain records of the kernels of token sets; see params.hpp for the rules.
#pragma once
#include <cstdint>

namespace gossamer {

// A strided [heads, tokens, dim] tensor of float32; strides in elements, dim contiguous.
struct TokenView {
    float *data;
    int64_t head, token;
};

// Attention inside sets of tokens. Every token is in exactly one slot that is not repeated.
struct SetAttentionArgs {
    TokenView query, key, value;  // read only
    const int64_t *indices;       // [sets, size]
    const uint8_t *repeated;      // [sets, size]
    int64_t sets, size, heads, dim;
    float scale;
    TokenView out;                               // forward
    TokenView grad;                              // backward, read only: of the output
    TokenView query_grad, key_grad, value_grad;  // backward
    int threads;
};

// Dealing ranked tokens of groups out to sets of one size.
struct BalancedSetsArgs {
    const int64_t *groups;  // [tokens]
    const int64_t *keys;    // [orders, tokens], 0 .. span - 1: the rank order within a group
    int64_t orders, tokens, span, size, sets;
    int64_t *count;     // out: sets needed; nullptr: fill the slots
    int64_t *indices;   // out [orders, sets, size]
    uint8_t *repeated;  // out [orders, sets, size]
};

}  // namespace gossamer

// clang-format off
#define GOSSAMER_SET_KERNELS(entry)                  \
    entry(set_attention, SetAttentionArgs)           \
    entry(set_attention_backward, SetAttentionArgs)  \
    entry(balanced_sets, BalancedSetsArgs)
// clang-format on
