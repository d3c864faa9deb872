// AnchorAttention's search: pooled queries against every key before the group, kept as one
// bit a (group, key) when any pooled row of the group reaches its threshold.
#include "../native/engine.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

template <class T>
void run(const StripeSearchArgs &s) {
    AttentionArgs a{};  // the engine reads dims and strides only
    a.key = a.value = s.key;
    a.dim = s.dim;
    a.k_len = s.k_len;
    const int64_t heads = s.heads / s.kv_heads;
#pragma omp parallel num_threads(s.threads)
    {
        const FloatEngine<T> engine(a);
        Scratch scratch(static_cast<size_t>(s.step * 64 + engine.key_cells(64) + 32 * s.dim) * 4 +
                        256);
        float *keys = scratch.take<float>(engine.key_cells(64));
        float *scores = scratch.take<float>(s.step * 64);
        float *spare = scratch.take<float>(32 * s.dim);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < s.batch * s.kv_heads * s.words; ++task) {
            const int64_t b = task / s.words / s.kv_heads, kv_head = task / s.words % s.kv_heads;
            const int64_t word = task % s.words, first = word * 64;
            const int64_t count = min64(64, s.k_len - first), columns = round_up(count, 16);
            bool packed = false;
            for (int64_t g = 0; g < s.groups; ++g) {
                const int64_t begin = max64(s.begin[b * s.groups + g], first);
                const int64_t end = min64(s.end[b * s.groups + g], first + count);
                if (begin >= end) continue;
                if (!packed)
                    engine.pack_keys(Rows<T>::head(a, b, kv_head).run(first), count, columns, keys,
                                     spare);
                packed = true;
                const int64_t from = g * s.step, rows = min64(s.step, s.rows - from);
                for (int64_t h = kv_head * heads; h < (kv_head + 1) * heads; ++h) {
                    const int64_t row = (b * s.heads + h) * s.rows + from;
                    multiply(rows, columns, s.dim, s.pooled + row * s.dim, s.dim, keys, columns,
                             scores, 64);
                    uint64_t bits = 0;
                    for (int64_t j = begin - first; j < end - first; ++j) {
                        bool hit = false;
                        for (int64_t r = 0; r < rows; ++r)
                            hit |= scores[r * 64 + j] >= s.threshold[row + r];
                        bits |= static_cast<uint64_t>(hit) << j;
                    }
                    const int64_t list = h * s.list_heads / s.heads;
#pragma omp atomic  // key heads may share a list
                    s.hits[((b * s.list_heads + list) * s.groups + g) * s.words + word] |= bits;
                }
            }
        }
    }
}

}  // namespace

void stripe_search(const StripeSearchArgs &s) {
    s.dtype == Dtype::float32 ? run<float>(s) : run<uint16_t>(s);
}

}  // namespace gossamer::GOSSAMER_ISA
