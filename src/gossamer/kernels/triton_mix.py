"""Splitmix64: how every Triton kernel that draws at random makes its draws."""

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """Return Splitmix64 of integers, as uint64."""
    x = x.to(tl.uint64) + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
