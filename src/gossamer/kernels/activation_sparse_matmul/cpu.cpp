// A product that spends nothing on zero activations: weight rows that only zeros meet stay
// unread, and the others are added to the outputs of those that they multiply.
#include "../native/params.hpp"
#include "../native/simd.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t BATCH = 16;       // rows of activations a task
constexpr int GROUP = 8;            // weight rows added in one pass over the sums
constexpr int64_t WIDEST = 2048;    // columns a task: weight rows are read in long runs,
constexpr int64_t NARROWEST = 256;  // but a group of them and the sums stay in cache

// out[columns] += sum of factors[i] * rows[i]; fetches as much of `ahead` into cache.
template <class T, int Count>
static void add_rows(const float *factors, const T *const *rows, const T *const *ahead,
                     int64_t columns, float *out) {
    int64_t j = 0;
    for (; j + W <= columns; j += W) {
        Vec sums = load(out + j);
#pragma GCC unroll 8
        for (int i = 0; i < Count; ++i) {
            __builtin_prefetch(ahead[i] + j, 0, 2);
            sums += factors[i] * load(rows[i] + j);
        }
        store(out + j, sums);
    }
    for (; j < columns; ++j)
        for (int i = 0; i < Count; ++i) out[j] += factors[i] * scalar(rows[i][j]);
}

template <class T, size_t... I>
GOSSAMER_INLINE void add_rows(int64_t count, const float *factors, const T *const *rows,
                              const T *const *ahead, int64_t columns, float *out,
                              std::index_sequence<I...>) {
    constexpr void (*table[])(const float *, const T *const *, const T *const *, int64_t,
                              float *) = {add_rows<T, I + 1>...};
    table[count - 1](factors, rows, ahead, columns, out);
}

// The weight rows that some activation of [first, last) multiplies, ascending.
int64_t find_active(const ActivationSparseArgs &a, int64_t first, int64_t last, int32_t *active) {
    int64_t count = 0;
    for (int64_t k = 0; k < a.rows; ++k) {
        bool any = false;
        for (int64_t i = first; i < last; ++i) any |= a.activations[i * a.rows + k] != 0.0f;
        active[count] = static_cast<int32_t>(k);
        count += any;
    }
    return count;
}

// Columns [first, first + columns) of the products of rows [begin, end) of the activations.
template <class T>
static void multiply_tile(const ActivationSparseArgs &a, const int32_t *active, int64_t count,
                          int64_t begin, int64_t end, int64_t first, int64_t columns) {
    const T *const weight = static_cast<const T *>(a.weight) + first;
    for (int64_t i = begin; i < end; ++i)
        memset(a.out + i * a.columns + first, 0, sizeof(float) * columns);
    for (int64_t at = 0; at < count; at += GROUP) {
        const int64_t last = min64(at + GROUP, count);
        int64_t ahead = last;
        for (int64_t i = begin; i < end; ++i) {
            const T *rows[GROUP], *next[GROUP];
            float factors[GROUP];
            int64_t used = 0;
            for (int64_t g = at; g < last; ++g) {
                const float x = a.activations[i * a.rows + active[g]];
                factors[used] = x;
                rows[used] = weight + active[g] * a.columns;
                used += x != 0.0f;
            }
            for (int64_t g = 0; g < used; ++g)
                next[g] = ahead < min64(last + GROUP, count) ? weight + active[ahead++] * a.columns
                                                             : rows[g];
            if (used > 0)
                add_rows(used, factors, rows, next, columns, a.out + i * a.columns + first,
                         std::make_index_sequence<GROUP>{});
        }
    }
}

template <class T>
void run(const ActivationSparseArgs &a) {
    const int64_t batches = ceil_div(a.batch, BATCH), room = a.rows + 1;
    const int64_t share = round_up(ceil_div(a.columns, a.threads), 64);
    const int64_t width = max64(NARROWEST, min64(share, WIDEST / max64(1, min64(a.batch, BATCH))));
    const int64_t tiles = ceil_div(a.columns, width);
    Scratch shared(static_cast<size_t>(batches * (room * 4 + 8)) + 128);
    int32_t *lists = shared.take<int32_t>(batches * room);
    int64_t *counts = shared.take<int64_t>(batches);
#pragma omp parallel num_threads(a.threads)
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < batches; ++b)
            counts[b] =
                find_active(a, b * BATCH, min64(a.batch, (b + 1) * BATCH), lists + b * room);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < batches * tiles; ++task) {
            const int64_t b = task / tiles, first = task % tiles * width;
            multiply_tile<T>(a, lists + b * room, counts[b], b * BATCH,
                             min64(a.batch, (b + 1) * BATCH), first,
                             min64(width, a.columns - first));
        }
    }
}

}  // namespace

void activation_sparse_matmul(const ActivationSparseArgs &a) {
    a.dtype == Dtype::float32 ? run<float>(a) : run<uint16_t>(a);
}

}  // namespace gossamer::GOSSAMER_ISA
