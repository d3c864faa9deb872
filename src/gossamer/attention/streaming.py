"""Streaming attention: sinks and a recent window."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from gossamer.attention.base import AttentionMethod, LayerState, Selection
from gossamer.patterns import Window


@dataclass(frozen=True)
class StreamingAttention(AttentionMethod):
    """Attend to the first `sink` tokens of a sequence and the last `local` ones.

    Based on "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453).
    Every token stays in the cache and keeps its true position, so this is the A-shaped
    baseline for methods that search; it does not extrapolate past the model's context.

    Parameters
    ----------
    sink : int
        First tokens kept (paper default 4).
    local : int
        Recent tokens kept, the query's own included (paper: the cache size less the sinks).

    Examples
    --------
    >>> StreamingAttention(sink=4, local=1020)
    StreamingAttention(sink=4, local=1020)
    """

    sink: int = 4
    local: int = 1020

    def __post_init__(self) -> None:
        Window(self.sink, self.local)  # checks both

    @cached_property
    def _selection(self) -> Selection:
        return Selection(window=Window(self.sink, self.local))

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        return self._selection

    def select_ahead(self, key: Tensor, state: LayerState) -> Selection:
        return self._selection
