"""AnchorAttention: keys whose logit comes near the anchor of sinks and local window."""

import logging
from dataclasses import dataclass
from math import isnan
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from gossamer.attention.base import EVERYTHING, AttentionMethod, LayerState, Selection
from gossamer.kernels import block_sparse_state, stripe_search
from gossamer.patterns import BlockPattern

logger = logging.getLogger(__name__)

GROUPS_AT_LEAST = 16  # query groups a short prompt is still cut into


@dataclass(frozen=True)
class AnchorAttention(AttentionMethod):
    """Attend to sinks, a local window and the key stripes within `theta` of their maximum.

    The largest logit of a query nearly always sits on the sinks or in the local window. So that
    maximum, the anchor, is computed exactly first; a key whose logit is theta lower has a weight
    below e^-theta of the largest and is skipped. Queries are mean-pooled over `block` rows for
    the test, and a group of `step` blocks shares the keys that any of its pooled rows hits. The
    softmax of the anchor pass is then continued over those stripes: nothing is computed twice,
    no score is sorted. Prefill only: fewer queries than a block (decode, a short question) attend
    densely, since pooling a few rows over all keys saves little and loses what one row looks for.

    Based on "AnchorAttention: Difference-Aware Sparse Attention with Stripe Granularity"
    (arXiv 2505.23520). Sink, local part and stripes tile the causal area without gap or overlap
    here, which the released kernel does not do.

    Parameters
    ----------
    theta : float
        Logit difference, natural-log units (paper default 12). inf is dense, -inf is sinks and
        local window alone.
    block : int
        Queries pooled together, and keys a sink or local block; a multiple of 16 (paper 128).
    step : int
        Pooled rows a group (paper default 16). Prompts shorter than 8 groups use fewer, so that
        at least 16 groups remain.
    sink_blocks, local_blocks : int
        First blocks, and blocks before each group, that are always attended to (paper 1, 1).
    dense_layers : int
        First layers that stay dense; their attention is spread too evenly to skip (our default
        2, after the reproduction; the paper's text was not readable on this).
    share : {"head", "group"}
        Stripes for every query head, or one list for the heads that share a key head.

    Examples
    --------
    >>> AnchorAttention(theta=8.0, block=64, step=4).step_for(8192)
    4
    """

    theta: float = 12.0
    block: int = 128
    step: int = 16
    sink_blocks: int = 1
    local_blocks: int = 1
    dense_layers: int = 2
    share: Literal["head", "group"] = "head"

    def __post_init__(self) -> None:
        if isnan(self.theta):
            raise ValueError("expected theta to be a number, got NaN")
        if self.block < 16 or self.block % 16:
            raise ValueError(f"expected block to be a multiple of 16, got {self.block}")
        if min(self.step, self.sink_blocks) < 1:
            raise ValueError(
                f"expected step and sink_blocks >= 1, got {self.step} and {self.sink_blocks}"
            )
        if min(self.local_blocks, self.dense_layers) < 0:
            raise ValueError(
                f"expected local_blocks and dense_layers >= 0, got {self.local_blocks} and "
                f"{self.dense_layers}"
            )
        if self.share not in ("head", "group"):
            raise ValueError(f"expected share to be 'head' or 'group', got {self.share!r}")

    def step_for(self, q_len: int) -> int:
        """Return the pooled rows a group for a prompt of `q_len` tokens."""
        if q_len >= 8 * self.block * self.step:
            return self.step
        step = max(1, min(self.step, q_len // (GROUPS_AT_LEAST * self.block)))
        if step != self.step:
            logger.debug("anchor attention: step %d for %d queries", step, q_len)
        return step

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        (batch, heads, q_len, _), k_len = query.shape, key.shape[2]
        if q_len < self.block or state.value is None or state.layer < self.dense_layers:
            return EVERYTHING
        step = self.step_for(q_len)
        start = state.key_start
        if start is None:
            start = torch.zeros(batch, dtype=torch.int64, device=query.device)
        sink_end, local_start = self._regions(step, q_len, k_len, start)
        near = self._near(step, q_len, k_len, sink_end, local_start)
        anchor = block_sparse_state(
            query, key, state.value, near, scale=state.scale, key_start=state.key_start
        )
        first_row = start - (k_len - q_len)  # rows before it are padding
        pooled = _pool(query, self.block, first_row)
        anchors = _pool(anchor.max[..., None], self.block, first_row)[..., 0]
        stripes = stripe_search(
            pooled.to(query.dtype),
            key,
            (anchors - self.theta) / state.scale,
            step=step,
            group=step * self.block,
            begin=sink_end,
            end=local_start,
            list_heads=key.shape[1] if self.share == "group" else None,
        )
        if state.meter is None:
            return Selection(stripes, resumed=anchor)
        rows = torch.full_like(local_start, step)
        rows[:, -1] = pooled.shape[2] - step * (local_start.shape[1] - 1)
        return Selection(
            stripes,
            resumed=anchor,
            resumed_pairs=near.pairs(q_len, k_len) * heads,
            searched=int(((local_start - sink_end) * rows).sum()) * heads,
        )

    def select_ahead(self, key: Tensor, state: LayerState) -> Selection:
        return EVERYTHING  # one query is fewer than a block

    def _regions(self, step: int, q_len: int, k_len: int, start: Tensor) -> tuple[Tensor, Tensor]:
        """End of the sinks and start of the local part, int64 [B, groups], whole key blocks."""
        group = torch.arange(0, q_len, step * self.block, device=start.device)
        first_block = (group + k_len - q_len) // self.block
        sink_end = ((start + self.block - 1) // self.block + self.sink_blocks)[:, None]
        local_start = torch.maximum(first_block - self.local_blocks, sink_end)
        return (sink_end * self.block).expand_as(local_start).contiguous(), local_start * self.block

    def _near(
        self, step: int, q_len: int, k_len: int, sink_end: Tensor, local_start: Tensor
    ) -> BlockPattern:
        """The blocks of the anchor pass, for all heads alike."""
        tile = torch.arange(0, q_len, self.block, device=sink_end.device)
        key = torch.arange(0, k_len, self.block, device=sink_end.device)
        last_position = (tile + self.block).clamp(max=q_len) + k_len - q_len - 1
        group = tile // (step * self.block)
        near = key >= local_start[:, group, None]
        mask = (near | (key < sink_end[:, group, None])) & (key <= last_position[:, None])
        return BlockPattern.from_mask(mask[:, None], block=self.block)


def _pool(rows: Tensor, block: int, first_row: Tensor) -> Tensor:
    """Mean over every `block` rows from first_row [B] on: [B, H, n, D] to [B, H, n / block, D].

    A block without such a row pools to +inf, which no threshold test passes.
    """
    n = rows.shape[2]
    real = torch.arange(n, device=rows.device) >= first_row[:, None]
    tail = -n % block
    count = pad(real, (0, tail)).reshape(len(real), 1, -1, block, 1).sum(3)
    kept = rows.float()
    if not bool(real.all()):
        kept = kept.masked_fill(~real[:, None, :, None], 0.0)
    blocks = pad(kept, (0, 0, 0, tail)).unflatten(2, (-1, block)).sum(3)
    return torch.where(count > 0, blocks / count, torch.inf)
