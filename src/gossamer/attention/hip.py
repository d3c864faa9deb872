"""HiP attention: a tree search finds each query block's keys in O(log n) scores."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.attention.base import EVERYTHING, AttentionMethod, LayerState, Selection
from gossamer.kernels import TreeSearch, tree_search
from gossamer.kernels.tree_search import REPRESENTATIVES, Representative
from gossamer.patterns import TokenPattern


@dataclass
class _Found:
    """The last decode search, its list with room for the steps that reuse it."""

    indices: Tensor  # int32 [B, H_kv, 1, width + refresh_interval], -1 padded
    counts: Tensor  # int64 [B, H_kv, 1, 1], places filled
    k_len: int  # cache length the list is good for
    steps: int  # decode steps that used it
    selection: Selection | None = None  # of the list, once tokens were added


@dataclass(frozen=True)
class HiPAttention(AttentionMethod):
    """Attend to the k keys that a hierarchical top-k search finds, a window and the sinks.

    For each block of `block_q` queries, K = k / block_k nodes tile the keys before the window;
    ceil(log2(n / k)) times every node is halved, each half is scored by the largest q.k of one
    representative key block, and the K best halves stay. No token leaves the cache.

    Based on "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning"
    (arXiv 2406.09827). Inference only. The released code also runs the first
    3 (k log2(n / 2k) + k) queries of a prompt dense to save latency; at 8k tokens that is three
    queries in four, so it is left out here.

    Parameters
    ----------
    k : int
        Keys selected for a query block (paper default 512).
    block_q, block_k : int
        Queries that share a search, keys selected together (paper defaults 32 and 2).
    window, sink : int
        Recent and first keys always kept (paper: 128; the sinks are added explicitly here).
    representative : {"first", "mid", "random"}
        Which block of a node is scored ("mid" in the ICLR text).
    query_stride : int
        Score every query_stride-th row of a block (code default 2); 1 misses no row's needle.
    dense_layers : int
        First layers that stay dense (3 in the authors' LongBench runs).
    refresh_interval : int
        Decode steps between searches (code default 8); at most `window`, so that no new token
        falls between window and search.
    sparq_dim : int, optional
        Score with that many channels of largest summed |q|.
    seed : int
        For "random" representatives.

    Examples
    --------
    >>> HiPAttention(k=1024, dense_layers=0).block_q
    32
    """

    k: int = 512
    block_q: int = 32
    block_k: int = 2
    window: int = 128
    sink: int = 4
    representative: Representative = "mid"
    query_stride: int = 2
    dense_layers: int = 3
    refresh_interval: int = 8
    sparq_dim: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.block_q < 1 or self.block_q & (self.block_q - 1):
            raise ValueError(f"expected block_q to be a power of two, got {self.block_q}")
        if self.block_k < 1 or 64 % self.block_k:
            raise ValueError(f"expected block_k to divide 64, got {self.block_k}")
        if self.k < self.block_k or self.k % self.block_k:
            raise ValueError(f"expected k to be a multiple of block_k {self.block_k}, got {self.k}")
        if not 1 <= self.refresh_interval <= self.window:
            raise ValueError(
                f"expected refresh_interval in 1..window ({self.window}), got "
                f"{self.refresh_interval}"
            )
        if min(self.dense_layers, self.sink, self.seed) < 0:
            raise ValueError(
                f"expected dense_layers, sink and seed to be at least 0, got {self.dense_layers}, "
                f"{self.sink} and {self.seed}"
            )
        if self.query_stride < 1 or (self.sparq_dim is not None and self.sparq_dim < 1):
            raise ValueError(
                f"expected query_stride and sparq_dim to be at least 1, got {self.query_stride} "
                f"and {self.sparq_dim}"
            )
        if self.representative not in REPRESENTATIVES:
            raise ValueError(
                f"expected representative to be one of {', '.join(REPRESENTATIVES)}, got "
                f"{self.representative!r}"
            )

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        if state.layer < self.dense_layers or key.shape[2] <= self.k + self.window:
            return EVERYTHING
        if query.shape[2] == 1:
            return self._decode(query, key, state)
        state.memory = None
        found = self._search(query, key, state, block_q=self.block_q, stride=self.query_stride)
        return self._priced(found, query, self.query_stride, state)

    def _search(
        self, query: Tensor, key: Tensor, state: LayerState, *, block_q: int, stride: int
    ) -> TreeSearch:
        return tree_search(
            query,
            key,
            tokens=self.k,
            block_q=block_q,
            block_k=self.block_k,
            window=self.window,
            sink=self.sink,
            query_stride=stride,
            representative=self.representative,
            shared_by_group=block_q == 1,
            channels=self.sparq_dim,
            seed=self.seed,
            key_start=state.key_start,
        )

    def _priced(
        self, found: TreeSearch, query: Tensor, stride: int, state: LayerState
    ) -> Selection:
        """The selection with what its search cost, for whoever counts."""
        pattern, (heads, q_len) = found.pattern, query.shape[1:3]
        if state.meter is None:
            return Selection(pattern)
        keys = found.scored * self.block_k
        first = torch.arange(0, q_len, pattern.group, device=query.device)
        rows = (q_len - first).clamp(max=pattern.group)
        sampled = (rows - stride // 2 + stride - 1).div(stride, rounding_mode="floor").clamp(min=1)
        searched = (keys * sampled).sum() * (heads // pattern.shape[1])
        read = int(keys.sum()) * query.shape[3] * query.element_size()
        return Selection(pattern, searched=int(searched), bytes_read=read)

    def select_ahead(self, key: Tensor, state: LayerState) -> Selection | None:
        k_len = key.shape[2] + 1
        if state.layer < self.dense_layers or k_len <= self.k + self.window:
            return EVERYTHING
        return self._extended(k_len, state, ahead=True)

    def _decode(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        """Search for one query a sequence, or extend the list of the last search.

        All query heads of a key head share one search.
        """
        k_len = key.shape[2]
        extended = self._extended(k_len, state, ahead=False)
        if extended is not None:
            return extended
        found = self._search(query, key, state, block_q=1, stride=1)
        indices = pad(found.pattern.indices, (0, self.refresh_interval), value=-1)
        counts = (indices >= 0).sum(-1, keepdim=True)
        state.memory = _Found(indices, counts, k_len, 1)
        return self._priced(found, query, 1, state)

    def _extended(self, k_len: int, state: LayerState, *, ahead: bool) -> Selection | None:
        """The last search's list and the token after it; None when a search is due.

        Between searches the list keeps its tokens and gains the new ones, so the window only
        grows.
        """
        memory: _Found | None = state.memory
        if memory is None or memory.k_len + 1 != k_len or memory.steps >= self.refresh_interval:
            return None
        memory.indices.scatter_(-1, memory.counts, k_len - 1)
        memory.counts += 1
        memory.k_len, memory.steps = k_len, memory.steps + 1
        if memory.selection is None or not ahead:
            memory.selection = Selection(TokenPattern(memory.indices, group=1, k_len=k_len))
        return memory.selection
