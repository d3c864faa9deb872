// The binding of a model's decode step: blocks, the keys that they attend to, and votes on those.
// Tensors come as addresses, which cross fastest.
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "vector_weight.hpp"

namespace gossamer {
namespace {

float *floats(uintptr_t address) { return reinterpret_cast<float *>(address); }

// Keys or values: address, and what lies between sequences, heads and tokens, in floats.
using Cache = std::array<int64_t, 4>;

View view(const Cache &c) { return {floats(static_cast<uintptr_t>(c[0])), c[1], c[2], c[3]}; }

// What one query a sequence and head attends to. A list of `width` tokens, the last ones -1,
// serves a sequence and a list head; list_heads == 0: every token.
struct KeyChoice {
    Cache keys, values;
    int64_t k_len;
    float scale;
    int64_t sink, local;
    uintptr_t key_start, ids;
    int64_t list_heads, width;
    uintptr_t cosine, sine;

    // query and out are [batch, heads, dim].
    void attend(const float *query, int64_t batch, int64_t heads, int64_t kv_heads, int64_t dim,
                float *out, int threads) const {
        AttentionArgs a{};
        a.query = {query, heads * dim, dim, dim};
        a.key = view(keys);
        a.value = view(values);
        a.out = {out, heads * dim, dim, dim};
        a.dtype = Dtype::float32;
        a.batch = batch;
        a.heads = heads;
        a.kv_heads = kv_heads;
        a.q_len = 1;
        a.k_len = k_len;
        a.dim = dim;
        a.list_heads = list_heads;
        a.groups = a.group = a.unit = 1;
        a.causal = true;
        a.scale = scale;
        a.sink = sink;
        a.local = local;
        a.key_start = reinterpret_cast<const int64_t *>(key_start);
        a.threads = threads;
        if (list_heads == 0) {
            active_kernels().block_sparse_attention(a);
            return;
        }
        const size_t lists = static_cast<size_t>(batch * list_heads);
        std::vector<int64_t> starts(lists), counts(lists, width);
        a.indices = reinterpret_cast<const int32_t *>(ids);
        for (size_t list = 0; list < lists; ++list) {
            starts[list] = static_cast<int64_t>(list) * width;
            const int32_t *tokens = a.indices + starts[list];
            while (counts[list] > 0 && tokens[counts[list] - 1] < 0) --counts[list];
        }
        a.starts = starts.data();
        a.counts = counts.data();
        a.cosine = floats(cosine);
        a.sine = floats(sine);
        active_kernels().gathered_attention(a);
    }

    // One new token a sequence, written behind the earlier ones.
    static HeadRows last(const Cache &c, int64_t k_len) {
        return {floats(static_cast<uintptr_t>(c[0])) + (k_len - 1) * c[3], c[1], c[2]};
    }
};

// Sequences that voted, and the keys that they scored.
using Voted = std::pair<int64_t, int64_t>;

// A vote on the keys of each sequence; token_vote describes it.
struct TokenVote {
    uintptr_t begin, undo_cosine, undo_sine;
    int64_t undo_stride;
    uintptr_t place_cosine, place_sine;
    float scale, threshold;
    bool fresh;
    uintptr_t last, tokens;
    int64_t width, sink, local;
    Cache copy;  // address 0: none
    int64_t copied;

    // query and attends are [batch, heads, dim].
    Voted cast(const float *query, const Cache &keys, int64_t k_len, int64_t batch, int64_t heads,
               int64_t kv_heads, int64_t dim, float *attends, int threads) const {
        Voted voted;
        TokenVoteArgs t{};
        t.keys.key = view(keys);
        t.keys.query_dtype = t.keys.dtype = Dtype::float32;
        t.copy = {reinterpret_cast<void *>(copy[0]), copy[1], copy[2], copy[3]};
        t.copied = copied;
        t.keys.batch = batch;
        t.keys.heads = heads;
        t.keys.dim = dim;
        t.keys.kv_heads = kv_heads;
        t.keys.k_len = k_len;
        t.keys.begin = reinterpret_cast<const int64_t *>(begin);
        t.keys.end = k_len - local;
        t.keys.scale = scale;
        t.keys.threads = threads;
        t.query = query;
        t.undo_cosine = floats(undo_cosine);
        t.undo_sine = floats(undo_sine);
        t.undo_stride = undo_stride;
        t.place_cosine = floats(place_cosine);
        t.place_sine = floats(place_sine);
        t.threshold = threshold;
        t.fresh = fresh;
        t.last = floats(last);
        t.tokens = reinterpret_cast<int32_t *>(tokens);
        t.width = width;
        t.sink = sink;
        t.local = local;
        t.attends = attends;
        t.due = &voted.first;
        t.scored = &voted.second;
        active_kernels().token_vote(t);
        return voted;
    }
};

Voted token_vote(const TokenVote &vote, uintptr_t query, const std::array<int64_t, 4> &shape,
                 const Cache &keys, int64_t kv_heads, int64_t k_len, uintptr_t attends,
                 int threads) {
    nb::gil_scoped_release release;
    return vote.cast(floats(query), keys, k_len, shape[0], shape[1], kv_heads, shape[3],
                     floats(attends), threads);
}

// What enters and leaves a block.
struct Tokens {
    const float *x;
    int64_t vectors;
    float *result;
    int threads;
};

struct Norm {
    uintptr_t weight;
    float eps;
};

// The position encoding of the tokens.
struct Angles {
    uintptr_t cos, sin;
    int64_t stride;
};

// The weights of a Llama block.
struct DecoderBlock {
    DecoderBlock(VectorWeight query, VectorWeight key, VectorWeight value, VectorWeight out,
                 VectorWeight gate, VectorWeight up, VectorWeight down, int64_t head)
        : query(query),
          key(key),
          value(value),
          out(out),
          gate(gate),
          up(up),
          down(down),
          head(head) {}

