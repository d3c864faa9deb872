// One pass over a compressed sparse matrix against a batch of vectors. Both operands are laid
// out in strips of the batch, [features, lanes], so that every entry of the matrix meets whole
// vectors: a multiply-add into the output of its row, a dot product with the left operand of its
// row, or both for the same loads. Sums run in the order of the entries (outputs) and of the
// batch (dots), whatever the number of threads.
#pragma once
#include "params.hpp"
#include "simd.hpp"

namespace gossamer::GOSSAMER_ISA {

constexpr int MAX_VECTORS = W == 16 ? 8 : 4;  // of a strip: two sets of them fit the registers
constexpr int64_t ROW_BLOCK = 64;             // rows a task
constexpr int64_t PANEL_BYTES = 256 << 10;    // of the input, to stay in the second-level cache

// Lanes [first, first + count) of a batch whose images follow one another.
struct Strip {
    int64_t first, count, width;  // width: a multiple of W

    // Calls visit(data, lane, run) for the runs of lanes that lie in one image.
    template <class Visit>
    void runs(const Features &x, int64_t positions, Visit visit) const {
        for (int64_t lane = 0; lane < count;) {
            const int64_t at = first + lane, position = at % positions;
            const int64_t run = min64(count - lane, positions - position);
            visit(x.data + at / positions * x.image + position * x.position, lane, run);
            lane += run;
        }
    }
};

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns.
static void transpose(const float *from, int64_t from_stride, int64_t rows, int64_t columns,
                      float *to, int64_t to_stride) {
    const int64_t whole_rows = rows / W * W, whole_columns = columns / W * W;
    for (int64_t i = 0; i < whole_rows; i += W)
        for (int64_t j = 0; j < whole_columns; j += W) {
            Vec block[W];
#pragma GCC unroll 16
            for (int r = 0; r < W; ++r) block[r] = load(from + (i + r) * from_stride + j);
            transpose(block);
#pragma GCC unroll 16
            for (int r = 0; r < W; ++r) store(to + (j + r) * to_stride + i, block[r]);
        }
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
            to[j * to_stride + i] = from[i * from_stride + j];
}

GOSSAMER_INLINE void copy_rows(const float *from, int64_t from_stride, int64_t rows,
                               int64_t columns, float *to, int64_t to_stride) {
    for (int64_t i = 0; i < rows; ++i)
        memcpy(to + i * to_stride, from + i * from_stride, sizeof(float) * columns);
}

// panel[feature, lane] of features [first, last); lanes past the batch are zero.
static void pack_features(const Features &x, int64_t positions, const Strip &strip, int64_t first,
                          int64_t last, float *panel) {
    strip.runs(x, positions, [&](const float *from, int64_t lane, int64_t run) {
        float *to = panel + first * strip.width + lane;
        if (x.feature == 1)
            transpose(from + first, x.position, run, last - first, to, strip.width);
        else
            copy_rows(from + first * x.feature, x.feature, last - first, run, to, strip.width);
    });
    for (int64_t f = first; f < last; ++f)
        for (int64_t lane = strip.count; lane < strip.width; ++lane)
            panel[f * strip.width + lane] = 0.0f;
}

// The inverse: features [first, first + features) leave the rows of `panel`.
static void unpack_features(const float *panel, int64_t features, const Strip &strip,
                            int64_t positions, const Features &x, int64_t first) {
    strip.runs(x, positions, [&](float *to, int64_t lane, int64_t run) {
        to += first * x.feature;
        if (x.feature == 1)
            transpose(panel + lane, strip.width, features, run, to, x.position);
        else
            copy_rows(panel + lane, strip.width, features, run, to, x.feature);
    });
}

template <int Stage>
GOSSAMER_INLINE void fold_lanes(Vec *sums) {
#pragma GCC unroll 16
    for (int i = 0; i < W / Stage / 2; ++i) {
        const Vec a = sums[2 * i], b = sums[2 * i + 1];
        sums[i] = interleave<Stage, false>(a, b, Lanes{}) + interleave<Stage, true>(a, b, Lanes{});
    }
}

// Lane i of the result is the sum of the lanes of vectors[i].
GOSSAMER_INLINE Vec sums_of(const float *vectors) {
    Vec sums[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) sums[i] = load(vectors + i * W);
    fold_lanes<1>(sums);
    fold_lanes<2>(sums);
    if constexpr (W >= 8) fold_lanes<4>(sums);
    if constexpr (W >= 16) fold_lanes<8>(sums);
    return sums[0];
}

// Dot products that still lie spread over the lanes of a vector each: W of them are summed
// together.
class PendingDots {
  public:
    PendingDots(float *dots, bool add) : dots_(dots), add_(add) {}

    void push(Vec products, int64_t place) {
        store(vectors_ + count_ * W, products);
        places_[count_++] = place;
        if (count_ == W) flush();
    }

