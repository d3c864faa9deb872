// Plain record of the random-walk kernel; see params.hpp for the rules.
#pragma once
#include <cstdint>

namespace gossamer {

// Non-backtracking walkers between the ends of edges; what is reported for each edge.
struct RandomWalksArgs {
    const int64_t *rows;       // [vertices, 2] first slot, degree
    const int32_t *neighbour;  // [slots]
    const float *resistance;   // [slots]
    int64_t edges;
    const int64_t *source, *target;  // [edges]
    const float *limit;              // [edges] a path's resistance stays below it
    int64_t walkers, max_steps;
    bool best;  // the walker of least resistance, otherwise the first that arrives
    uint64_t seed;
    float *found;             // out [edges], inf: no walker arrived
    int32_t *walker, *steps;  // out [edges], -1 and 0 likewise
    int threads;
};

}  // namespace gossamer
