// Random walks on the CPU: the walkers of an edge go in small groups, so that their loads
// overlap. Walkers that cannot arrive below the limit any more are dropped: a bounded search
// from the target knows how much every vertex near it still has to pay. What is reported is
// what the plain walks would report.
#include "../native/simd.hpp"
#include "../native/walk_params.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;
constexpr float INFINITE = __builtin_inff();
constexpr int64_t GROUP = 8;    // walkers in step
constexpr int64_t SCOUTS = 32;  // walkers sent before a search from the target pays

GOSSAMER_INLINE uint64_t mix(uint64_t x) {
    x += GOLDEN;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

// Shortest resistances to one vertex, as far as room allows; a lower bound beyond.
class Ball {
  public:
    // Dijkstra from `target`, no further than `radius`.
    void grow(const RandomWalksArgs &a, int64_t target, double radius) {
        if (++epoch_ == 0) {  // stamps of 2^32 balls ago would look new
            for (Entry &entry : table_) entry.epoch = 0;
            epoch_ = 1;
        }
        beyond_ = radius;
        int64_t waiting = 0, settled = 0;
        push(waiting, 0.0, static_cast<int32_t>(target));
        while (waiting > 0) {
            const double distance = heap_[0].distance;
            const int32_t vertex = heap_[0].vertex;
            const int64_t first = a.rows[2 * vertex], degree = a.rows[2 * vertex + 1];
            if (settled == ROOM || waiting + degree > WAITING) {  // nothing nearer is unknown
                beyond_ = distance;
                return;
            }
            pop(waiting);
            Entry &entry = at(vertex);
            if (entry.epoch == epoch_) continue;
            entry = {vertex, epoch_, distance};
            ++settled;
            for (int64_t slot = first; slot < first + degree; ++slot) {
                const double next = distance + static_cast<double>(a.resistance[slot]);
                if (next < radius && at(a.neighbour[slot]).epoch != epoch_)
                    push(waiting, next, a.neighbour[slot]);
            }
        }
    }

    double least(int32_t vertex) {
        const Entry &entry = at(vertex);
        return entry.epoch == epoch_ ? entry.distance : beyond_;
    }

  private:
    static constexpr int64_t ROOM = 1024, CELLS = 4096, WAITING = 4096;
    struct Entry {
        int32_t vertex;
        uint32_t epoch;
        double distance;
    };
    struct Item {
        double distance;
        int32_t vertex;
    };

    // The vertex's cell, or the free cell where it belongs.
    Entry &at(int32_t vertex) {
        uint32_t cell = (static_cast<uint32_t>(vertex) * 2654435769u) >> 20;
        while (table_[cell].epoch == epoch_ && table_[cell].vertex != vertex)
            cell = (cell + 1) % CELLS;
        return table_[cell];
    }

    void push(int64_t &waiting, double distance, int32_t vertex) {
        int64_t i = waiting++;
        for (; i > 0 && heap_[(i - 1) / 2].distance > distance; i = (i - 1) / 2)
            heap_[i] = heap_[(i - 1) / 2];
        heap_[i] = {distance, vertex};
    }

    void pop(int64_t &waiting) {
        const Item last = heap_[--waiting];
        int64_t i = 0;
        for (int64_t child = 1; child < waiting; child = 2 * i + 1) {
            if (child + 1 < waiting && heap_[child + 1].distance < heap_[child].distance) ++child;
            if (heap_[child].distance >= last.distance) break;
            heap_[i] = heap_[child];
            i = child;
        }
        heap_[i] = last;
    }

    Entry table_[CELLS] = {};
    Item heap_[WAITING];
    uint32_t epoch_ = 0;
    double beyond_ = 0;
};

struct Arrival {
    float resistance = INFINITE;
    int32_t walker = -1, steps = 0;
};

// Walk [begin, end) of at most GROUP walkers below `bound`; `ball` may be null.
void walk_group(const RandomWalksArgs &a, int64_t edge, uint64_t edge_key, int64_t begin,
                int64_t end, float bound, Ball *ball, double reachable, Arrival &arrival) {
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
            if (ball != nullptr && static_cast<double>(sum) + ball->least(next) >= reachable)
                continue;
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
Arrival walk_edge(const RandomWalksArgs &a, int64_t edge, Ball &ball) {
    const uint64_t ends =
        static_cast<uint64_t>(a.source[edge]) << 32 | static_cast<uint64_t>(a.target[edge]);
    const uint64_t edge_key = mix(mix(ends) + a.seed);
    Arrival arrival;
    Ball *known = nullptr;
    float bound = a.limit[edge];
    // Walkers sum in float32: T roundings may make a path look cheaper by this share.
    const double slack = 1 - 4e-7 * static_cast<double>(a.max_steps + 2);
    double reachable = 0;
    for (int64_t w = 0; w < a.walkers; w += GROUP) {
        if (w == SCOUTS && bound < INFINITE && slack > 0) {
            reachable = static_cast<double>(bound) / slack;
            ball.grow(a, a.target[edge], reachable);
            known = &ball;
            if (ball.least(static_cast<int32_t>(a.source[edge])) >= reachable) break;
        }
        walk_group(a, edge, edge_key, w, min64(w + GROUP, a.walkers), bound, known, reachable,
                   arrival);
        if (arrival.walker < 0) continue;
        if (!a.best) break;
        bound = arrival.resistance;
        reachable = static_cast<double>(bound) / slack;
    }
    return arrival;
}

}  // namespace

void random_walks(const RandomWalksArgs &a) {
#pragma omp parallel num_threads(a.threads)
    {
        Ball ball;
#pragma omp for schedule(dynamic, 16)
        for (int64_t edge = 0; edge < a.edges; ++edge) {
            const Arrival arrival = walk_edge(a, edge, ball);
            a.found[edge] = arrival.resistance;
            a.walker[edge] = arrival.walker;
            a.steps[edge] = arrival.steps;
        }
    }
}

}  // namespace gossamer::GOSSAMER_ISA
