// Rotary position encoding: pairs (d, d + dim / 2) of every vector, turned by its token's angles.
#include "../native/engine.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int64_t ALONE = 1 << 15;  // elements that one thread turns before a second one starts

template <class T>
void run(const RotateArgs &r) {
    const int64_t rows = r.batch * r.heads * r.tokens;
    const int threads = rows * r.dim <= ALONE ? 1 : r.threads;
    const auto at = [](const auto &view, int64_t b, int64_t h, int64_t t) {
        return b * view.batch + h * view.head + t * view.token;
    };
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t t = row % r.tokens, h = row / r.tokens % r.heads;
        const int64_t b = row / r.tokens / r.heads;
        rotate_pairs(static_cast<const T *>(r.vectors.data) + at(r.vectors, b, h, t),
                     static_cast<const float *>(r.cosine.data) + at(r.cosine, b, h, t),
                     static_cast<const float *>(r.sine.data) + at(r.sine, b, h, t), r.dim / 2,
                     static_cast<T *>(r.out) + row * r.dim);
    }
}

}  // namespace

void rotate(const RotateArgs &r) { r.dtype == Dtype::float32 ? run<float>(r) : run<uint16_t>(r); }

}  // namespace gossamer::GOSSAMER_ISA
