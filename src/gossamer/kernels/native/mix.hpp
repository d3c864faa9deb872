// Splitmix64: how every kernel that draws at random makes its draws.
#pragma once
#include "simd.hpp"

namespace gossamer::GOSSAMER_ISA {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;

GOSSAMER_INLINE uint64_t mix(uint64_t x) {
    x += GOLDEN;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

}  // namespace gossamer::GOSSAMER_ISA
