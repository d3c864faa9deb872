// Set attention on the CPU: a task gathers the tokens of one set, head by head, into panels that
// fit the first cache, attends densely, and scatters. Repeated slots take no part: they are left
// out when the set is gathered.
#include "../native/engine.hpp"
#include "../native/set_params.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

// c[rows, columns] = a[rows, depth] @ b[depth, columns]; columns is a multiple of W.
void product(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t a_stride,
             const float *b, int64_t b_stride, float *c, int64_t c_stride) {
    const Parts parts{&b, &depth, 1, 0};
    int64_t j = 0;
    for (; columns - j >= MAX_COLUMNS * W; j += MAX_COLUMNS * W)
        multiply_columns<MAX_COLUMNS, false>(rows, a, a_stride, parts, j, b_stride, c + j,
                                             c_stride);
    if constexpr (MAX_COLUMNS > 3)
        for (; columns - j >= 3 * W; j += 3 * W)
            multiply_columns<3, false>(rows, a, a_stride, parts, j, b_stride, c + j, c_stride);
    for (; columns - j >= 2 * W; j += 2 * W)
        multiply_columns<2, false>(rows, a, a_stride, parts, j, b_stride, c + j, c_stride);
    if (j < columns)
        multiply_columns<1, false>(rows, a, a_stride, parts, j, b_stride, c + j, c_stride);
}

const float *row_of(const TokenView &t, int64_t head, int64_t token) {
    return t.data + head * t.head + token * t.token;
}

// out[i, :] = the row of token i, zeros behind it up to `width`.
void gather_rows(const TokenView &t, int64_t head, const int64_t *tokens, int64_t count,
                 int64_t dim, int64_t width, float *out) {
    for (int64_t i = 0; i < count; ++i) {
        const float *row = row_of(t, head, tokens[i]);
        float *to = out + i * width;
        int64_t d = 0;
        for (; d + W <= dim; d += W) store(to + d, load(row + d));
        for (; d < width; ++d) to[d] = d < dim ? row[d] : 0.0f;
    }
}

// out[:, i] = the row of token i; columns past count hold the last one.
void gather_columns(const TokenView &t, int64_t head, const int64_t *tokens, int64_t count,
                    int64_t dim, int64_t columns, float *out) {
    for (int64_t i = 0; i < columns; i += W) {
        const float *rows[W];
        for (int lane = 0; lane < W; ++lane)
            rows[lane] = row_of(t, head, tokens[min64(i + lane, count - 1)]);
        transpose_rows(rows, dim, out + i, columns);
    }
}

void scatter_rows(const TokenView &t, int64_t head, const int64_t *tokens, int64_t count,
                  int64_t dim, int64_t width, const float *rows) {
    for (int64_t i = 0; i < count; ++i) {
        float *to = t.data + head * t.head + tokens[i] * t.token;
        const float *row = rows + i * width;
        int64_t d = 0;
        for (; d + W <= dim; d += W) store(to + d, load(row + d));
        for (; d < dim; ++d) to[d] = row[d];
    }
}

// Rows of scores to rows of probabilities; columns from count on become 0.
void softmax(int64_t count, int64_t columns, float scale, float *scores) {
    const Vec c = broadcast(scale * LOG2E);
    for (int64_t i = 0; i < count; ++i) {
        float *row = scores + i * columns;
        fill(row, count, columns, NEG_INF);
        Vec most = load(row);
        for (int64_t j = W; j < columns; j += W) most = maximum(most, load(row + j));
        const Vec top = broadcast(maximum(most));
        Vec total{};
        for (int64_t j = 0; j < columns; j += W) {
            const Vec p = exp2_nonpositive((load(row + j) - top) * c);
            store(row + j, p);
            total += p;
        }
        const Vec inverse = broadcast(1.0f / sum(total));
        for (int64_t j = 0; j < columns; j += W) store(row + j, load(row + j) * inverse);
    }
}

// out[columns, stride] = rows[count, columns] transposed; rows past count are read, and finite.
void transpose_panel(int64_t count, int64_t columns, const float *rows, float *out) {
    for (int64_t i = 0; i < count; i += W)
        for (int64_t j = 0; j < columns; j += W) {
            Vec block[W];
            for (int lane = 0; lane < W; ++lane)
                block[lane] = load(rows + (i + lane) * columns + j);
            transpose(block);
            for (int lane = 0; lane < W; ++lane) store(out + (j + lane) * columns + i, block[lane]);
        }
}

