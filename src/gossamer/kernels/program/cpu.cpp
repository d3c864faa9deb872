// Sums of two tensors, for programs: the only step of theirs that is not a kernel of its own.
#include "../native/params.hpp"
#include "../native/simd.hpp"

namespace gossamer::GOSSAMER_ISA {

void add(const AddArgs &a) {
    constexpr int64_t PIECE = 1 << 12;
#pragma omp parallel for schedule(static) num_threads(a.threads)
    for (int64_t piece = 0; piece < ceil_div(a.count, PIECE); ++piece) {
        const int64_t end = min64(a.count, (piece + 1) * PIECE);
        int64_t i = piece * PIECE;
        for (; i + W <= end; i += W) store(a.out + i, load(a.left + i) + load(a.right + i));
        for (; i < end; ++i) a.out[i] = a.left[i] + a.right[i];
    }
}

}  // namespace gossamer::GOSSAMER_ISA
