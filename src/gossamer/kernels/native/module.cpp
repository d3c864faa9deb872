// The Python binding: tensors come in through DLPack, already validated by the public
// functions; the instruction set is chosen at run time and can be forced.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "binding.hpp"

namespace gossamer {

#define GOSSAMER_ENTRY(name, Args) void name(const Args &);
#define GOSSAMER_NAME(name, Args) name,
#define GOSSAMER_DECLARE(isa)                                   \
    namespace isa {                                             \
    GOSSAMER_KERNELS(GOSSAMER_ENTRY)                            \
    constexpr Kernels kernels{GOSSAMER_KERNELS(GOSSAMER_NAME)}; \
    }

GOSSAMER_DECLARE(portable)
#if defined(GOSSAMER_X86)
GOSSAMER_DECLARE(avx2)
GOSSAMER_DECLARE(avx512)
GOSSAMER_DECLARE(amx)

// The kernels of avx512, but for those that gain by dot products of bytes.
namespace avx512vnni {
using namespace avx512;
void int8_spmm(const Int8SpmmArgs &);
constexpr Kernels kernels{GOSSAMER_KERNELS(GOSSAMER_NAME)};
}  // namespace avx512vnni

// Besides, those that gain by expanding and rounding half-width numbers.
namespace avx512bf16 {
using namespace avx512;
void int8_spmm(const Int8SpmmArgs &);
void sparse_gemv(const GemvArgs &);
void lossless_gemv(const GemvArgs &);
void before_attention(const DecoderBlockArgs &);
void after_attention(const DecoderBlockArgs &);
constexpr Kernels kernels{GOSSAMER_KERNELS(GOSSAMER_NAME)};
}  // namespace avx512bf16
#endif

namespace {

struct InstructionSet {
    const char *name;
    const Kernels *kernels;
    bool (*runs_here)();
};

#if defined(GOSSAMER_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

bool has_avx512bf16() {
    return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("avx512bf16");
}

// AMX needs cpuid bits and the kernel's leave to use the tile registers.
bool has_amx() {
    if (!has_avx512bf16()) return false;
    unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    const bool bf16 = edx & (1u << 22), tile = edx & (1u << 24), bytes = edx & (1u << 25);
    constexpr long request_permission = 0x1023, tile_data = 18;
    return bf16 && tile && bytes && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

const InstructionSet ALL[] = {
#if defined(GOSSAMER_X86)
    {"amx", &amx::kernels, has_amx},
    {"avx512bf16", &avx512bf16::kernels, has_avx512bf16},
    {"avx512vnni", &avx512vnni::kernels, has_avx512vnni},
    {"avx512", &avx512::kernels, has_avx512},
    {"avx2", &avx2::kernels, has_avx2},
#endif
    {"portable", &portable::kernels, [] { return true; }},
};

const InstructionSet *best() {
    for (const InstructionSet &isa : ALL)
        if (isa.runs_here()) return &isa;
    return nullptr;  // unreachable: portable always runs
}

const InstructionSet *active = best();

std::vector<std::string> available() {
    std::vector<std::string> names;
    for (const InstructionSet &isa : ALL)
        if (isa.runs_here()) names.emplace_back(isa.name);
    return names;
}

void force(const std::string &name) {
    for (const InstructionSet &isa : ALL)
        if (name == isa.name && isa.runs_here()) {
            active = &isa;
            return;
        }
    throw nb::value_error(("this machine cannot run instruction set '" + name + "'").c_str());
}

View view(const Array &t) { return {t.data(), t.stride(0), t.stride(1), t.stride(2)}; }

struct Lists {
    MaybeArray starts, counts, indices;
    int64_t heads = 1, groups = 1, group = 1, unit = 1;
};

AttentionArgs attention_args(const Array &query, const Array &key, const Array &value,
                             const MaybeArray &out, const Lists &lists, bool causal, float scale,
                             const MaybeArray &key_start, int threads) {
    AttentionArgs a{};
    a.query = view(query);
    a.key = view(key);
    a.value = view(value);
    if (out) a.out = {out->data(), out->stride(0), out->stride(1), out->stride(2)};
    a.dtype = dtype_of(query);
    a.batch = static_cast<int64_t>(query.shape(0));
    a.heads = static_cast<int64_t>(query.shape(1));
    a.kv_heads = static_cast<int64_t>(key.shape(1));
    a.q_len = static_cast<int64_t>(query.shape(2));
    a.k_len = static_cast<int64_t>(key.shape(2));
    a.dim = static_cast<int64_t>(query.shape(3));
    a.starts = data<const int64_t>(lists.starts);
    a.counts = data<const int64_t>(lists.counts);
    a.indices = data<const int32_t>(lists.indices);
    a.list_heads = lists.heads;
    a.groups = lists.groups;
    a.group = lists.group;
    a.unit = lists.unit;
    a.causal = causal;
    a.scale = scale;
    a.key_start = data<const int64_t>(key_start);
    a.threads = threads;
    return a;
}

State state(const MaybeArray &max, const MaybeArray &sum, const MaybeArray &acc) {
    return {data<float>(max), data<float>(sum), data<float>(acc)};
}

void block_sparse_attention(const Array &query, const Array &key, const Array &value,
                            const MaybeArray &out, const MaybeArray &starts,
                            const MaybeArray &counts, const MaybeArray &indices, int64_t list_heads,
                            int64_t groups, int64_t block, bool causal, float scale, int64_t sink,
                            int64_t local, const MaybeArray &key_start, const MaybeArray &max_out,
                            const MaybeArray &sum_out, const MaybeArray &acc_out,
                            const MaybeArray &lse, int threads) {
    AttentionArgs a = attention_args(query, key, value, out,
                                     {starts, counts, indices, list_heads, groups, block, block},
                                     causal, scale, key_start, threads);
    a.sink = sink;
    a.local = local;
    a.state_out = state(max_out, sum_out, acc_out);
    a.lse = data<float>(lse);
    nb::gil_scoped_release release;
    active->kernels->block_sparse_attention(a);
}

void gathered_attention(const Array &query, const Array &key, const Array &value,
                        const MaybeArray &out, const Array &starts, const Array &counts,
                        const Array &indices, int64_t list_heads, int64_t groups, int64_t group,
                        bool causal, float scale, const MaybeArray &key_start,
                        const MaybeArray &cosine, const MaybeArray &sine, const MaybeArray &max_in,
                        const MaybeArray &sum_in, const MaybeArray &acc_in,
                        const MaybeArray &max_out, const MaybeArray &sum_out,
                        const MaybeArray &acc_out, const MaybeArray &lse, int threads) {
    AttentionArgs a = attention_args(query, key, value, out,
                                     {starts, counts, indices, list_heads, groups, group, 1},
                                     causal, scale, key_start, threads);
    a.cosine = data<const float>(cosine);
    a.sine = data<const float>(sine);
    a.state_in = state(max_in, sum_in, acc_in);
    a.state_out = state(max_out, sum_out, acc_out);
    a.lse = data<float>(lse);
    nb::gil_scoped_release release;
    active->kernels->gathered_attention(a);
}

void tree_search(const Array &query, const Array &key, const Array &indices, const Array &scored,
                 int64_t block_q, int64_t block_k, int64_t nodes, int64_t window, int64_t sink,
                 int64_t query_stride, int representative, uint64_t seed, int64_t channels,
                 const MaybeArray &key_start, int threads) {
    TreeSearchArgs t{};
    t.query = view(query);
    t.key = view(key);
    t.dtype = dtype_of(query);
    t.batch = static_cast<int64_t>(query.shape(0));
    t.heads = static_cast<int64_t>(query.shape(1));
    t.kv_heads = static_cast<int64_t>(key.shape(1));
    t.q_len = static_cast<int64_t>(query.shape(2));
    t.k_len = static_cast<int64_t>(key.shape(2));
    t.dim = static_cast<int64_t>(query.shape(3));
    t.search_heads = static_cast<int64_t>(indices.shape(1));
    t.groups = static_cast<int64_t>(indices.shape(2));
    t.width = static_cast<int64_t>(indices.shape(3));
    t.block_q = block_q;
    t.block_k = block_k;
    t.nodes = nodes;
    t.window = window;
    t.sink = sink;
    t.query_stride = query_stride;
    t.representative = representative;
    t.seed = seed;
    t.channels = channels;
    t.key_start = data<const int64_t>(key_start);
    t.indices = static_cast<int32_t *>(indices.data());
    t.scored = static_cast<int64_t *>(scored.data());
    t.threads = threads;
    nb::gil_scoped_release release;
    active->kernels->tree_search(t);
}

void rotate(const Array &vectors, const Array &cosine, const Array &sine, const Array &out,
            int threads) {
    RotateArgs r{};
    r.vectors = view(vectors);
    r.cosine = view(cosine);
    r.sine = view(sine);
    r.out = out.data();
    r.dtype = dtype_of(vectors);
    r.batch = static_cast<int64_t>(vectors.shape(0));
    r.heads = static_cast<int64_t>(vectors.shape(1));
    r.tokens = static_cast<int64_t>(vectors.shape(2));
    r.dim = static_cast<int64_t>(vectors.shape(3));
    r.threads = threads;
    nb::gil_scoped_release release;
    active->kernels->rotate(r);
}

void paged_dot(const Array &query, const Array &key, const Array &begin, int64_t end, float scale,
               const Array &scores, int threads) {
    PagedDotArgs p{};
    p.query = view(query);
    p.key = view(key);
    p.query_dtype = dtype_of(query);
    p.dtype = dtype_of(key);
    p.batch = static_cast<int64_t>(query.shape(0));
    p.heads = static_cast<int64_t>(query.shape(1));
    p.kv_heads = static_cast<int64_t>(key.shape(1));
    p.k_len = static_cast<int64_t>(key.shape(2));
    p.dim = static_cast<int64_t>(query.shape(3));
    p.end = end;
    p.begin = static_cast<const int64_t *>(begin.data());
    p.scale = scale;
    p.scores = static_cast<float *>(scores.data());
    p.threads = threads;
    nb::gil_scoped_release release;
    active->kernels->paged_dot(p);
}

void soft_votes(const Array &scores, const Array &votes, int threads) {
    const SoftVotesArgs v{
        static_cast<const float *>(scores.data()), static_cast<int64_t>(scores.shape(0)),
        static_cast<int64_t>(scores.shape(1)),     static_cast<int64_t>(scores.shape(2)),
        static_cast<float *>(votes.data()),        threads};
    nb::gil_scoped_release release;
    active->kernels->soft_votes(v);
}

void top_indices(const Array &values, const Array &indices, int threads) {
    const TopIndicesArgs t{
        static_cast<const float *>(values.data()), static_cast<int64_t>(values.shape(0)),
        static_cast<int64_t>(values.shape(1)),     static_cast<int64_t>(indices.shape(1)),
        static_cast<int32_t *>(indices.data()),    threads};
    nb::gil_scoped_release release;
    active->kernels->top_indices(t);
}

// Everything comes as an address: this is called for every layer of every token.
void stripe_search(const Array &key, const Array &pooled, const Array &threshold, int64_t step,
                   const Array &begin, const Array &end, const Array &hits, int threads) {
    StripeSearchArgs s{};
    s.key = view(key);
    s.dtype = dtype_of(key);
    s.pooled = static_cast<const float *>(pooled.data());
    s.threshold = static_cast<const float *>(threshold.data());
    s.batch = static_cast<int64_t>(pooled.shape(0));
    s.heads = static_cast<int64_t>(pooled.shape(1));
    s.rows = static_cast<int64_t>(pooled.shape(2));
    s.dim = static_cast<int64_t>(pooled.shape(3));
    s.kv_heads = static_cast<int64_t>(key.shape(1));
    s.k_len = static_cast<int64_t>(key.shape(2));
    s.list_heads = static_cast<int64_t>(hits.shape(1));
    s.step = step;
    s.groups = static_cast<int64_t>(hits.shape(2));
    s.begin = static_cast<const int64_t *>(begin.data());
    s.end = static_cast<const int64_t *>(end.data());
    s.hits = static_cast<uint64_t *>(hits.data());
    s.words = static_cast<int64_t>(hits.shape(3));
    s.threads = threads;
    nb::gil_scoped_release release;
    active->kernels->stripe_search(s);
}

void random_walks(const Array &rows, const Array &neighbour, const Array &resistance,
                  const Array &source, const Array &target, const Array &limit, int64_t walkers,
                  int64_t max_steps, bool best, uint64_t seed, const Array &found,
                  const Array &walker, const Array &steps, int threads) {
    RandomWalksArgs r{};
    r.rows = static_cast<const int64_t *>(rows.data());
    r.neighbour = static_cast<const int32_t *>(neighbour.data());
    r.resistance = static_cast<const float *>(resistance.data());
    r.edges = static_cast<int64_t>(source.shape(0));
    r.source = static_cast<const int64_t *>(source.data());
    r.target = static_cast<const int64_t *>(target.data());
    r.limit = static_cast<const float *>(limit.data());
    r.walkers = walkers;
    r.max_steps = max_steps;
    r.best = best;
    r.seed = seed;
    r.found = static_cast<float *>(found.data());
    r.walker = static_cast<int32_t *>(walker.data());
    r.steps = static_cast<int32_t *>(steps.data());
    r.threads = threads;
    nb::gil_scoped_release release;
    active->kernels->random_walks(r);
}

// Row bit masks [rows, words] to CSR: fills offsets [rows + 1]; indices when given.
void bits_to_csr(const Array &hits, const Array &offsets, const MaybeArray &indices) {
    const auto *bits = static_cast<const uint64_t *>(hits.data());
    auto *at = static_cast<int64_t *>(offsets.data());
    auto *out = data<int32_t>(indices);
    const size_t rows = hits.shape(0), words = hits.shape(1);
    nb::gil_scoped_release release;
    if (out == nullptr) {
        at[0] = 0;
        for (size_t r = 0; r < rows; ++r) {
            int64_t count = 0;
            for (size_t w = 0; w < words; ++w) count += __builtin_popcountll(bits[r * words + w]);
            at[r + 1] = at[r] + count;
        }
        return;
    }
    for (size_t r = 0; r < rows; ++r) {
        int32_t *to = out + at[r];
        for (size_t w = 0; w < words; ++w)
            for (uint64_t word = bits[r * words + w]; word != 0; word &= word - 1)
                *to++ = static_cast<int32_t>(w * 64 + static_cast<size_t>(__builtin_ctzll(word)));
    }
}

}  // namespace

const Kernels &active_kernels() { return *active->kernels; }

}  // namespace gossamer

NB_MODULE(_native, m) {
    namespace g = gossamer;
    m.doc() = "Native kernels of gossamer; use the public functions of gossamer.kernels.";
    m.def("available", &g::available);
    m.def("active", [] { return std::string(g::active->name); });
    m.def("force", &g::force);
    m.def("block_sparse_attention", &g::block_sparse_attention);
    m.def("gathered_attention", &g::gathered_attention);
    m.def("tree_search", &g::tree_search);
    m.def("rotate", &g::rotate);
    m.def("paged_dot", &g::paged_dot);
    m.def("soft_votes", &g::soft_votes);
    m.def("top_indices", &g::top_indices);
    m.def("stripe_search", &g::stripe_search);
    m.def("random_walks", &g::random_walks);
    m.def("bits_to_csr", &g::bits_to_csr);
    g::bind_decoder(m);
    g::bind_images(m);
    g::bind_sets(m);
    g::bind_weights(m);
}