// The panels of one thread: `size` tokens, rounded up to whole vectors, by `dim`.
struct Panels {
    explicit Panels(const SetAttentionArgs &a, bool backward)
        : width(round_up(a.dim, W)),
          most(round_up(a.size, W)),
          scratch(static_cast<size_t>((backward ? 4 : 1) * (most * most + 16) * 4 +
                                      (backward ? 8 : 4) * (most * width + 16) * 4 + most * 8 +
                                      1024)),
          tokens(scratch.take<int64_t>(most)),
          scores(square()),
          left(panel()),
          right(panel()),
          rows(panel()),
          out(panel()) {}

    float *square() { return scratch.take<float>(most * most); }
    float *panel() { return scratch.take<float>(most * width); }

    // List the tokens of a set once each.
    int64_t list(const SetAttentionArgs &a, int64_t set) {
        int64_t count = 0;
        for (int64_t slot = set * a.size; slot < (set + 1) * a.size; ++slot)
            if (!a.repeated[slot]) tokens[count++] = a.indices[slot];
        return count;
    }

    int64_t width, most;
    Scratch scratch;
    int64_t *tokens;
    float *scores, *left, *right, *rows, *out;
};

// Probabilities of one set in one head; leaves the queries in `left` as rows.
void probabilities(const SetAttentionArgs &a, Panels &p, int64_t head, int64_t count) {
    const int64_t columns = round_up(count, W);
    gather_rows(a.query, head, p.tokens, count, a.dim, p.width, p.left);
    gather_columns(a.key, head, p.tokens, count, a.dim, columns, p.right);
    product(count, columns, a.dim, p.left, p.width, p.right, columns, p.scores, columns);
    softmax(count, columns, a.scale, p.scores);
}

}  // namespace

void set_attention(const SetAttentionArgs &a) {
#pragma omp parallel num_threads(a.threads)
    {
        Panels p(a, false);
#pragma omp for schedule(dynamic, 4)
        for (int64_t set = 0; set < a.sets; ++set) {
            const int64_t count = p.list(a, set);
            for (int64_t head = 0; head < a.heads; ++head) {
                probabilities(a, p, head, count);
                gather_rows(a.value, head, p.tokens, count, a.dim, p.width, p.rows);
                product(count, p.width, count, p.scores, round_up(count, W), p.rows, p.width, p.out,
                        p.width);
                scatter_rows(a.out, head, p.tokens, count, a.dim, p.width, p.out);
            }
        }
    }
}

void set_attention_backward(const SetAttentionArgs &a) {
#pragma omp parallel num_threads(a.threads)
    {
        Panels p(a, true);
        float *turned = p.square(), *slopes = p.square(), *turned_slopes = p.square();
        float *grads = p.panel(), *keys = p.panel();
        memset(p.scores, 0, static_cast<size_t>(p.most * p.most) * sizeof(float));
        memset(slopes, 0, static_cast<size_t>(p.most * p.most) * sizeof(float));
#pragma omp for schedule(dynamic, 4)
        for (int64_t set = 0; set < a.sets; ++set) {
            const int64_t count = p.list(a, set), columns = round_up(count, W);
            for (int64_t head = 0; head < a.heads; ++head) {
                probabilities(a, p, head, count);
                gather_rows(a.grad, head, p.tokens, count, a.dim, p.width, grads);

                // value: P^T dO
                transpose_panel(count, columns, p.scores, turned);
                product(count, p.width, count, turned, columns, grads, p.width, p.out, p.width);
                scatter_rows(a.value_grad, head, p.tokens, count, a.dim, p.width, p.out);

                // scores: P * (dO V^T - rowsum(P * dO V^T)) * scale
                gather_columns(a.value, head, p.tokens, count, a.dim, columns, p.right);
                product(count, columns, a.dim, grads, p.width, p.right, columns, slopes, columns);
                for (int64_t i = 0; i < count; ++i) {
                    float *slope = slopes + i * columns;
                    const float *share = p.scores + i * columns;
                    Vec mean{};
                    for (int64_t j = 0; j < columns; j += W)
                        mean += load(share + j) * load(slope + j);
                    const Vec shift = broadcast(sum(mean));
                    for (int64_t j = 0; j < columns; j += W)
                        store(slope + j, load(share + j) * (load(slope + j) - shift) * a.scale);
                }

                // query: dS K, key: dS^T Q
                gather_rows(a.key, head, p.tokens, count, a.dim, p.width, keys);
                product(count, p.width, count, slopes, columns, keys, p.width, p.out, p.width);
                scatter_rows(a.query_grad, head, p.tokens, count, a.dim, p.width, p.out);
                transpose_panel(count, columns, slopes, turned_slopes);
                product(count, p.width, count, turned_slopes, columns, p.left, p.width, p.out,
                        p.width);
                scatter_rows(a.key_grad, head, p.tokens, count, a.dim, p.width, p.out);
            }
        }
    }
}

}  // namespace gossamer::GOSSAMER_ISA
