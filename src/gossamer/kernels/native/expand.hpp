// Reading scattered or compressed weights: gathers by narrow indices, values expanded by bit masks.
#pragma once
#include "simd.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gossamer::GOSSAMER_ISA {

// x[columns[i]] for the first `count` lanes, 0 in the others.
template <class Index>
GOSSAMER_INLINE Vec gather(const float *x, const Index *columns, int64_t count) {
#if defined(__AVX512F__)
    const __mmask16 lanes = static_cast<__mmask16>(count >= W ? 0xffff : (1 << count) - 1);
    __m512i at;
    if constexpr (sizeof(Index) == 2)
        at = reinterpret_cast<__m512i>(__builtin_convertvector(
            reinterpret_cast<HalfVec>(_mm256_maskz_loadu_epi16(lanes, columns)), IntVec));
    else
        at = _mm512_maskz_loadu_epi32(lanes, columns);
    return reinterpret_cast<Vec>(
        _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, at, x, sizeof(float)));
#else
#if defined(__AVX2__)
    if (count >= W) {
        const __m256i at =
            sizeof(Index) == 2
                ? _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(columns)))
                : _mm256_loadu_si256(reinterpret_cast<const __m256i *>(columns));
        return reinterpret_cast<Vec>(_mm256_i32gather_ps(x, at, sizeof(float)));
    }
#endif
    Vec v{};
    for (int64_t i = 0; i < min64(count, W); ++i) v[i] = x[columns[i]];
    return v;
#endif
}

// The first `count` values, 0 in the other lanes.
template <class T>
GOSSAMER_INLINE Vec load_some(const T *p, int64_t count) {
    if (count >= W) return load(p);
    T all[W] = {};
    memcpy(all, p, static_cast<size_t>(count) * sizeof(T));
    return load(all);
}

#if defined(__AVX512F__)
GOSSAMER_INLINE Vec expand(uint32_t bits, Vec v) {
    return reinterpret_cast<Vec>(
        _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), reinterpret_cast<__m512>(v)));
}
#endif

}  // namespace gossamer::GOSSAMER_ISA
