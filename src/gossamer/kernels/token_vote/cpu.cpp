// TokenSelect's decode step: each sequence keeps the tokens that it voted for last while its query
// points the same way, and else scores its keys, counts votes and takes the top.
#include "../native/engine.hpp"

extern "C" float sqrtf(float);

namespace gossamer::GOSSAMER_ISA {

void paged_dot(const PagedDotArgs &);
void soft_votes(const SoftVotesArgs &);
void top_indices(const TopIndicesArgs &);

namespace {

float dot(const float *a, const float *b, int64_t count) {
    Vec sums{};
    int64_t i = 0;
    for (; i + W <= count; i += W) sums += load(a + i) * load(b + i);
    float total = sum(sums);
    for (; i < count; ++i) total += a[i] * b[i];
    return total;
}

// The query of one sequence as it votes, and as it attends.
void place(const TokenVoteArgs &t, int64_t b, float *bare, float *voter, float *attends) {
    const int64_t dim = t.keys.dim, half = dim / 2;
    for (int64_t h = 0; h < t.keys.heads; ++h, voter += dim, attends += dim) {
        const float *query = t.query + (b * t.keys.heads + h) * dim;
        if (t.undo_cosine != nullptr) {
            rotate_pairs(query, t.undo_cosine + b * t.undo_stride, t.undo_sine + b * t.undo_stride,
                         half, bare);
            query = bare;
        }
        if (t.place_cosine == nullptr) {
            memcpy(voter, query, sizeof(float) * static_cast<size_t>(dim));
            memcpy(attends, query, sizeof(float) * static_cast<size_t>(dim));
            continue;
        }
        rotate_pairs(query, t.place_cosine, t.place_sine, half, voter);
        rotate_pairs(query, t.place_cosine + half, t.place_sine + half, half, attends);
    }
}

// The copy learns the candidates that it lacks.
void copy_keys(const TokenVoteArgs &t) {
    const PagedDotArgs &keys = t.keys;
    const int64_t rows = keys.batch * keys.kv_heads;
    const int threads = keys.end - t.copied > 64 ? keys.threads : 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t b = row / keys.kv_heads, head = row % keys.kv_heads;
        const float *from =
            static_cast<const float *>(keys.key.data) + b * keys.key.batch + head * keys.key.head;
        uint16_t *to = static_cast<uint16_t *>(t.copy.data) + b * t.copy.batch + head * t.copy.head;
        for (int64_t token = t.copied; token < keys.end; ++token) {
            const float *key = from + token * keys.key.token;
            uint16_t *half = to + token * t.copy.token;
            int64_t d = 0;
            for (; d + W <= keys.dim; d += W) store(half + d, load(key + d));
            for (; d < keys.dim; ++d) put(half + d, key[d]);
        }
    }
}

}  // namespace

void token_vote(const TokenVoteArgs &t) {
    const PagedDotArgs &keys = t.keys;
    const int64_t width = keys.heads * keys.dim;
    const int64_t k = t.width - t.sink - t.local;
    Scratch scratch(sizeof(float) *
                        static_cast<size_t>(width + keys.dim + (keys.heads + 1) * keys.k_len) +
                    4 * 64);
    float *voter = scratch.take<float>(width), *bare = scratch.take<float>(keys.dim);
    float *scores = scratch.take<float>(keys.heads * keys.k_len);
    float *votes = scratch.take<float>(keys.k_len);
    *t.due = *t.scored = 0;
    bool copied = t.copy.data == nullptr;
    for (int64_t b = 0; b < keys.batch; ++b) {
        place(t, b, bare, voter, t.attends + b * width);
        float *last = t.last + b * width;
        int32_t *tokens = t.tokens + b * t.width;
        for (int64_t i = 0; i < t.local; ++i)
            tokens[t.width - t.local + i] = static_cast<int32_t>(keys.k_len - t.local + i);
        if (!t.fresh) {
            const float cosine =
                dot(voter, last, width) / sqrtf(dot(voter, voter, width) * dot(last, last, width));
            const float within = cosine > 1.0f ? 1.0f : cosine < -1.0f ? -1.0f : cosine;
            if (within >= t.threshold) continue;  // NaN votes
        }
        if (!copied) copy_keys(t);
        copied = true;
        PagedDotArgs own = keys;
        own.query = {voter, 0, keys.dim, keys.dim};
        own.key.data = static_cast<const float *>(keys.key.data) + b * keys.key.batch;
        if (t.copy.data != nullptr) {
            own.key = {static_cast<const uint16_t *>(t.copy.data) + b * t.copy.batch, 0,
                       t.copy.head, t.copy.token};
            own.dtype = Dtype::bfloat16;
        }
        own.batch = 1;
        own.begin = keys.begin + b;
        own.scores = scores;
        paged_dot(own);
        soft_votes({scores, 1, keys.heads, keys.k_len, votes, keys.threads});
        top_indices({votes, 1, keys.k_len, k, tokens + t.sink, keys.threads});
        memcpy(last, voter, sizeof(float) * static_cast<size_t>(width));
        ++*t.due;
        *t.scored += keys.end - keys.begin[b];
    }
}

}  // namespace gossamer::GOSSAMER_ISA
