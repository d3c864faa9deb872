// Gathered attention: the listed keys of a query group are packed chunk by chunk, and
// every query row of every head that shares the list meets each packed chunk once.
#include "../native/amx.hpp"
#include "../native/stream.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t GROUP_ROWS = 512;  // queries of one head a task holds in flight

template <class Engine>
void run(const AttentionArgs &a) {
    using Input = typename Engine::Input;
    using Cell = typename Engine::Cell;
    using Probability = typename Engine::Probability;
    const Sharing sharing(a);
    const int64_t pieces = ceil_div(min64(a.group, a.q_len), GROUP_ROWS);
    const int64_t groups = ceil_div(a.q_len, a.group);
    const int64_t tasks = a.batch * sharing.sets * groups * pieces;
    const int64_t held = min64(GROUP_ROWS, round_up(min64(a.group, a.q_len), TILE_ROWS));
    const int64_t rows = sharing.heads * held;  // rows in flight, each head padded to whole tiles
    constexpr int64_t stride = row_stride(CHUNK, sizeof(float));
    constexpr int64_t p_stride = row_stride(CHUNK, sizeof(Probability));
#pragma omp parallel num_threads(a.threads)
    {
        const Engine engine(a);
        const int64_t width = engine.acc_stride();
        Scratch scratch(
            static_cast<size_t>(rows * (width * 4 + 16) + TILE_ROWS * (stride * 4 + p_stride * 2) +
                                engine.query_cells(rows) * 4 +
                                (engine.key_cells(CHUNK) + engine.value_cells(CHUNK)) * 4 +
                                128 * round_up(a.dim, 32) + 2048));
        float *acc = scratch.take<float>(rows * width);
        float *max = scratch.take<float>(rows), *sum = scratch.take<float>(rows);
        float *scores = scratch.take<float>(TILE_ROWS * stride);
        Probability *p = reinterpret_cast<Probability *>(scores);
        if (sizeof(Probability) != sizeof(float))
            p = scratch.take<Probability>(TILE_ROWS * p_stride);
        Cell *query = scratch.take<Cell>(engine.query_cells(rows));
        Cell *keys = scratch.take<Cell>(engine.key_cells(CHUNK));
        Cell *values = scratch.take<Cell>(engine.value_cells(CHUNK));
        const Cell *const held_values = values;
        float *spare = scratch.take<float>(32 * round_up(a.dim, 32));
        memset(acc, 0, static_cast<size_t>(rows * width) * 4);
        if (sizeof(Probability) != sizeof(float))
            memset(p, 0, static_cast<size_t>(TILE_ROWS * p_stride) * sizeof(Probability));

#pragma omp for schedule(dynamic, 1)
        for (int64_t task = tasks - 1; task >= 0; --task) {
            const int64_t piece = task % pieces, g = task / pieces / sharing.sets % groups;
            const int64_t set = task / pieces % sharing.sets;
            const int64_t b = task / pieces / sharing.sets / groups;
            const int64_t first_row = g * a.group + piece * GROUP_ROWS;
            const int64_t last_row =
                min64(min64(a.q_len, (g + 1) * a.group), first_row + GROUP_ROWS);
            if (first_row >= last_row) continue;
            auto tile_at = [&](int64_t head, int64_t row) {
                const int64_t slot = head * held + row - first_row;
                return Tile{static_cast<int>(min64(TILE_ROWS, last_row - row)),
                            row + a.k_len - a.q_len,
                            width,
                            max + slot,
                            sum + slot,
                            acc + slot * width};
            };
            auto query_at = [&](int64_t head, int64_t row) {
                return query + (head * held + row - first_row) * (engine.query_cells(32) / 32);
            };
            for (int64_t head = 0; head < sharing.heads; ++head)
                for (int64_t row = first_row; row < last_row; row += TILE_ROWS) {
                    const int64_t h = set * sharing.heads + head;
                    const Tile tile = tile_at(head, row);
                    begin_rows(a, tile, b, h, row);
                    engine.pack_query(static_cast<const Input *>(a.query.data) + b * a.query.batch +
                                          h * a.query.head + row * a.query.token,
                                      tile.rows, query_at(head, row));
                }
            const int64_t start = first_key(a, b);
            const int64_t shift = a.k_len - a.q_len;
            const KeySpan span =
                key_span(a, sharing, b, set, g, first_row + shift, last_row - 1 + shift);
            const auto source = Rows<Input>::head(a, b, sharing.kv_head(set));
            for (int64_t at = span.begin; at < span.end; at += CHUNK) {
                const int64_t count = min64(CHUNK, span.end - at);
                const int64_t columns = Engine::padded(count);
                const auto listed = source.list(span.ids, at);
                engine.pack_keys(listed, count, columns, keys, spare);
                engine.pack_values(listed, count, columns, values);
                for (int64_t head = 0; head < sharing.heads; ++head)
                    for (int64_t row = first_row; row < last_row; row += TILE_ROWS) {
                        const Tile tile = tile_at(head, row);
                        if (a.causal && span.ids[at] > tile.position + tile.rows - 1) continue;
                        engine.scores(query_at(head, row), tile.rows, keys, columns, scores,
                                      stride);
                        mask_list(a, scores, stride, tile, span.ids + at, count, columns, start);
                        softmax_rows(tile, scores, stride, columns, a.scale, p, p_stride);
                        engine.accumulate(tile, p, p_stride, &held_values, &count, 1, columns);
                    }
            }
            for (int64_t head = 0; head < sharing.heads; ++head)
                for (int64_t row = first_row; row < last_row; row += TILE_ROWS)
                    finish_rows<Input>(a, tile_at(head, row), b, set * sharing.heads + head, row);
        }
    }
}

}  // namespace

void gathered_attention(const AttentionArgs &a) {
    if (a.dtype == Dtype::float32) {
        few_rows(a) ? stream_attention<float>(a) : run<FloatEngine<float>>(a);
        return;
    }
    if (few_rows(a)) {
        stream_attention<uint16_t>(a);
        return;
    }
#if defined(__AMX_BF16__)
    run<TileEngine>(a);
#else
    run<FloatEngine<uint16_t>>(a);
#endif
}

}  // namespace gossamer::GOSSAMER_ISA
