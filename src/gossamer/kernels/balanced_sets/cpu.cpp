// Balanced sets on the CPU: a radix sort of (group, key), then one walk over the sorted tokens.
#include "../native/set_params.hpp"
#include "../native/simd.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr int DIGIT_BITS = 11;  // its counters stay in the first cache
constexpr int64_t DIGITS = int64_t{1} << DIGIT_BITS;

struct Ranked {
    uint64_t key;
    int64_t token;
};

// Sort by key, stably; returns the array of the two that holds the result.
Ranked *radix_sort(Ranked *from, Ranked *to, int64_t count, uint64_t most, int64_t *starts) {
    for (int shift = 0; shift < 64 && (most >> shift) != 0; shift += DIGIT_BITS) {
        memset(starts, 0, static_cast<size_t>(DIGITS) * sizeof(int64_t));
        for (int64_t i = 0; i < count; ++i) ++starts[(from[i].key >> shift) % DIGITS];
        int64_t at = 0;
        for (int64_t digit = 0; digit < DIGITS; ++digit) {
            const int64_t here = starts[digit];
            starts[digit] = at;
            at += here;
        }
        for (int64_t i = 0; i < count; ++i) to[starts[(from[i].key >> shift) % DIGITS]++] = from[i];
        Ranked *swapped = from;
        from = to;
        to = swapped;
    }
    return from;
}

}  // namespace

void balanced_sets(const BalancedSetsArgs &a) {
    const bool counting = a.count != nullptr;
    const int64_t n = a.tokens, span = counting ? 1 : a.span;  // keys do not change the count
    Scratch scratch(static_cast<size_t>(2 * n) * sizeof(Ranked) +
                    static_cast<size_t>(DIGITS) * sizeof(int64_t) + 256);
    Ranked *first = scratch.take<Ranked>(n), *second = scratch.take<Ranked>(n);
    int64_t *starts = scratch.take<int64_t>(DIGITS);
    for (int64_t order = 0; order < (counting ? 1 : a.orders); ++order) {
        uint64_t most = 0;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t rank = counting ? 0 : a.keys[order * n + i];
            const uint64_t key = static_cast<uint64_t>(a.groups[i] * span + rank);
            most |= key;
            first[i] = {key, i};
        }
        const Ranked *sorted = radix_sort(first, second, n, most, starts);
        int64_t set = 0;
        for (int64_t begin = 0, end = 0; begin < n; begin = end) {
            const uint64_t group = sorted[begin].key / static_cast<uint64_t>(span);
            const uint64_t limit = (group + 1) * static_cast<uint64_t>(span);
            while (end < n && sorted[end].key < limit) ++end;
            const int64_t count = end - begin, sets = ceil_div(count, a.size);
            if (counting) {
                set += sets;
                continue;
            }
            const int64_t slots = sets * a.size, offset = (order * a.sets + set) * a.size;
            int64_t rank = -1;
            for (int64_t slot = 0, next = 0; slot < slots; ++slot, next += count) {
                const bool fresh = next >= (rank + 1) * slots;  // floor(slot * count / slots) grew
                rank += fresh;
                a.indices[offset + slot] = sorted[begin + rank].token;
                a.repeated[offset + slot] = !fresh;
            }
            set += sets;
        }
        if (counting) *a.count = set;
    }
}

}  // namespace gossamer::GOSSAMER_ISA
