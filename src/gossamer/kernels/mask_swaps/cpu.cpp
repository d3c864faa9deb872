// DSnoT's swaps, every row by itself: candidates wait in heaps, so that a row costs a pass over its
// weights and a logarithm for each swap.
#include "../native/params.hpp"
#include "../native/simd.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

struct Candidate {
    float key;
    int32_t column;
};

GOSSAMER_INLINE bool before(Candidate a, Candidate b) {
    return a.key > b.key || (a.key == b.key && a.column < b.column);
}

// Candidates of largest key first, ties by lowest column.
struct Heap {
    Candidate *items;
    int64_t count;

    void sink(int64_t place) {
        const Candidate item = items[place];
        for (int64_t child = 2 * place + 1; child < count; child = 2 * place + 1) {
            child += child + 1 < count && before(items[child + 1], items[child]);
            if (!before(items[child], item)) break;
            items[place] = items[child];
            place = child;
        }
        items[place] = item;
    }
    void order() {
        for (int64_t place = count / 2 - 1; place >= 0; --place) sink(place);
    }
    void drop_first() {
        items[0] = items[--count];
        if (count > 0) sink(0);
    }
};

struct Row {
    const MaskSwapsArgs &a;
    const float *weight, *scores;
    const uint8_t *mask;
    float *effect;  // [width]
    bool *left;     // [width]: what a group has given up already

    // What may enter and leave while the error has this sign. Each weight is written to both ends
    // and kept at one or none: which it will be, no branch could predict.
    void gather(float sign, Heap &enter, Heap &leave) const {
        int64_t entering = 0, leaving = 0;
        for (int64_t c = 0; c < a.width; ++c) {
            const float towards = sign * effect[c];
            const int32_t column = static_cast<int32_t>(c);
            enter.items[entering] = {towards * a.steady[c], column};
            leave.items[leaving] = {-__builtin_fabsf(weight[c]) * a.norm[c], column};
            entering += static_cast<int64_t>(mask[c] == 0) & (towards > 0.0f);
            leaving += static_cast<int64_t>(mask[c] != 0) & (towards < 0.0f) & (a.group == 0);
        }
        enter.count = entering;
        leave.count = leaving;
        enter.order();
        leave.order();
    }

    // The kept weight of lowest score in the group of a column, -1 for none.
    int64_t least_of_group(int64_t column) const {
        int64_t least = -1;
        const int64_t first = column / a.group * a.group;
        for (int64_t c = first; c < first + a.group; ++c)
            if (mask[c] && !left[c] && (least < 0 || scores[c] < scores[least])) least = c;
        return least;
    }
};

}  // namespace

void mask_swaps(const MaskSwapsArgs &a) {
#pragma omp parallel num_threads(a.threads)
    {
        Scratch scratch(static_cast<size_t>(a.width * (4 * 8 + 4 + 1)) + 1024);
        Heap enter[2], leave[2];
        for (int side = 0; side < 2; ++side) {
            enter[side].items = scratch.take<Candidate>(a.width);
            leave[side].items = scratch.take<Candidate>(a.width);
        }
        float *effect = scratch.take<float>(a.width);
        bool *left = scratch.take<bool>(a.width);
#pragma omp for schedule(dynamic, 8)
        for (int64_t r = 0; r < a.rows; ++r) {
            const int64_t at = r * a.width;
            const Row row{a, a.weight + at, a.scores + at, a.mask + at, effect, left};
            uint8_t *out = a.out + at;
            double error = 0.0;
            for (int64_t c = 0; c < a.width; ++c) {
                effect[c] = row.weight[c] * a.total[c];
                error += row.mask[c] ? 0.0 : static_cast<double>(effect[c]);
                left[c] = false;
                out[c] = row.mask[c];
            }
            const double first = error;
            bool gathered[2] = {false, false};
            int64_t swaps = 0;
            for (; swaps < a.cycles && (error > a.threshold || error < -a.threshold); ++swaps) {
                const int side = error < 0.0;
                if (!gathered[side]) row.gather(side ? -1.0f : 1.0f, enter[side], leave[side]);
                gathered[side] = true;
                if (enter[side].count == 0) break;
                const int64_t grown = enter[side].items[0].column;
                int64_t pruned = -1;
                if (a.group > 0)
                    pruned = row.least_of_group(grown);
                else if (leave[side].count > 0)
                    pruned = leave[side].items[0].column;
                if (pruned < 0) break;
                const double after = error + static_cast<double>(effect[pruned]) -
                                     static_cast<double>(effect[grown]);
                if (a.guarded && after * first < 0.0) break;
                error = after;
                out[grown] = 1;
                out[pruned] = 0;
                left[pruned] = true;
                enter[side].drop_first();
                if (a.group == 0) leave[side].drop_first();
            }
            a.swaps[r] = swaps;
            a.before[r] = first;
            a.after[r] = error;
        }
    }
}

}  // namespace gossamer::GOSSAMER_ISA