    void flush() {
        const Vec sums = sums_of(vectors_);
        for (int i = 0; i < count_; ++i)
            dots_[places_[i]] = add_ ? dots_[places_[i]] + sums[i] : sums[i];
        count_ = 0;
    }

  private:
    float *dots_;
    bool add_;
    int count_ = 0;
    int64_t places_[W] = {};
    alignas(64) float vectors_[W * W] = {};
};

// Rows [first, last) of the matrix against one strip of `V` vectors.
template <int V, bool Product, bool Dots>
static void multiply_rows(const SparseRowsArgs &a, const Strip &strip, const float *input,
                          const float *left, int64_t first, int64_t last) {
    const SparseRows &matrix = a.matrix;
    alignas(64) float output[ROW_BLOCK * V * W];
    int64_t next[ROW_BLOCK];
    PendingDots pending(a.dots, strip.first > 0);
    for (int64_t row = first; row < last; ++row) {
        next[row - first] = matrix.offsets[row];
        if (Product) {
            const Vec start = broadcast(a.bias == nullptr ? 0.0f : a.bias[row]);
            for (int v = 0; v < V; ++v) store(output + ((row - first) * V + v) * W, start);
        }
    }
    const int64_t panel = max64(1, PANEL_BYTES / (V * W * 4));
    for (int64_t begin = 0; begin < matrix.columns; begin += panel) {
        const int64_t limit = min64(begin + panel, matrix.columns);
        for (int64_t row = first; row < last; ++row) {
            const int64_t end = matrix.offsets[row + 1];
            int64_t j = next[row - first];
            if (j == end || matrix.indices[j] >= limit) continue;
            float *const out = output + (row - first) * V * W;
            Vec sums[V], lefts[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                if (Product) sums[v] = load(out + v * W);
                if (Dots) lefts[v] = load(left + (row * V + v) * W);
            }
            do {
                const float *const x = input + static_cast<int64_t>(matrix.indices[j]) * V * W;
                const int64_t place = matrix.order == nullptr ? j : matrix.order[j];
                const Vec value = broadcast(Product ? a.values[place] : 0.0f);
                Vec products{};
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) {
                    const Vec entry = keep(load(x + v * W));
                    if (Product) sums[v] += value * entry;
                    if (Dots) products += lefts[v] * entry;
                }
                if (Dots) pending.push(products, place);
            } while (++j < end && matrix.indices[j] < limit);
            next[row - first] = j;
            if (Product) {
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) store(out + v * W, sums[v]);
            }
        }
    }
    if (Dots) pending.flush();
    if (Product) unpack_features(output, last - first, strip, a.positions, a.output, first);
}

using MultiplyRows = void (*)(const SparseRowsArgs &, const Strip &, const float *, const float *,
                              int64_t, int64_t);

template <bool Product, bool Dots, size_t... I>
GOSSAMER_INLINE MultiplyRows for_vectors(int64_t vectors, std::index_sequence<I...>) {
    constexpr MultiplyRows table[] = {multiply_rows<I + 1, Product, Dots>...};
    return table[vectors - 1];
}

template <bool Product, bool Dots>
static void run_sparse_rows(const SparseRowsArgs &a) {
    const int64_t lanes = a.images * a.positions, widest = MAX_VECTORS * W;
    const int64_t rows = a.matrix.rows, columns = a.matrix.columns;
    const int64_t width = min64(widest, round_up(lanes, W));
    Scratch shared(sizeof(float) * static_cast<size_t>((columns + (Dots ? rows : 0)) * width) + 64);
    float *input = shared.take<float>(columns * width);
    float *left = Dots ? shared.take<float>(rows * width) : nullptr;
#pragma omp parallel num_threads(a.threads)
    for (int64_t first = 0; first < lanes; first += widest) {
        const int64_t count = min64(widest, lanes - first);
        const Strip strip{first, count, round_up(count, W)};
        const auto pack = [&](const Features &x, int64_t task, int64_t features, float *panel) {
            const int64_t begin = task * ROW_BLOCK;
            pack_features(x, a.positions, strip, begin, min64(begin + ROW_BLOCK, features), panel);
        };
        const int64_t inputs = ceil_div(columns, ROW_BLOCK), blocks = ceil_div(rows, ROW_BLOCK);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < inputs + (Dots ? blocks : 0); ++task) {
            if (task < inputs)
                pack(a.input, task, columns, input);
            else
                pack(a.left, task - inputs, rows, left);
        }
        const auto multiply =
            for_vectors<Product, Dots>(strip.width / W, std::make_index_sequence<MAX_VECTORS>{});
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t begin = block * ROW_BLOCK;
            multiply(a, strip, input, left, begin, min64(begin + ROW_BLOCK, rows));
        }
    }
}

}  // namespace gossamer::GOSSAMER_ISA
