// DSnoT's swaps, every row by itself. Swaps are few: looking for the best candidate again for each
// one costs less than putting the candidates in order.
#include "../native/params.hpp"
#include "../native/simd.hpp"

namespace gossamer::GOSSAMER_ISA {
namespace {

// The first place of the largest of `count` keys, whole vectors; -1 where all are -inf.
GOSSAMER_INLINE int64_t first_largest(const float *keys, int64_t count) {
    IntVec lanes;
    for (int lane = 0; lane < W; ++lane) lanes[lane] = lane;
    Vec best = broadcast(NEG_INF);
    IntVec place = lanes;
    for (int64_t i = 0; i < count; i += W, lanes += W) {
        const Vec x = load(keys + i);
        place = x > best ? lanes : place;
        best = x > best ? x : best;
    }
    const float most = maximum(best);
    if (most == NEG_INF) return -1;
    int64_t first = count;
    for (int lane = 0; lane < W; ++lane)
        if (best[lane] == most) first = min64(first, place[lane]);
    return first;
}

GOSSAMER_INLINE IntVec integers(const int32_t *p) {
    return reinterpret_cast<IntVec>(load(reinterpret_cast<const float *>(p)));
}

// Every array but mask and scores is padded to whole vectors: weights with zeros.
struct Row {
    const MaskSwapsArgs &a;
    int64_t padded;
    const float *total, *norm, *steady;
    const float *scores;
    const uint8_t *mask;
    float *weight;  // a copy
    float *effect;  // on the output, of each weight
    int32_t *kept;  // the mask
    bool *left;     // what a group has given up already

    // Returns what the weights that are not kept leave out; `spare` is written over.
    double measure(const float *from, float *spare) const {
        memcpy(weight, from, sizeof(float) * static_cast<size_t>(a.width));
        for (int64_t c = 0; c < a.width; ++c) kept[c] = mask[c];
        for (int64_t c = 0; c < padded; c += W) {
            const Vec moved = load(weight + c) * load(total + c);
            store(effect + c, moved);
            store(spare + c, integers(kept + c) == 0 ? moved : Vec{});
        }
        double sums[4] = {};
        for (int64_t c = 0; c < padded; c += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sums[i] += static_cast<double>(spare[c + i]);
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }

    // Ranks what may enter and leave while the error has this sign; -inf: not this one. Without
    // branches, which nothing could predict.
    void rank(float sign, float *enter, float *leave) const {
        const Vec nothing = broadcast(NEG_INF);
        for (int64_t c = 0; c < padded; c += W) {
            const Vec towards = sign * load(effect + c), w = load(weight + c);
            const IntVec stays = integers(kept + c);
            const Vec score = (w < 0.0f ? w : -w) * load(norm + c);
            store(enter + c,
                  (stays == 0) & (towards > 0.0f) ? towards * load(steady + c) : nothing);
            store(leave + c, (stays != 0) & (towards < 0.0f) ? score : nothing);
        }
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
        const int64_t padded = round_up(a.width, W);
        const size_t bytes = sizeof(float) * static_cast<size_t>(round_up(a.width, 16));
        Scratch scratch(10 * bytes + static_cast<size_t>(a.width) + 64);
        const auto array = [&](const float *from) {
            float *copy = scratch.take<float>(padded);
            memset(copy, 0, sizeof(float) * static_cast<size_t>(padded));
            if (from != nullptr) memcpy(copy, from, sizeof(float) * static_cast<size_t>(a.width));
            return copy;
        };
        const float *total = array(a.total), *norm = array(a.norm), *steady = array(a.steady);
        float *enter[2] = {array(nullptr), array(nullptr)};
        float *leave[2] = {array(nullptr), array(nullptr)};
        float *weight = array(nullptr), *effect = array(nullptr);
        int32_t *kept = reinterpret_cast<int32_t *>(array(nullptr));
        bool *left = scratch.take<bool>(a.width);
#pragma omp for schedule(dynamic, 8)
        for (int64_t r = 0; r < a.rows; ++r) {
            const int64_t at = r * a.width;
            const Row row{a,           padded, total,  norm, steady, a.scores + at,
                          a.mask + at, weight, effect, kept, left};
            uint8_t *out = a.out + at;
            double error = row.measure(a.weight + at, enter[0]);
            memset(left, 0, static_cast<size_t>(a.width));
            memcpy(out, row.mask, static_cast<size_t>(a.width));
            const double first = error;
            bool ranked[2] = {false, false};
            int64_t swaps = 0;
            for (; swaps < a.cycles && (error > a.threshold || error < -a.threshold); ++swaps) {
                const int side = error < 0.0;
                if (!ranked[side]) row.rank(side ? -1.0f : 1.0f, enter[side], leave[side]);
                ranked[side] = true;
                const int64_t grown = first_largest(enter[side], padded);
                if (grown < 0) break;
                const int64_t pruned =
                    a.group > 0 ? row.least_of_group(grown) : first_largest(leave[side], padded);
                if (pruned < 0) break;
                const double after = error + static_cast<double>(effect[pruned]) -
                                     static_cast<double>(effect[grown]);
                if (a.guarded && after * first < 0.0) break;
                error = after;
                out[grown] = 1;
                out[pruned] = 0;
                left[pruned] = true;
                enter[side][grown] = leave[side][pruned] = NEG_INF;
            }
            a.swaps[r] = swaps;
            a.before[r] = first;
            a.after[r] = error;
        }
    }
}

}  // namespace gossamer::GOSSAMER_ISA
