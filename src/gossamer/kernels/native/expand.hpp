// Reading scattered or compressed weights: gathers by narrow indices, values expanded by bit masks.
#pragma once
#include "simd.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gossamer::GOSSAMER_ISA {

// x[columns[i]] for W lanes.
template <class Index>
GOSSAMER_INLINE Vec gather(const float *x, const Index *columns) {
#if defined(__AVX512F__)
    __m512i at;
    if constexpr (sizeof(Index) == 2) {
        HalfVec narrow;
        memcpy(&narrow, columns, sizeof narrow);
        at = reinterpret_cast<__m512i>(__builtin_convertvector(narrow, IntVec));
    } else {
        memcpy(&at, columns, sizeof at);
    }
    // GCC warns of the register that the form without a mask leaves undefined.
    return reinterpret_cast<Vec>(
        _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, at, x, sizeof(float)));
#elif defined(__AVX2__)
    const __m256i at =
        sizeof(Index) == 2
            ? _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(columns)))
            : _mm256_loadu_si256(reinterpret_cast<const __m256i *>(columns));
    return reinterpret_cast<Vec>(_mm256_i32gather_ps(x, at, sizeof(float)));
#else
    Vec v{};
    for (int i = 0; i < W; ++i) v[i] = x[columns[i]];
    return v;
#endif
}

#if defined(__AVX512F__)
// On Zen 4, to expand or compress right from or into memory takes tens to hundreds of cycles, and
// in registers it waits for whoever wrote the target last. So values are loaded first, and the
// target is cleared in a way that waits for nobody.
GOSSAMER_INLINE __m512i cleared() {
    __m512i zero;
    __asm__("vpxord %0, %0, %0" : "=v"(zero));
    return zero;
}

GOSSAMER_INLINE Vec expand(uint32_t bits, Vec v) {
    return reinterpret_cast<Vec>(_mm512_mask_expand_ps(reinterpret_cast<__m512>(cleared()),
                                                       static_cast<__mmask16>(bits),
                                                       reinterpret_cast<__m512>(keep(v))));
}

#if defined(__AVX512VBMI2__)
// 32 half-width numbers.
GOSSAMER_INLINE IntVec expand_halves(uint32_t bits, const uint16_t *values) {
    const Vec packed = keep(load(reinterpret_cast<const float *>(values)));
    return reinterpret_cast<IntVec>(
        _mm512_mask_expand_epi16(cleared(), bits, reinterpret_cast<__m512i>(packed)));
}
#endif

// Moves the lanes that `bits` names to the front.
GOSSAMER_INLINE IntVec compress(uint32_t bits, IntVec v) {
    return reinterpret_cast<IntVec>(_mm512_mask_compress_epi32(
        cleared(), static_cast<__mmask16>(bits), reinterpret_cast<__m512i>(v)));
}

// Writes the lanes that `bits` names, one behind the other, and nothing after them; returns how
// many.
GOSSAMER_INLINE int64_t compress(uint32_t bits, IntVec v, void *out) {
    const int count = __builtin_popcount(bits);
    _mm512_mask_storeu_epi32(out, static_cast<__mmask16>((1u << count) - 1),
                             reinterpret_cast<__m512i>(compress(bits, v)));
    return count;
}
#endif

}  // namespace gossamer::GOSSAMER_ISA
