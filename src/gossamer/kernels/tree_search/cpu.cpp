// HiP's search: K nodes tile the keys before the window; every round halves each node,
// scores each half by one representative key block and keeps the K best halves.
#include "../native/amx.hpp"
#include "../native/mix.hpp"
#include "../native/select.hpp"
#include "../native/stream.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t PANEL = 64;  // representative tokens scored together

struct Node {
    int64_t start, size;
};

int64_t representative(const TreeSearchArgs &t, Node node, uint64_t salt) {
    if (t.representative == 0) return node.start;
    if (t.representative == 1) return node.start + node.size / 2;
    const uint64_t size = static_cast<uint64_t>(node.size);
    const uint64_t drawn = mix(mix(salt ^ static_cast<uint64_t>(node.start)) ^ size);
    return node.start + static_cast<int64_t>(drawn % size);
}

// The channels with the largest sum of |q| over the sampled rows, ascending.
void pick_channels(const float *query, int64_t rows, int64_t dim, int64_t count, int32_t *channels,
                   uint64_t *keys, uint64_t *ordered) {
    for (int64_t d = 0; d < dim; ++d) {
        float total = 0.0f;
        for (int64_t r = 0; r < rows; ++r) total += __builtin_fabsf(query[r * dim + d]);
        keys[d] = ordered[d] = rank_key(total, static_cast<uint32_t>(d));
    }
    const uint64_t last = kth_key(keys, dim, count);
    for (int64_t d = 0, n = 0; d < dim; ++d)
        if (ordered[d] <= last) channels[n++] = static_cast<int32_t>(d);
}

