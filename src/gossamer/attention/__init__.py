"""Attention methods: which keys, blocks or stripes a query attends to."""

from gossamer.attention.anchor import AnchorAttention
from gossamer.attention.base import AttentionMethod, LayerState, Meter, Selection, use
from gossamer.attention.caches import KeyValueStore
from gossamer.attention.dense import DenseAttention
from gossamer.attention.hip import HiPAttention
from gossamer.attention.streaming import StreamingAttention
from gossamer.attention.token_select import TokenSelect

__all__ = [
    "AnchorAttention",
    "AttentionMethod",
    "DenseAttention",
    "HiPAttention",
    "KeyValueStore",
    "LayerState",
    "Meter",
    "Selection",
    "StreamingAttention",
    "TokenSelect",
    "use",
]
