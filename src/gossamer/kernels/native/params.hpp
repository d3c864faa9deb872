// Plain records that cross from the binding to the per-instruction-set kernels.
// Nothing here may own memory or hold inline code: this header is compiled once per
// instruction set, and the linker keeps one copy of anything shared.
#pragma once
#include <cstdint>

#include "image_params.hpp"
#include "set_params.hpp"
#include "walk_params.hpp"
#include "weight_params.hpp"

namespace gossamer {

// A strided [batch, head, token, dim] tensor; strides in elements, dim contiguous.
struct View {
    const void *data;
    int64_t batch, head, token;
};

struct MutableView {
    void *data;
    int64_t batch, head, token;
};

// Softmax in progress, float32: max and sum are [B, H, Nq], acc is [B, H, Nq, D].
struct State {
    float *max, *sum, *acc;
};

// Attention over lists of keys. A list row serves `group` consecutive queries of
// the heads that share it and names units of `unit` consecutive keys.
struct AttentionArgs {
    View query, key, value;
    MutableView out;  // data == nullptr: leave the result in `state_out`
    Dtype dtype;
    int64_t batch, heads, kv_heads, q_len, k_len, dim;

    const int64_t *starts;   // [batch * list_heads * groups]; nullptr: every unit
    const int64_t *counts;   // same shape
    const int32_t *indices;  // ascending within a row
    int64_t list_heads, groups, group, unit;

    bool causal;
    float scale;
    int64_t sink, local;         // sinks count from the first real key; local == 0: no window
    const int64_t *key_start;    // [batch] first real key, or nullptr
    const float *cosine, *sine;  // [rank, dim / 2]: rotate each key by its rank, or nullptr

    State state_in, state_out;  // max == nullptr: absent
    float *lse;                 // [batch, heads, q_len] or nullptr
    int threads;
};

// Tree search for the keys with the largest products (HiP attention).
struct TreeSearchArgs {
    View query, key;
    Dtype dtype;
    int64_t batch, heads, kv_heads, q_len, k_len, dim;
    int64_t search_heads;  // heads, or kv_heads when a group of heads shares one search
    int64_t groups, block_q, block_k, nodes, window, sink, query_stride;
    int representative;  // 0 first, 1 mid, 2 random
    uint64_t seed;
    const int64_t *key_start;  // [batch] or nullptr
    int64_t channels;          // query channels used in a score; dim for all
    int64_t width;
    int32_t *indices;  // out [batch, search_heads, groups, width] ascending tokens, -1 padded
    int64_t *scored;   // out [batch, search_heads, groups] key blocks scored
    int threads;
};

// Rotary position encoding of every vector by its token's angles.
struct RotateArgs {
    View vectors, cosine, sine;  // the tables are half as wide; strides of 0 share them
    void *out;                   // [batch, heads, tokens, dim], contiguous
    Dtype dtype;
    int64_t batch, heads, tokens, dim;
    int threads;
};

// Query-key products of one query a head with every key of [begin, end).
struct PagedDotArgs {
    View query, key;
    Dtype query_dtype, dtype;  // dtype: of the keys
    int64_t batch, heads, kv_heads, k_len, dim, end;
    const int64_t *begin;  // [batch]
    float scale;
    float *scores;  // out [batch, heads, k_len]; -inf outside the range
    int threads;
};

// values[row] -> votes: sum over heads of softmax(scores).
struct SoftVotesArgs {
    const float *scores;  // [batch, heads, k_len]
    int64_t batch, heads, k_len;
    float *votes;  // out [batch, k_len]; -inf where no head has a score
    int threads;
};

// The k largest values of each row, as ascending positions; ties go to the lower position.
struct TopIndicesArgs {
    const float *values;  // [rows, columns]
    int64_t rows, columns, k;
    int32_t *indices;  // out [rows, k]
    int threads;
};

// One decode step of TokenSelect; kernels/token_vote describes it.
struct TokenVoteArgs {
    PagedDotArgs keys;   // `begin` and `end` bound the candidates; query and scores are not used
    MutableView copy;    // bfloat16 keys, scored in their place; data == nullptr: none
    int64_t copied;      // tokens that the copy has
    const float *query;  // [batch, heads, dim]
    const float *undo_cosine, *undo_sine;    // [batch or 1, dim / 2] or nullptr
    int64_t undo_stride;                     // between sequences
    const float *place_cosine, *place_sine;  // [2, dim / 2] or nullptr
    float threshold;
    bool fresh;       // nobody has voted yet
    float *last;      // [batch, heads, dim] the queries that voted
    int32_t *tokens;  // [batch, width]: sinks, voted tokens, recent ones
    int64_t width, sink, local;
    float *attends;         // out [batch, heads, dim]
    int64_t *due, *scored;  // out: sequences that voted, keys that they scored
};

// Keys whose pooled product reaches the pooled threshold (AnchorAttention).
struct StripeSearchArgs {
    View key;
    Dtype dtype;
    const float *pooled;     // [batch, heads, rows, dim], contiguous
    const float *threshold;  // [batch, heads, rows]: keep when pooled . key >= threshold
    int64_t batch, heads, kv_heads, list_heads, rows, dim, k_len;
    int64_t step, groups;        // pooled rows a group, groups = ceil(rows / step)
    const int64_t *begin, *end;  // [batch, groups] searched key range
    uint64_t *hits;              // out [batch, list_heads, groups, words], zeroed by the caller
    int64_t words;               // ceil(k_len / 64)
    int threads;
};

}  // namespace gossamer

// clang-format off
// Entry points: name, record.
#define GOSSAMER_KERNELS(entry)                  \
    entry(block_sparse_attention, AttentionArgs) \
    entry(gathered_attention, AttentionArgs)     \
    entry(tree_search, TreeSearchArgs)           \
    entry(rotate, RotateArgs)                    \
    entry(paged_dot, PagedDotArgs)               \
    entry(soft_votes, SoftVotesArgs)             \
    entry(top_indices, TopIndicesArgs)           \
    entry(token_vote, TokenVoteArgs)             \
    entry(stripe_search, StripeSearchArgs)       \
    entry(random_walks, RandomWalksArgs)         \
    GOSSAMER_SET_KERNELS(entry)                  \
    GOSSAMER_IMAGE_KERNELS(entry)                \
    GOSSAMER_WEIGHT_KERNELS(entry)
// clang-format on

namespace gossamer {

// One table of entry points for each instruction set.
struct Kernels {
#define GOSSAMER_ENTRY(name, Args) void (*name)(const Args &);
    GOSSAMER_KERNELS(GOSSAMER_ENTRY)
#undef GOSSAMER_ENTRY
};

}  // namespace gossamer
