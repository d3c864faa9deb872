// Total variation of complex image sequences: differences, the dual step and their adjoint, a row
// of pixels at a time, so that no difference is ever stored.
#include "../native/params.hpp"
#include "../native/simd.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

enum Direction { TIME, ROWS, COLUMNS };

// One row of pixels: where it lies, and which of its forward neighbours exist.
struct Row {
    int64_t offset;    // floats before it
    int64_t ahead[3];  // floats to the next pixel in each direction
    bool last[2];      // in time, among the rows
    bool first[2];
};

GOSSAMER_INLINE Row row_at(const TotalVariationArgs &a, int64_t index) {
    const int64_t line = 2 * a.columns, y = index % a.rows, t = index / a.rows % a.frames;
    return {index * line,
            {a.rows * line, line, 2},
            {t == a.frames - 1, y == a.rows - 1},
            {t == 0, y == 0}};
}

// to = dual + step (next - here), for the first `count` floats; no difference for the rest.
GOSSAMER_INLINE void rise(const float *dual, const float *here, const float *next, float step,
                          int64_t count, int64_t width, float *to) {
    for (int64_t i = 0; i < count; ++i) to[i] = dual[i] + step * (next[i] - here[i]);
    for (int64_t i = count; i < width; ++i) to[i] = dual[i];
}

template <int Parts>
GOSSAMER_INLINE void project(float *const (&parts)[3], int64_t columns, float radius) {
    for (int64_t x = 0; x < columns; ++x) {
        float square = 0.0f;
#pragma GCC unroll 3
        for (int p = 0; p < Parts; ++p) {
            const float re = parts[p][2 * x], im = parts[p][2 * x + 1];
            square += re * re + im * im;
        }
        const float size = __builtin_sqrtf(square);
        const float scale = size <= radius ? 1.0f : radius / size;  // NaN passes
#pragma GCC unroll 3
        for (int p = 0; p < Parts; ++p) {
            parts[p][2 * x] *= scale;
            parts[p][2 * x + 1] *= scale;
        }
    }
}

template <int Parts>
static void ascend(const TotalVariationArgs &a, const int (&directions)[3]) {
    const int64_t width = 2 * a.columns, lines = a.sequences * a.frames * a.rows;
    const int64_t part = lines * width;
#pragma omp parallel for schedule(static) num_threads(a.threads)
    for (int64_t index = 0; index < lines; ++index) {
        const Row row = row_at(a, index);
        const float *here = a.image + row.offset;
        float *parts[3] = {};
        for (int p = 0; p < Parts; ++p) {
            const int d = directions[p];
            const int64_t count = d == COLUMNS ? width - 2 : row.last[d] ? 0 : width;
            parts[p] = a.out + p * part + row.offset;
            rise(a.dual + p * part + row.offset, here, here + row.ahead[d], a.step, count, width,
                 parts[p]);
        }
        project<Parts>(parts, a.columns, a.radius);
    }
}

// The directions in use, in ascending order; returns how many.
static int directions_of(int bits, int (&directions)[3]) {
    int parts = 0;
    for (int d = 0; d < 3; ++d)
        if (bits >> d & 1) directions[parts++] = d;
    return parts;
}

}  // namespace

void tv_dual_ascent(const TotalVariationArgs &a) {
    int directions[3] = {};
    const int parts = directions_of(a.directions, directions);
    if (parts == 1) return ascend<1>(a, directions);
    if (parts == 2) return ascend<2>(a, directions);
    ascend<3>(a, directions);
}

void tv_adjoint(const TotalVariationArgs &a) {
    int directions[3] = {};
    const int parts = directions_of(a.directions, directions);
    const int64_t width = 2 * a.columns, lines = a.sequences * a.frames * a.rows;
    const int64_t part = lines * width;
#pragma omp parallel for schedule(static) num_threads(a.threads)
    for (int64_t index = 0; index < lines; ++index) {
        const Row row = row_at(a, index);
        float *out = a.out + row.offset;
        memset(out, 0, sizeof(float) * static_cast<size_t>(width));
        for (int p = 0; p < parts; ++p) {
            const int d = directions[p];
            const float *here = a.dual + p * part + row.offset;
            const float *before = here - row.ahead[d];
            const int64_t from = d == COLUMNS ? 2 : row.first[d] ? width : 0;
            const int64_t until = d == COLUMNS ? width - 2 : row.last[d] ? 0 : width;
            for (int64_t i = from; i < width; ++i) out[i] += before[i];
            for (int64_t i = 0; i < until; ++i) out[i] -= here[i];
        }
    }
}

}  // namespace gossamer::GOSSAMER_ISA