template <class Engine>
void run(const TreeSearchArgs &t) {
    using Input = typename Engine::Input;
    using Cell = typename Engine::Cell;
    AttentionArgs a{};  // the engine reads dims, strides and nothing else
    a.query = t.query;
    a.key = a.value = t.key;
    a.batch = t.batch;
    a.heads = t.heads;
    a.kv_heads = t.kv_heads;
    a.q_len = t.q_len;
    a.k_len = t.k_len;
    a.dim = t.dim;
    const int64_t heads_a_search = t.heads / t.search_heads;
    const int64_t first_sample = t.query_stride / 2;
    const int64_t most_rows =
        round_up(heads_a_search * ceil_div(t.block_q, t.query_stride), 32) + 32;
    const int64_t children = 2 * t.nodes;
    const bool subset = t.channels < t.dim;
#pragma omp parallel num_threads(t.threads)
    {
        const Engine engine(a);
        Scratch scratch(static_cast<size_t>(
            most_rows * (PANEL + t.dim) * 4 + engine.query_cells(most_rows) * 4 +
            engine.key_cells(PANEL) * 4 + (128 + PANEL) * round_up(t.dim, 32) * 4 +
            children * (2 * 16 + 3 * 8 + 4) + t.dim * 24 + 8192));
        Cell *query = scratch.take<Cell>(engine.query_cells(most_rows));
        Cell *keys = scratch.take<Cell>(engine.key_cells(PANEL));
        float *plain = scratch.take<float>(most_rows * t.dim);
        float *scores = scratch.take<float>(most_rows * PANEL);
        float *spare = scratch.take<float>(32 * round_up(t.dim, 32));
        Node *nodes = scratch.take<Node>(children), *halves = scratch.take<Node>(children);
        uint64_t *rank = scratch.take<uint64_t>(children);
        uint64_t *ordered = scratch.take<uint64_t>(children);
        float *best = scratch.take<float>(children);
        int32_t *channels = scratch.take<int32_t>(t.dim);
        uint64_t *channel_rank = scratch.take<uint64_t>(2 * t.dim);
        float *few = scratch.take<float>(PANEL * round_up(t.dim, 32));

#pragma omp for schedule(dynamic, 1)
        for (int64_t task = t.batch * t.search_heads * t.groups - 1; task >= 0; --task) {
            const int64_t g = task % t.groups;
            const int64_t head = task / t.groups % t.search_heads;
            const int64_t b = task / t.groups / t.search_heads;
            int32_t *out = t.indices + task * t.width;
            const int64_t first_row = g * t.block_q;
            const int64_t rows = min64(t.block_q, t.q_len - first_row);
            const int64_t end = first_row + rows + t.k_len - t.q_len;
            const int64_t base = t.key_start == nullptr ? 0 : min64(t.key_start[b], end);
            const int64_t span = max64(0, end - t.window - base);  // tokens searched
            const int64_t blocks = ceil_div(span, t.block_k);
            int64_t n = min64(t.nodes, blocks), scored = 0;
            for (int64_t j = 0; j < n; ++j) {
                nodes[j].start = blocks * j / n;
                nodes[j].size = blocks * (j + 1) / n - nodes[j].start;
            }
            if (blocks > t.nodes) {
                const int64_t step = rows > first_sample ? t.query_stride : rows;
                const int64_t from = rows > first_sample ? first_sample : rows - 1;
                int64_t sampled = 0;
                for (int64_t h = 0; h < heads_a_search; ++h)
                    for (int64_t r = from; r < rows; r += step, ++sampled) {
                        const Input *row = static_cast<const Input *>(t.query.data) +
                                           b * t.query.batch +
                                           (head * heads_a_search + h) * t.query.head +
                                           (first_row + r) * t.query.token;
                        for (int64_t d = 0; d < t.dim; ++d)
                            plain[sampled * t.dim + d] = scalar(row[d]);
                    }
                int64_t depth = t.dim;
                if constexpr (sizeof(Cell) == sizeof(float)) {
                    if (subset) {
                        depth = t.channels;
                        pick_channels(plain, sampled, t.dim, depth, channels, channel_rank,
                                      channel_rank + t.dim);
                        for (int64_t r = 0; r < sampled; ++r)
                            for (int64_t c = 0; c < depth; ++c)
                                query[r * depth + c] = plain[r * t.dim + channels[c]];
                    } else {
                        memcpy(query, plain, static_cast<size_t>(sampled * t.dim) * 4);
                    }
                } else {
                    memset(query, 0, static_cast<size_t>(engine.query_cells(sampled)) * 2);
                    const int64_t row_cells = engine.query_cells(32) / 32;
                    for (int64_t r = 0; r < sampled; ++r)
                        for (int64_t d = 0; d < t.dim; ++d)
                            query[r * row_cells + d] = narrow(plain[r * t.dim + d]);
                }
                const auto source = Rows<Input>::head(a, b, head * t.kv_heads / t.search_heads);
                // Neither batch nor padding nor chunk: a sequence draws alike wherever it sits.
                const uint64_t salt = mix(mix(mix(t.seed) ^ static_cast<uint64_t>(head)) ^
                                          static_cast<uint64_t>(span));
                for (int64_t reach = t.nodes; reach < blocks; reach *= 2) {
                    int64_t m = 0;
                    for (int64_t j = 0; j < n; ++j) {
                        const int64_t left = nodes[j].size / 2;
                        if (left > 0) halves[m++] = {nodes[j].start, left};
                        halves[m++] = {nodes[j].start + left, nodes[j].size - left};
                    }
                    scored += m;
                    const int64_t a_panel = PANEL / t.block_k;
                    for (int64_t j = 0; j < m; j += a_panel) {
                        const int64_t here = min64(a_panel, m - j);
                        int32_t tokens[PANEL];
                        for (int64_t c = 0; c < here * t.block_k; ++c) {
                            const int64_t block =
                                representative(t, halves[j + c / t.block_k], salt);
                            tokens[c] = static_cast<int32_t>(
                                base + min64(block * t.block_k + c % t.block_k, span - 1));
                        }
                        const int64_t columns = Engine::padded(here * t.block_k);
                        engine.pack_keys(source.list(tokens, 0), here * t.block_k, columns, keys,
                                         spare);
                        if constexpr (sizeof(Cell) == sizeof(float)) {
                            const float *panel = keys;
                            if (subset) {
                                for (int64_t c = 0; c < depth; ++c)
                                    memcpy(few + c * columns, keys + channels[c] * columns,
                                           static_cast<size_t>(columns) * 4);
                                panel = few;
                            }
                            multiply(sampled, columns, depth, query, depth, panel, columns, scores,
                                     PANEL);
                        } else {
                            engine.scores(query, sampled, keys, columns, scores, PANEL);
                        }
                        for (int64_t c = 0; c < columns; c += W) {
                            Vec top = load(scores + c);
                            for (int64_t r = 1; r < sampled; ++r)
                                top = maximum(top, load(scores + r * PANEL + c));
                            store(scores + c, top);
                        }
                        for (int64_t c = 0; c < here; ++c) {
                            float top = scores[c * t.block_k];
                            for (int64_t i = 1; i < t.block_k; ++i)
                                if (scores[c * t.block_k + i] > top)
                                    top = scores[c * t.block_k + i];
                            best[j + c] = top;
                        }
                    }
                    for (int64_t j = 0; j < m; ++j)
                        rank[j] = ordered[j] = rank_key(best[j], static_cast<uint32_t>(j));
                    const uint64_t last = m > t.nodes ? kth_key(rank, m, t.nodes) : ~0ull;
                    n = 0;
                    for (int64_t j = 0; j < m; ++j)
                        if (ordered[j] <= last) nodes[n++] = halves[j];
                }
            }
            t.scored[task] = scored;
            // Sinks, selected blocks and the window, each token once.
            int64_t used = 0, next = base;
            for (const int64_t stop = base + min64(t.sink, span); next < stop; ++next)
                out[used++] = static_cast<int32_t>(next);
            for (int64_t j = 0; j < n; ++j)
                for (int64_t i = nodes[j].start * t.block_k;
                     i < min64(span, (nodes[j].start + nodes[j].size) * t.block_k); ++i)
                    if (base + i >= next) out[used++] = static_cast<int32_t>(base + i);
            for (int64_t i = base + span; i < end; ++i) out[used++] = static_cast<int32_t>(i);
            while (used < t.width) out[used++] = -1;
        }
    }
}

}  // namespace

void tree_search(const TreeSearchArgs &t) {
    if (t.dtype == Dtype::float32) {
        run<FloatEngine<float>>(t);
        return;
    }
#if defined(__AMX_BF16__)
    if (t.channels == t.dim) {
        run<TileEngine>(t);
        return;
    }
#endif
    run<FloatEngine<uint16_t>>(t);
}

}  // namespace gossamer::GOSSAMER_ISA
