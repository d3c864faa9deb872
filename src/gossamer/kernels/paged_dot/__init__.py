"""TokenSelect's scoring: query-key products over the cache, softmax votes, top positions."""

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.paged_dot import reference
from gossamer.kernels.validation import check_attention, check_scale, unit_stride


def paged_dot(
    query: Tensor,
    key: Tensor,
    *,
    begin: Tensor,
    end: int,
    scale: float = 1.0,
    impl: backend.Impl = "auto",
) -> Tensor:
    """Return scale * q.k of one query a head with the keys in [begin, end).

    One pass over the keys serves all query heads of a group.

    Parameters
    ----------
    query : Tensor [B, H, 1, D]
    key : Tensor [B, H_kv, k_len, D]
        Query head h reads key head h // (H / H_kv).
    begin : Tensor [B] int64
        First key scored in each sequence.
    end : int
        Key after the last one scored.
    scale : float
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [B, H, k_len] float32
        -inf outside the range.

    Raises
    ------
    ValueError, TypeError
        If shapes or the range do not fit.

    Examples
    --------
    >>> scores = paged_dot(
    ...     torch.ones(1, 2, 1, 4), torch.ones(1, 1, 5, 4), begin=torch.tensor([1]), end=4
    ... )
    >>> scores[0, 0].tolist()
    [-inf, 4.0, 4.0, 4.0, -inf]
    """
    check_attention(query, key, None, causal=False)
    if query.shape[2] != 1:
        raise ValueError(f"expected one query a head, got {query.shape[2]}; try its mean")
    if begin.shape != (query.shape[0],) or begin.dtype != torch.int64:
        raise ValueError(
            f"expected begin to be int64 [{query.shape[0]}], got {begin.dtype} {list(begin.shape)}"
        )
    if not 0 <= end <= key.shape[2]:
        raise ValueError(f"expected end in 0..{key.shape[2]}, got {end}")
    return _dots(
        unit_stride(query),
        unit_stride(key),
        begin.to(query.device).contiguous(),
        end,
        check_scale(scale, query.shape[3]),
        backend.choose(impl, query.device, backend.WITHOUT_TRITON),
    )


def soft_votes(scores: Tensor, *, impl: backend.Impl = "auto") -> Tensor:
    """Return the sum over heads of softmax(scores): how much all heads want each key.

    Parameters
    ----------
    scores : Tensor [B, H, k_len] float32
        -inf marks keys that are no candidates, alike in every head.

    Returns
    -------
    Tensor [B, k_len] float32
        -inf at keys that are no candidates.

    Examples
    --------
    >>> soft_votes(torch.tensor([[[0.0, -torch.inf, 0.0], [0.0, -torch.inf, 0.0]]])).tolist()
    [[1.0, -inf, 1.0]]
    """
    if scores.ndim != 3 or scores.shape[1] == 0 or scores.dtype != torch.float32:
        raise ValueError(
            f"expected scores to be float32 [B, H >= 1, k_len], got {scores.dtype} "
            f"{list(scores.shape)}"
        )
    return _votes(scores.contiguous(), backend.choose(impl, scores.device, backend.WITHOUT_TRITON))


def top_indices(values: Tensor, k: int, *, impl: backend.Impl = "auto") -> Tensor:
    """Return the positions of the k largest values of each row, ascending.

    Ties go to the lower position.

    Parameters
    ----------
    values : Tensor [rows, n] float32
        No NaN.
    k : int
        1..n.

    Returns
    -------
    Tensor [rows, k] int32

    Examples
    --------
    >>> top_indices(torch.tensor([[3.0, 1.0, 3.0, 2.0]]), 2).tolist()
    [[0, 2]]
    """
    if values.ndim != 2 or values.dtype != torch.float32:
        raise ValueError(
            f"expected values to be float32 [rows, n], got {values.dtype} {list(values.shape)}"
        )
    if not 1 <= k <= values.shape[1]:
        raise ValueError(f"expected k in 1..{values.shape[1]}, got {k}")
    return _top(values.contiguous(), k, backend.choose(impl, values.device, backend.WITHOUT_TRITON))


def _run_dots(
    query: Tensor, key: Tensor, begin: Tensor, end: int, scale: float, impl: str
) -> Tensor:
    if impl != "cpu":
        return reference.paged_dot(query, key, begin, end, scale)
    scores = _empty_scores(query, key)
    backend.launch("paged_dot", query, key, begin, end, scale, scores, torch.get_num_threads())
    return scores


def _empty_scores(query: Tensor, key: Tensor, *rest: object) -> Tensor:
    shape = (query.shape[0], query.shape[1], key.shape[2])
    return torch.empty(shape, dtype=torch.float32, device=query.device)


def _run_votes(scores: Tensor, impl: str) -> Tensor:
    if impl != "cpu":
        return reference.soft_votes(scores)
    votes = scores.new_empty(scores.shape[0], scores.shape[2])
    backend.launch("soft_votes", scores, votes, torch.get_num_threads())
    return votes


def _run_top(values: Tensor, k: int, impl: str) -> Tensor:
    if impl != "cpu":
        return reference.top_indices(values, k)
    indices = torch.empty(values.shape[0], k, dtype=torch.int32)
    backend.launch("top_indices", values, indices, torch.get_num_threads())
    return indices


_dots = register(
    "paged_dot(Tensor query, Tensor key, Tensor begin, int end, float scale, str impl) -> Tensor",
    _run_dots,
    _empty_scores,
)
_votes = register(
    "soft_votes(Tensor scores, str impl) -> Tensor",
    _run_votes,
    lambda scores, impl: scores.new_empty(scores.shape[0], scores.shape[2]),
)
_top = register(
    "top_indices(Tensor values, int k, str impl) -> Tensor",
    _run_top,
    lambda values, k, impl: values.new_empty(values.shape[0], k, dtype=torch.int32),
)