    void before(uintptr_t x, int64_t vectors, uintptr_t norm, float eps, uintptr_t cos,
                uintptr_t sin, int64_t angle_stride, uintptr_t q, const Cache &keys,
                const Cache &values, int64_t k_len, bool rotate_keys, int threads) const {
        const DecoderBlockArgs a =
            first({floats(x), vectors, floats(q), threads}, {norm, eps}, {cos, sin, angle_stride},
                  KeyChoice::last(keys, k_len), KeyChoice::last(values, k_len), true, rotate_keys);
        nb::gil_scoped_release release;
        active_kernels().before_attention(a);
    }

    void after(uintptr_t attended, uintptr_t x, int64_t vectors, uintptr_t norm, float eps,
               uintptr_t result, int threads) const {
        const DecoderBlockArgs a =
            second(floats(attended), {floats(x), vectors, floats(result), threads}, {norm, eps});
        nb::gil_scoped_release release;
        active_kernels().after_attention(a);
    }

    // Attends with one query a vector and head, then does what `after` does.
    void attend(uintptr_t q, const KeyChoice &choice, uintptr_t x, int64_t vectors, uintptr_t norm,
                float eps, uintptr_t result, int threads) const {
        std::vector<float> attended(static_cast<size_t>(vectors * query.rows));
        const DecoderBlockArgs a =
            second(attended.data(), {floats(x), vectors, floats(result), threads}, {norm, eps});
        nb::gil_scoped_release release;
        choice.attend(floats(q), vectors, heads(), kv_heads(), head, attended.data(), threads);
        active_kernels().after_attention(a);
    }

    int64_t heads() const { return query.rows / head; }
    int64_t kv_heads() const { return key.rows / head; }

    // What comes before attention; `tokens.result` is the query's.
    DecoderBlockArgs first(const Tokens &tokens, const Norm &norm, const Angles &angles,
                           const HeadRows &keys, const HeadRows &values, bool rotate_query,
                           bool rotate_keys) const {
        DecoderBlockArgs a = side(tokens, norm);
        const auto [x, vectors, result, threads] = tokens;
        a.query = query.product(vectors, out.rows, result, threads);
        a.key = key.product(vectors, out.rows, nullptr, threads);
        a.value = value.product(vectors, out.rows, nullptr, threads);
        a.cos = floats(angles.cos);
        a.sin = floats(angles.sin);
        a.angle_stride = angles.stride;
        a.head = head;
        a.keys = keys;
        a.values = values;
        a.rotate_query = rotate_query;
        a.rotate_keys = rotate_keys;
        return a;
    }

    DecoderBlockArgs second(const float *attended, const Tokens &tokens, const Norm &norm) const {
        DecoderBlockArgs a = side(tokens, norm);
        const auto [x, vectors, result, threads] = tokens;
        a.attended = attended;
        a.out = out.product(vectors, query.rows, result, threads);
        a.gate = gate.product(vectors, out.rows, nullptr, threads);
        a.up = up.product(vectors, out.rows, nullptr, threads);
        a.down = down.product(vectors, up.rows, nullptr, threads);
        return a;
    }

    static DecoderBlockArgs side(const Tokens &tokens, const Norm &norm) {
        DecoderBlockArgs a{};
        a.x = tokens.x;
        a.vectors = tokens.vectors;
        a.norm = floats(norm.weight);
        a.eps = norm.eps;
        return a;
    }

    VectorWeight query, key, value, out, gate, up, down;
    int64_t head;
};

// One token a sequence through a block whose keys are known, or voted for on the way. The block,
// the vote and what the addresses name have to outlive it. A vote meets queries as keys are kept.
struct BlockStep {
    BlockStep(const DecoderBlock &block, uintptr_t first_norm, float first_eps,
              uintptr_t second_norm, float second_eps, bool rotate_keys, const KeyChoice &choice,
              const TokenVote *vote)
        : block(&block),
          first{first_norm, first_eps},
          second{second_norm, second_eps},
          rotate_keys(rotate_keys),
          choice(choice),
          vote(vote) {}

