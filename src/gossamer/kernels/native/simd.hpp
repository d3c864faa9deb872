// One vector type, written with compiler vector extensions, so that every kernel exists
// once and is compiled for each instruction set (GOSSAMER_ISA names the namespace).
// Everything is static or a template in that namespace: a symbol shared between
// instruction sets could put AVX-512 code on a machine without it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define GOSSAMER_INLINE static inline __attribute__((always_inline))

namespace gossamer::GOSSAMER_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;           // floats a vector
constexpr int MAX_COLUMNS = 4;  // vectors a register tile is wide
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int MAX_COLUMNS = 2;
#else
constexpr int W = 4;
constexpr int MAX_COLUMNS = 2;
#endif
constexpr int MAX_ROWS = 6;  // MAX_ROWS x MAX_COLUMNS accumulators plus operands fill the registers

typedef float Vec __attribute__((vector_size(W * 4)));
typedef float LooseVec __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(W * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(W * 2), aligned(2), may_alias));

constexpr float NEG_INF = -__builtin_inff();
constexpr float LOG2E = 1.44269504f;

GOSSAMER_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
GOSSAMER_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
GOSSAMER_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GOSSAMER_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

using Lanes = std::make_index_sequence<W>;

// Written out, so that a float in memory is broadcast by the load and takes no shuffle port.
template <size_t... I>
GOSSAMER_INLINE Vec broadcast(float x, std::index_sequence<I...>) {
    return Vec{(static_cast<void>(I), x)...};
}
GOSSAMER_INLINE Vec broadcast(float x) { return broadcast(x, Lanes{}); }
GOSSAMER_INLINE Vec load(const float *p) { return *reinterpret_cast<const LooseVec *>(p); }
GOSSAMER_INLINE void store(float *p, Vec v) { *reinterpret_cast<LooseVec *>(p) = v; }

// Keeps a vector with two uses in its register: GCC would load it from memory for each.
GOSSAMER_INLINE Vec keep(Vec v) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__x86_64__)
    __asm__("" : "+x"(v));
#endif
    return v;
}

GOSSAMER_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

GOSSAMER_INLINE float widen(uint16_t x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// Round to nearest even; NaN stays NaN.
GOSSAMER_INLINE uint16_t narrow(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

GOSSAMER_INLINE Vec load(const uint16_t *p) {
    HalfVec half = *reinterpret_cast<const HalfVec *>(p);
    return reinterpret_cast<Vec>(__builtin_convertvector(half, IntVec) << 16);
}

#if defined(__AVX512BF16__)
GOSSAMER_INLINE void store(uint16_t *p, Vec v) {
    const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
    memcpy(p, &half, sizeof half);
}
#else
GOSSAMER_INLINE void store(uint16_t *p, Vec v) {
    IntVec bits = reinterpret_cast<IntVec>(v);
    IntVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *reinterpret_cast<HalfVec *>(p) =
        __builtin_convertvector((v == v) ? rounded : ((bits >> 16) | 0x40), HalfVec);
}
#endif

GOSSAMER_INLINE float scalar(float x) { return x; }
GOSSAMER_INLINE float scalar(uint16_t x) { return widen(x); }
GOSSAMER_INLINE void put(float *p, float x) { *p = x; }
GOSSAMER_INLINE void put(uint16_t *p, float x) { *p = narrow(x); }

template <int Distance, size_t... I>
GOSSAMER_INLINE Vec rotate(Vec v, std::index_sequence<I...>) {
    return __builtin_shufflevector(v, v, ((I + Distance) % W)...);
}

GOSSAMER_INLINE float sum(Vec v) {
    if constexpr (W >= 16) v += rotate<8>(v, Lanes{});
    if constexpr (W >= 8) v += rotate<4>(v, Lanes{});
    v += rotate<2>(v, Lanes{});
    v += rotate<1>(v, Lanes{});
    return v[0];
}

GOSSAMER_INLINE float maximum(Vec v) {
    if constexpr (W >= 16) v = maximum(v, rotate<8>(v, Lanes{}));
    if constexpr (W >= 8) v = maximum(v, rotate<4>(v, Lanes{}));
    v = maximum(v, rotate<2>(v, Lanes{}));
    v = maximum(v, rotate<1>(v, Lanes{}));
    return v[0];
}

// 2^x for x <= 0 to about two ulp; exactly 0 below -126, so masked scores vanish.
GOSSAMER_INLINE Vec exp2_nonpositive(Vec x) {
    const Vec magic = broadcast(12583039.0f);  // 1.5 * 2^23 + 127: low bits hold round(x) + 127
    const Vec shifted = x + magic;
    const Vec r = x - (shifted - magic);
    Vec p = broadcast(1.3264727e-3f);  // minimax for 2^r on [-1/2, 1/2]
    p = p * r + 9.6715127e-3f;
    p = p * r + 5.5507337e-2f;
    p = p * r + 2.4022242e-1f;
    p = p * r + 6.9314698e-1f;
    p = p * r + 1.0f;
    // A product, not an addition to the exponent bits: NaN stays NaN whatever its payload.
    const Vec power = p * reinterpret_cast<Vec>(reinterpret_cast<IntVec>(shifted) << 23);
    return x < broadcast(-126.0f) ? Vec{} : power;
}

template <int Stage, bool High, size_t... I>
GOSSAMER_INLINE Vec interleave(Vec a, Vec b, std::index_sequence<I...>) {
    // Lane I takes a where bit Stage of I is clear, b where it is set.
    return __builtin_shufflevector(
        a, b, ((I & Stage) ? (W + (High ? I : I - Stage)) : (High ? I + Stage : I))...);
}

template <int Stage>
GOSSAMER_INLINE void transpose_stage(Vec (&r)[W]) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        if (i & Stage) continue;
        Vec a = r[i], b = r[i + Stage];
        r[i] = interleave<Stage, false>(a, b, Lanes{});
        r[i + Stage] = interleave<Stage, true>(a, b, Lanes{});
    }
}

GOSSAMER_INLINE void transpose(Vec (&r)[W]) {
    transpose_stage<1>(r);
    transpose_stage<2>(r);
    if constexpr (W >= 8) transpose_stage<4>(r);
    if constexpr (W >= 16) transpose_stage<8>(r);
}

template <int Stage>
GOSSAMER_INLINE void fold_stage(Vec (&r)[W]) {
#pragma GCC unroll 8
    for (int i = 0; i < Stage; ++i)
        r[i] = interleave<Stage, false>(r[i], r[i + Stage], Lanes{}) +
               interleave<Stage, true>(r[i], r[i + Stage], Lanes{});
}

// Lane I: the sum of vector I.
GOSSAMER_INLINE Vec sums(Vec (&r)[W]) {
    if constexpr (W >= 16) fold_stage<8>(r);
    if constexpr (W >= 8) fold_stage<4>(r);
    fold_stage<2>(r);
    fold_stage<1>(r);
    return r[0];
}

// Scratch memory of one thread; a kernel asks once and carves pieces off it.
class Scratch {
  public:
    explicit Scratch(size_t bytes)
        : base_(static_cast<char *>(aligned_alloc(
              64, static_cast<size_t>(round_up(static_cast<int64_t>(bytes) + 64, 64))))),
          next_(base_) {
        if (base_ == nullptr) abort();  // overcommit makes this unreachable in practice
    }
    ~Scratch() { free(base_); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;

    template <class T>
    T *take(int64_t count) {
        T *piece = reinterpret_cast<T *>(next_);
        next_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return piece;
    }

  private:
    char *base_, *next_;
};

}  // namespace gossamer::GOSSAMER_ISA
