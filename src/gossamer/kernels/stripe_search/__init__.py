"""Find key columns whose pooled logit comes near an anchor (AnchorAttention): no sort, no top-k."""

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.stripe_search import reference
from gossamer.kernels.validation import check_attention, check_heads, unit_stride
from gossamer.patterns import StripePattern


def stripe_search(
    pooled: Tensor,
    key: Tensor,
    threshold: Tensor,
    *,
    step: int,
    group: int,
    begin: Tensor,
    end: Tensor,
    list_heads: int | None = None,
    impl: backend.Impl = "auto",
) -> StripePattern:
    """Keep key j for a group when any of its pooled rows has q.k_j >= its threshold.

    Parameters
    ----------
    pooled : Tensor [B, H, rows, D]
        Mean queries of consecutive blocks; `step` rows form a group.
    key : Tensor [B, H_kv, k_len, D]
    threshold : Tensor [B, H, rows] float32
        In units of q.k; +inf keeps nothing.
    step : int
        Pooled rows a group.
    group : int
        Queries a group, for the pattern.
    begin, end : Tensor [B, groups] int64
        Key range searched for each group.
    list_heads : int, optional
        Lists a batch element; fewer than H merges heads (a hit in any head counts).
    impl : {"auto", "reference", "cpu", "triton"}

    Returns
    -------
    StripePattern

    Raises
    ------
    ValueError, TypeError
        If shapes do not fit.

    Examples
    --------
    >>> found = stripe_search(
    ...     torch.ones(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]]]]),
    ...     torch.tensor([[[3.0]]]), step=1, group=4,
    ...     begin=torch.tensor([[0]]), end=torch.tensor([[3]]),
    ... )
    >>> found.indices.tolist()
    [1, 2]
    """
    check_attention(pooled, key, None, causal=False)
    batch, heads, rows, _ = pooled.shape
    lists = heads if list_heads is None else list_heads
    check_heads(lists, pooled, key)
    if step < 1 or group < 1:
        raise ValueError(f"expected step >= 1 and group >= 1, got {step} and {group}")
    if threshold.shape != (batch, heads, rows) or threshold.dtype != torch.float32:
        raise ValueError(
            f"expected threshold to be float32 {[batch, heads, rows]}, got {threshold.dtype} "
            f"{list(threshold.shape)}"
        )
    groups = -(-rows // step)
    for name, bound in (("begin", begin), ("end", end)):
        if bound.shape != (batch, groups) or bound.dtype != torch.int64:
            raise ValueError(
                f"expected {name} to be int64 {[batch, groups]}, got {bound.dtype} "
                f"{list(bound.shape)}"
            )
    offsets, indices = _stripe_search(
        pooled,
        unit_stride(key),
        threshold,
        min(step, max(1, rows)),
        begin.clamp(min=0).contiguous(),
        end.clamp(max=key.shape[2]).contiguous(),
        lists,
        backend.choose(impl, key.device),
    )
    return StripePattern(offsets, indices, (batch, lists, groups, key.shape[2]), group)


def _run(
    pooled: Tensor,
    key: Tensor,
    threshold: Tensor,
    step: int,
    begin: Tensor,
    end: Tensor,
    list_heads: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    if impl == "triton":
        from gossamer.kernels.stripe_search import triton

        return triton.search(
            unit_stride(pooled), key, threshold.contiguous(), step, begin, end, list_heads
        )
    if impl != "cpu":
        return reference.search(pooled, key, threshold, step, begin, end, list_heads)
    lists = (key.shape[0], list_heads, begin.shape[1])
    hits = torch.zeros(*lists, -(-key.shape[2] // 64), dtype=torch.int64)
    backend.launch(
        "stripe_search",
        key,
        pooled.float().contiguous(),
        threshold.contiguous(),
        step,
        begin,
        end,
        hits,
        torch.get_num_threads(),
    )
    flat = hits.flatten(0, 2)
    offsets = torch.empty(flat.shape[0] + 1, dtype=torch.int64)
    backend.launch("bits_to_csr", flat, offsets, None)
    indices = torch.empty(int(offsets[-1]), dtype=torch.int32)
    backend.launch("bits_to_csr", flat, offsets, indices)
    return offsets, indices


def _fake(
    pooled: Tensor,
    key: Tensor,
    threshold: Tensor,
    step: int,
    begin: Tensor,
    end: Tensor,
    list_heads: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    found = torch.library.get_ctx().new_dynamic_size()
    rows = key.shape[0] * list_heads * begin.shape[1]
    return begin.new_empty(rows + 1), begin.new_empty(found, dtype=torch.int32)


_stripe_search = register(
    "stripe_search(Tensor pooled, Tensor key, Tensor threshold, int step, Tensor begin, "
    "Tensor end, int list_heads, str impl) -> (Tensor, Tensor)",
    _run,
    _fake,
)
