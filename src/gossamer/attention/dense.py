"""Dense attention on gossamer's kernels and cache: the baseline that skips nothing."""

from dataclasses import dataclass

from torch import Tensor

from gossamer.attention.base import EVERYTHING, AttentionMethod, LayerState, Selection


@dataclass(frozen=True)
class DenseAttention(AttentionMethod):
    """Exact causal attention: softmax(q k^T / sqrt(d)) v over every earlier key.

    The difference to a model's own attention is the kernel and a cache that no decode step
    copies; the output is the same up to rounding.

    Examples
    --------
    >>> DenseAttention()
    DenseAttention()
    """

    def select_ahead(self, key: Tensor, state: LayerState) -> Selection:
        return EVERYTHING
