// Keep the k best of n by score, ties to the lower index: quickselect on integer keys.
#pragma once
#include "simd.hpp"

namespace gossamer::GOSSAMER_ISA {

// Ascending order of the result is descending order of (score, -index).
GOSSAMER_INLINE uint64_t rank_key(float score, uint32_t index) {
    uint32_t bits;
    memcpy(&bits, &score, 4);
    if (bits == 0x80000000u) bits = 0;  // -0 ties with +0
    const uint32_t ordered = (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
    return (static_cast<uint64_t>(~ordered) << 32) | index;
}

// The k-th smallest key (k >= 1) of n distinct keys; reorders them.
static uint64_t kth_key(uint64_t *keys, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1, target = k - 1;
    while (low < high) {
        const uint64_t a = keys[low], b = keys[low + (high - low) / 2], c = keys[high];
        const uint64_t pivot =
            a < b ? (b < c ? b : (a < c ? c : a)) : (a < c ? a : (b < c ? c : b));
        int64_t i = low, j = high;
        while (i <= j) {
            while (keys[i] < pivot) ++i;
            while (keys[j] > pivot) --j;
            if (i > j) break;
            const uint64_t swapped = keys[i];
            keys[i++] = keys[j];
            keys[j--] = swapped;
        }
        if (target <= j) {
            high = j;
        } else if (target >= i) {
            low = i;
        } else {
            break;
        }
    }
    return keys[target];
}

}  // namespace gossamer::GOSSAMER_ISA
