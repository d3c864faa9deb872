// Random walks on the CPU: a group of an edge's walkers goes in step, so that their loads overlap,
// and a lane that falls free takes the next walker. Walkers that can no longer be reported are
// dropped, which changes nothing in what is. (Most walkers die early in dead ends: a search from
// the target, to drop those that cannot arrive, costs more than it saves.)
#include "../native/mix.hpp"
#include "../native/simd.hpp"
#include "../native/walk_params.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr float INFINITE = __builtin_inff();
constexpr int64_t GROUP = 32;  // walkers in step

struct Arrival {
    float resistance = INFINITE;
    int32_t walker = -1, steps = 0;
};

struct Search {
    Arrival found;
    float most = INFINITE;     // resistance of a path that can still be the best
    int32_t last = INT32_MAX;  // walkers before it can still be the first
    // Walkers under way, packed from lane 0.
    uint64_t stream[GROUP] = {};  // what the next draw is made of
    int32_t vertex[GROUP], before[GROUP], number[GROUP], steps[GROUP];
    float total[GROUP];
};

// One step of every lane; survivors are packed without a branch, since who dies is chance.
int64_t step(const RandomWalksArgs &a, int64_t edge, Search &s, int64_t lanes) {
    const int64_t *rows = a.rows, target = a.target[edge], max_steps = a.max_steps;
    const int32_t *neighbour = a.neighbour;
    const float *resistance = a.resistance, limit = a.limit[edge];
    uint64_t draws[GROUP];
    for (int64_t i = 0; i < GROUP; ++i) draws[i] = mix(s.stream[i]) >> 32;
    int64_t alive = 0;
    for (int64_t i = 0; i < lanes; ++i) {
        const int32_t vertex = s.vertex[i], number = s.number[i], steps = s.steps[i] + 1;
        const int64_t first = rows[2 * int64_t{vertex}];
        const int64_t choices = rows[2 * int64_t{vertex} + 1] - (steps > 1);
        int64_t place = static_cast<int64_t>((draws[i] * static_cast<uint64_t>(choices)) >> 32);
        const bool back = neighbour[first + place] == s.before[i];
        place += (choices - place) & -static_cast<int64_t>(back);
        const int32_t next = neighbour[first + place];
        const float total = s.total[i] + resistance[first + place];
        const bool lives = (choices > 0) & (total < limit) & (total <= s.most) & (number < s.last);
        if (next == target) {
            if (lives && (!a.best || total < s.most || number < s.found.walker)) {
                s.found = {total, number, steps};
                if (a.best) s.most = total;
                if (!a.best) s.last = number;
            }
            continue;
        }
        s.stream[alive] = s.stream[i] + GOLDEN;
        s.vertex[alive] = next;
        s.before[alive] = vertex;
        s.number[alive] = number;
        s.steps[alive] = steps;
        s.total[alive] = total;
        alive += lives & (steps < max_steps);
    }
    return alive;
}

Arrival walk_edge(const RandomWalksArgs &a, int64_t edge) {
    const int64_t source = a.source[edge];
    const uint64_t ends =
        static_cast<uint64_t>(source) << 32 | static_cast<uint64_t>(a.target[edge]);
    const uint64_t edge_key = mix(mix(ends) + a.seed);
    Search s;
    if (a.rows[2 * source + 1] == 0) return s.found;
    int64_t lanes = 0, started = 0;
    do {
        for (; lanes < GROUP && started < min64(a.walkers, s.last); ++lanes, ++started) {
            s.stream[lanes] = mix(edge_key + static_cast<uint64_t>(started));
            s.vertex[lanes] = static_cast<int32_t>(source);
            s.before[lanes] = -1;
            s.number[lanes] = static_cast<int32_t>(started);
            s.steps[lanes] = 0;
            s.total[lanes] = 0;
        }
        lanes = step(a, edge, s, lanes);
    } while (lanes > 0 || started < min64(a.walkers, s.last));
    return s.found;
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