    // `query`, `chosen` and `attended` are room for one vector each a token.
    Voted run(const Tokens &tokens, const Angles &angles, float *query, float *chosen,
              float *attended) const {
        const auto [x, vectors, result, threads] = tokens;
        active_kernels().before_attention(block->first(
            {x, vectors, query, threads}, first, angles, KeyChoice::last(choice.keys, choice.k_len),
            KeyChoice::last(choice.values, choice.k_len), vote == nullptr || rotate_keys,
            rotate_keys));
        const int64_t heads = block->heads(), kv_heads = block->kv_heads(), dim = block->head;
        Voted voted{0, 0};
        if (vote != nullptr) {
            voted = vote->cast(query, choice.keys, choice.k_len, vectors, heads, kv_heads, dim,
                               chosen, threads);
            query = chosen;
        }
        choice.attend(query, vectors, heads, kv_heads, dim, attended, threads);
        active_kernels().after_attention(block->second(attended, tokens, second));
        return voted;
    }

    const DecoderBlock *block;
    Norm first, second;
    bool rotate_keys;
    KeyChoice choice;
    const TokenVote *vote;
};

// x through block after block, to result; [vectors, width] both.
std::vector<Voted> run_steps(const std::vector<const BlockStep *> &steps, uintptr_t x,
                             int64_t vectors, uintptr_t cos, uintptr_t sin, int64_t angle_stride,
                             uintptr_t result, int threads) {
    nb::gil_scoped_release release;
    int64_t heads = 0;
    for (const BlockStep *step : steps) heads = std::max(heads, step->block->query.rows);
    const size_t room = static_cast<size_t>(vectors * heads);
    const size_t width = static_cast<size_t>(vectors * steps.front()->block->out.rows);
    std::vector<float> query(room), chosen(room), attended(room), spare(width);
    // A block may not write over what it reads: they take turns, and the last one writes result.
    const float *from = floats(x);
    std::vector<Voted> voted;
    for (size_t i = 0; i < steps.size(); ++i) {
        float *to = (steps.size() - i) % 2 == 1 ? floats(result) : spare.data();
        voted.push_back(steps[i]->run({from, vectors, to, threads}, {cos, sin, angle_stride},
                                      query.data(), chosen.data(), attended.data()));
        from = to;
    }
    return voted;
}

}  // namespace

void bind_decoder(nb::module_ &m) {
    nb::class_<KeyChoice>(m, "KeyChoice")
        .def(nb::new_([](const Cache &keys, const Cache &values, int64_t k_len, float scale,
                         int64_t sink, int64_t local, uintptr_t key_start, uintptr_t ids,
                         int64_t list_heads, int64_t width, uintptr_t cosine, uintptr_t sine) {
            return KeyChoice{keys,      values, k_len,      scale, sink,   local,
                             key_start, ids,    list_heads, width, cosine, sine};
        }));
    nb::class_<TokenVote>(m, "TokenVote")
        .def(nb::new_([](uintptr_t begin, uintptr_t undo_cosine, uintptr_t undo_sine,
                         int64_t undo_stride, uintptr_t place_cosine, uintptr_t place_sine,
                         float scale, float threshold, bool fresh, uintptr_t last, uintptr_t tokens,
                         int64_t width, int64_t sink, int64_t local, const Cache &copy,
                         int64_t copied) {
            return TokenVote{begin, undo_cosine, undo_sine, undo_stride, place_cosine, place_sine,
                             scale, threshold,   fresh,     last,        tokens,       width,
                             sink,  local,       copy,      copied};
        }))
        .def_rw("fresh", &TokenVote::fresh)
        .def_rw("copied", &TokenVote::copied);
    nb::class_<DecoderBlock>(m, "DecoderBlock")
        .def(nb::init<VectorWeight, VectorWeight, VectorWeight, VectorWeight, VectorWeight,
                      VectorWeight, VectorWeight, int64_t>())
        .def("before", &DecoderBlock::before)
        .def("after", &DecoderBlock::after)
        .def("attend", &DecoderBlock::attend);
    nb::class_<BlockStep>(m, "BlockStep")
        .def(nb::init<const DecoderBlock &, uintptr_t, float, uintptr_t, float, bool,
                      const KeyChoice &, const TokenVote *>(),
             nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg().none(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 9>())
        .def_prop_rw(
            "k_len", [](const BlockStep &step) { return step.choice.k_len; },
            [](BlockStep &step, int64_t k_len) { step.choice.k_len = k_len; });
    m.def("run_steps", &run_steps);
    m.def("token_vote", &token_vote);
}

}  // namespace gossamer
