// Sampled dense-dense matrix product: dot products at the entries of a pattern only.
#include "../native/sparse_rows.hpp"

namespace gossamer::GOSSAMER_ISA {

void sddmm(const SparseRowsArgs &a) { run_sparse_rows<false, true>(a); }

}  // namespace gossamer::GOSSAMER_ISA
