"""Find the keys with the largest products in O(log k_len) scores a query block (HiP attention)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.tree_search import reference
from gossamer.kernels.validation import check_attention, check_key_start, unit_stride
from gossamer.patterns import TokenPattern

Representative = Literal["first", "mid", "random"]
REPRESENTATIVES: tuple[Representative, ...] = ("first", "mid", "random")


@dataclass(frozen=True, eq=False)
class TreeSearch:
    """What a tree search found and what it cost.

    Parameters
    ----------
    pattern : TokenPattern
        Sinks, selected keys and window of each query block, each key once.
    scored : Tensor [B, heads, groups] int64
        Key blocks scored for each query block.
    """

    pattern: TokenPattern
    scored: Tensor


def tree_search(
    query: Tensor,
    key: Tensor,
    *,
    tokens: int,
    block_q: int = 32,
    block_k: int = 2,
    window: int = 128,
    sink: int = 4,
    query_stride: int = 2,
    representative: Representative = "mid",
    shared_by_group: bool = False,
    channels: int | None = None,
    seed: int = 0,
    key_start: Tensor | None = None,
    impl: backend.Impl = "auto",
) -> TreeSearch:
    """Search the best `tokens` keys before the window of each block of queries.

    K = tokens / block_k nodes tile the key blocks before the window. Each round halves every
    node, scores each half by one representative key block (the largest q.k over the sampled
    query rows and the tokens of the block) and keeps the K best, so ceil(log2(blocks / K))
    rounds of at most 2K scores leave K single blocks. Nothing else of the keys is read.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
    key : Tensor [B, H_kv, k_len, D]
        With positions already encoded.
    tokens : int
        Keys to select for a query block, a multiple of block_k.
    block_q, block_k : int
        Queries that share a search, and keys in the smallest unit.
    window, sink : int
        Keys up to the end of the query block, and first keys, that are always kept.
    query_stride : int
        Score every query_stride-th row of the block.
    representative : {"first", "mid", "random"}
        Which key block of a node stands for it.
    shared_by_group : bool
        One search for all query heads that share a key head (the largest product counts).
    channels : int, optional
        Score with the `channels` dims of largest summed |q| only.
    seed : int
        For "random"; a draw depends on it, the head, the keys searched and the node, so that a
        sequence selects the same keys alone, in a batch, padded or continued.
    key_start : Tensor [B] int, optional
        First real key of each sequence.
    impl : {"auto", "reference", "cpu", "triton"}

    Returns
    -------
    TreeSearch

    Raises
    ------
    ValueError, TypeError
        If shapes or options do not fit.

    Examples
    --------
    >>> q, k = torch.randn(2, 1, 2, 256, 16).unbind()
    >>> found = tree_search(q, k, tokens=32, block_q=64, window=64)
    >>> found.pattern.shape, found.pattern.indices.shape
    ((1, 2, 4, 256), torch.Size([1, 2, 4, 100]))
    """
    check_attention(query, key, None, causal=True)
    if block_q < 1 or block_k < 1 or 64 % block_k:
        raise ValueError(
            f"expected block_q >= 1 and block_k to divide 64, got {block_q} and {block_k}"
        )
    if tokens < block_k or tokens % block_k:
        raise ValueError(f"expected tokens to be a multiple of block_k {block_k}, got {tokens}")
    if window < 1 or sink < 0 or query_stride < 1:
        raise ValueError(
            f"expected window >= 1, sink >= 0 and query_stride >= 1, got {window}, {sink} and "
            f"{query_stride}"
        )
    if representative not in REPRESENTATIVES:
        raise ValueError(
            f"expected representative to be one of {', '.join(REPRESENTATIVES)}, got "
            f"{representative!r}"
        )
    if not 0 <= seed < 2**63:
        raise ValueError(f"expected seed in 0..2**63 - 1, got {seed}")
    dim = query.shape[3]
    if channels is not None and not 1 <= channels <= dim:
        raise ValueError(f"expected channels in 1..{dim}, got {channels}")
    indices, scored = _tree_search(
        unit_stride(query),
        unit_stride(key),
        key.shape[1] if shared_by_group else query.shape[1],
        min(tokens // block_k, -(-key.shape[2] // block_k)),
        min(block_q, max(1, query.shape[2])),
        block_k,
        window,
        sink,
        query_stride,
        REPRESENTATIVES.index(representative),
        dim if channels is None else channels,
        seed,
        check_key_start(key_start, key),
        backend.choose(impl, query.device),
    )
    return TreeSearch(TokenPattern(indices, group=block_q, k_len=key.shape[2]), scored)


def _empty(
    query: Tensor,
    key: Tensor,
    heads: int,
    nodes: int,
    block_q: int,
    block_k: int,
    window: int,
    sink: int,
    *rest: object,
) -> tuple[Tensor, Tensor]:
    groups = -(-query.shape[2] // block_q)
    width = min(sink + nodes * block_k + window, key.shape[2])
    shape = (query.shape[0], heads, groups)
    return (
        torch.empty(*shape, width, dtype=torch.int32, device=query.device),
        torch.empty(shape, dtype=torch.int64, device=query.device),
    )


def _run(
    query: Tensor,
    key: Tensor,
    heads: int,
    nodes: int,
    block_q: int,
    block_k: int,
    window: int,
    sink: int,
    query_stride: int,
    representative: int,
    channels: int,
    seed: int,
    key_start: Tensor | None,
    impl: str,
) -> tuple[Tensor, Tensor]:
    indices, scored = _empty(query, key, heads, nodes, block_q, block_k, window, sink)
    if impl != "cpu":
        search = reference.search
        if impl == "triton":
            from gossamer.kernels.tree_search import triton

            search = triton.search
        search(
            query,
            key,
            indices,
            scored,
            nodes,
            block_q,
            block_k,
            window,
            sink,
            query_stride,
            representative,
            channels,
            seed,
            key_start,
        )
        return indices, scored
    backend.launch(
        "tree_search",
        query,
        key,
        indices,
        scored,
        block_q,
        block_k,
        nodes,
        window,
        sink,
        query_stride,
        representative,
        seed,
        channels,
        key_start,
        torch.get_num_threads(),
    )
    return indices, scored


_tree_search = register(
    "tree_search(Tensor query, Tensor key, int heads, int nodes, int block_q, int block_k, "
    "int window, int sink, int query_stride, int representative, int channels, int seed, "
    "Tensor? key_start, str impl) -> (Tensor, Tensor)",
    _run,
    _empty,
)
