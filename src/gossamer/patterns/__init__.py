"""Patterns: the shape of what stays.

Attention patterns say which keys a query reads, weight patterns which weights go together. One
rule aligns attention everywhere: query ``i`` sits at the absolute position ``i + k_len - q_len``
(bottom-right aligned), and causal attention admits key ``j`` when ``j`` is at most that position.
Lengths need not divide by a block or group: the last one is shorter. A pattern may hold fewer
heads than the query has, as long as they divide them: query head ``h`` of ``H`` reads list
``h * pattern_heads // H``.
"""

from gossamer.patterns.attention import (
    BlockPattern,
    Diagonal,
    StripePattern,
    TokenPattern,
    Window,
)
from gossamer.patterns.token_sets import TokenSets
from gossamer.patterns.weights import NM, Block, Channel, Unstructured, WeightPattern

__all__ = [
    "NM",
    "Block",
    "BlockPattern",
    "Channel",
    "Diagonal",
    "StripePattern",
    "TokenPattern",
    "TokenSets",
    "Unstructured",
    "WeightPattern",
    "Window",
]
