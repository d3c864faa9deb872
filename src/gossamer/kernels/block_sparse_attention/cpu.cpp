// Block-sparse attention: keys and values of a few heads are packed once, then every
// (head, query tile) walks its list of key blocks with an online softmax.
#include "../native/amx.hpp"
#include "../native/stream.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t WAVE_BYTES = 4 << 20;  // packed keys and values alive at a time

// No row of the tile can see any key of [first, first + unit).
bool hidden(const AttentionArgs &a, const Tile &tile, int64_t first, int64_t start) {
    const int64_t end = min64(first + a.unit, a.k_len);
    if (end <= start) return true;
    if (a.causal && first > tile.position + tile.rows - 1) return true;
    return a.local > 0 && first >= start + a.sink && end - 1 <= tile.position - a.local;
}

// Ask for a panel before it is needed: a head's panels outgrow the second-level cache.
template <class Cell>
void prefetch(const Cell *panel, int64_t cells) {
    const char *p = reinterpret_cast<const char *>(panel);
    for (int64_t at = 0; at < cells * static_cast<int64_t>(sizeof(Cell)); at += 64)
        __builtin_prefetch(p + at, 0, 2);
}

template <class Engine>
void run(const AttentionArgs &a) {
    using Input = typename Engine::Input;
    using Cell = typename Engine::Cell;
    using Probability = typename Engine::Probability;
    const int64_t blocks = ceil_div(a.k_len, a.unit), padded = Engine::padded(a.unit);
    const int64_t group = a.starts == nullptr ? TILE_ROWS : a.group;
    const int64_t tiles_a_group = ceil_div(group, TILE_ROWS);
    const int64_t tiles = ceil_div(a.q_len, group) * tiles_a_group;
    const int64_t units = a.batch * a.kv_heads, shared_heads = a.heads / a.kv_heads;
    const int64_t capacity = max64(CHUNK, padded);
    const int64_t stride = row_stride(capacity, sizeof(float));
    const int64_t p_stride = row_stride(capacity, sizeof(Probability));
    const int64_t key_cells = padded * round_up(a.dim, 32);
    const int64_t value_cells = Engine(a, true).value_cells(padded) == 0 ? 0 : key_cells;
    const int64_t unit_bytes =
        blocks * (key_cells + value_cells) * static_cast<int64_t>(sizeof(Cell));
    const int64_t wave = max64(1, min64(units, WAVE_BYTES / max64(1, unit_bytes)));
    Scratch panels(static_cast<size_t>(wave * unit_bytes));
    Cell *packed = panels.take<Cell>(wave * blocks * (key_cells + value_cells));
#pragma omp parallel num_threads(a.threads)
    {
        const Engine engine(a, true);
        constexpr int64_t rows = TILE_ROWS;
        Scratch scratch(static_cast<size_t>(
            rows * (stride * 4 + p_stride * 2) + rows * engine.acc_stride() * 4 + rows * 8 +
            engine.query_cells(rows) * 4 + 128 * round_up(a.dim, 32) + 1024));
        float *scores = scratch.take<float>(rows * stride);
        Probability *p = reinterpret_cast<Probability *>(scores);
        if (sizeof(Probability) != sizeof(float)) {
            p = scratch.take<Probability>(rows * p_stride);
            memset(p, 0, static_cast<size_t>(rows * p_stride) * sizeof(Probability));
        }
        float *acc = scratch.take<float>(rows * engine.acc_stride());
        memset(acc, 0, static_cast<size_t>(rows * engine.acc_stride()) * 4);
        float *max = scratch.take<float>(rows), *sum = scratch.take<float>(rows);
        Cell *query = scratch.take<Cell>(engine.query_cells(rows));
        float *spare = scratch.take<float>(32 * round_up(a.dim, 32));

        for (int64_t base = 0; base < units; base += wave) {
            const int64_t here = min64(wave, units - base);
#pragma omp for schedule(static)
            for (int64_t task = 0; task < here * blocks; ++task) {
                const int64_t unit = base + task / blocks, first = task % blocks * a.unit;
                const auto source =
                    Rows<Input>::head(a, unit / a.kv_heads, unit % a.kv_heads).run(first);
                const int64_t count = min64(a.unit, a.k_len - first);
                Cell *panel = packed + task * (key_cells + value_cells);
                engine.pack_keys(source, count, padded, panel, spare);
                engine.pack_values(source, count, padded, panel + key_cells);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < here * shared_heads * tiles; ++task) {
                // Long causal rows first; neighbours share panels.
                const int64_t t = tiles - 1 - task / (here * shared_heads);
                const int64_t local_unit = task % (here * shared_heads) / shared_heads;
                const int64_t b = (base + local_unit) / a.kv_heads;
                const int64_t h =
                    (base + local_unit) % a.kv_heads * shared_heads + task % shared_heads;
                const int64_t g = t / tiles_a_group;
                const int64_t first_row = g * group + t % tiles_a_group * TILE_ROWS;
                const int64_t last_row =
                    min64(min64(a.q_len, (g + 1) * group), first_row + TILE_ROWS);
                if (first_row >= last_row) continue;
                const Tile tile{static_cast<int>(last_row - first_row),
                                first_row + a.k_len - a.q_len,
                                engine.acc_stride(),
                                max,
                                sum,
                                acc};
                begin_rows(a, tile, b, h, first_row);
                engine.pack_query(static_cast<const Input *>(a.query.data) + b * a.query.batch +
                                      h * a.query.head + first_row * a.query.token,
                                  tile.rows, query);
                const int64_t row = (b * a.list_heads + h * a.list_heads / a.heads) * a.groups + g;
                const int32_t *ids = a.starts == nullptr ? nullptr : a.indices + a.starts[row];
                const int64_t count = a.starts == nullptr ? blocks : a.counts[row];
                const int64_t start = first_key(a, b);
                const auto head = Rows<Input>::head(a, b, h / shared_heads);
                const Cell *unit_panels = packed + local_unit * blocks * (key_cells + value_cells);

                for (int64_t i = 0; i < count;) {
                    const Cell *values[CHUNK / 16];
                    int64_t counts[CHUNK / 16];
                    int64_t columns = 0, n = 0;
                    for (; i < count && columns + padded <= capacity; ++i) {
                        const int64_t block = ids == nullptr ? i : ids[i];
                        if (hidden(a, tile, block * a.unit, start)) continue;
                        const Cell *panel = unit_panels + block * (key_cells + value_cells);
                        values[n] = engine.value_panel(head.run(block * a.unit), panel + key_cells);
                        counts[n] = min64(a.unit, a.k_len - block * a.unit);
                        if (i + 1 < count) {
                            const int64_t next = ids == nullptr ? block + 1 : ids[i + 1];
                            prefetch(unit_panels + next * (key_cells + value_cells),
                                     key_cells + value_cells);
                        }
                        engine.scores(query, tile.rows, panel, padded, scores + columns, stride);
                        mask_range(a, scores + columns, stride, tile, block * a.unit, counts[n],
                                   padded, start);
                        columns += padded;
                        ++n;
                    }
                    if (n == 0) continue;
                    softmax_rows(tile, scores, stride, columns, a.scale, p, p_stride);
                    engine.accumulate(tile, p, p_stride, values, counts, n, padded);
                }
                finish_rows<Input>(a, tile, b, h, first_row);
            }
        }
    }
}

}  // namespace

void block_sparse_attention(const AttentionArgs &a) {
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
