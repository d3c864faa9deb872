// Forward and backward of a linear layer whose weight is stored sparse.
#include "../native/sparse_rows.hpp"

namespace gossamer::GOSSAMER_ISA {

void sparse_linear(const SparseRowsArgs &a) {
    a.dots == nullptr ? run_sparse_rows<true, false>(a) : run_sparse_rows<true, true>(a);
}

}  // namespace gossamer::GOSSAMER_ISA
