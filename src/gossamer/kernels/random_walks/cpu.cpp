// Random walks on the CPU: the walkers of an edge go in small groups, so that their loads
// overlap. A walker that is no better than one that arrived is dropped, which changes nothing
// in what is reported. (Most walkers die early in dead ends: a search from the target, to drop
// those that cannot arrive, costs more than it saves.)
#include "../native/simd.hpp"
#include "../native/walk_params.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;
constexpr float INFINITE = __builtin_inff();
constexpr int64_t GROUP = 16;  // walkers in step

GOSSAMER_INLINE uint64_t mix(uint64_t x) {
    x += GOLDEN;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

struct Arrival {
    float resistance = INFINITE;
    int32_t walker = -1, steps = 0;
};

// Walk [begin, end), at most GROUP walkers, below `bound`.
void walk_group(const RandomWalksArgs &a, int64_t edge, uint64_t edge_key, int64_t begin,
                int64_t end, float bound, Arrival &arrival) {
    const int32_t target = static_cast<int32_t>(a.target[edge]);
    uint64_t key[GROUP];
    int32_t vertex[GROUP], before[GROUP], number[GROUP];
    float total[GROUP];
    int64_t lanes = 0;
    for (int64_t w = begin; w < end; ++w, ++lanes) {
        key[lanes] = mix(edge_key + static_cast<uint64_t>(w));
        vertex[lanes] = static_cast<int32_t>(a.source[edge]);
        before[lanes] = -1;
        number[lanes] = static_cast<int32_t>(w);
        total[lanes] = 0;
    }
    Arrival found;
    for (int64_t step = 0; step < a.max_steps && lanes > 0; ++step) {
        int64_t alive = 0;
        for (int64_t i = 0; i < lanes; ++i) {
            const int64_t first = a.rows[2 * vertex[i]];
            const int64_t choices = a.rows[2 * vertex[i] + 1] - (step > 0);
            if (choices <= 0) continue;
            const uint64_t draw = mix(key[i] + static_cast<uint64_t>(step) * GOLDEN) >> 32;
            int64_t slot =
                first + static_cast<int64_t>((draw * static_cast<uint64_t>(choices)) >> 32);
            if (a.neighbour[slot] == before[i]) slot = first + choices;
            const float sum = total[i] + a.resistance[slot];
            const int32_t next = a.neighbour[slot];
            if (!(sum < bound)) continue;
            if (next == target) {
                const bool better = a.best ? sum < found.resistance || (sum == found.resistance &&
                                                                        number[i] < found.walker)
                                           : found.walker < 0 || number[i] < found.walker;
                if (better) found = {sum, number[i], static_cast<int32_t>(step + 1)};
                continue;
            }
            key[alive] = key[i];
            before[alive] = vertex[i];
            vertex[alive] = next;
            number[alive] = number[i];
            total[alive++] = sum;
        }
        lanes = alive;
    }
    if (found.walker >= 0) arrival = found;
}

// The bound falls with every arrival, and a later walker must be strictly better to count.
Arrival walk_edge(const RandomWalksArgs &a, int64_t edge) {
    const uint64_t ends =
        static_cast<uint64_t>(a.source[edge]) << 32 | static_cast<uint64_t>(a.target[edge]);
    const uint64_t edge_key = mix(mix(ends) + a.seed);
    Arrival arrival;
    float bound = a.limit[edge];
    for (int64_t w = 0; w < a.walkers; w += GROUP) {
        walk_group(a, edge, edge_key, w, min64(w + GROUP, a.walkers), bound, arrival);
        if (arrival.walker < 0) continue;
        if (!a.best) break;
        bound = arrival.resistance;
    }
    return arrival;
}

}  // namespace

void random_walks(const RandomWalksArgs &a) {
#pragma omp parallel for schedule(dynamic, 16) num_threads(a.threads)
    for (int64_t edge = 0; edge < a.edges; ++edge) {
        const Arrival arrival = walk_edge(a, edge);
        a.found[edge] = arrival.resistance;
        a.walker[edge] = arrival.walker;
        a.steps[edge] = arrival.steps;
    }
}

}  // namespace gossamer::GOSSAMER_ISA
