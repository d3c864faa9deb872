"""Exact attention over chosen blocks of keys; the other blocks are never touched."""

from typing import Literal, overload

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.block_sparse_attention import reference
from gossamer.kernels.library import register
from gossamer.kernels.state import AttentionOutput, AttentionState, empty_results
from gossamer.kernels.validation import (
    check_attention,
    check_key_start,
    check_pattern,
    check_scale,
    unit_stride,
)
from gossamer.patterns import BlockPattern, Window

DENSE_BLOCK = 64  # keys packed together when every block is read


@overload
def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockPattern | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: Window | None = None,
    key_start: Tensor | None = None,
    return_lse: Literal[False] = False,
    impl: backend.Impl = "auto",
) -> Tensor: ...


@overload
def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockPattern | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: Window | None = None,
    key_start: Tensor | None = None,
    return_lse: Literal[True],
    impl: backend.Impl = "auto",
) -> AttentionOutput: ...


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockPattern | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: Window | None = None,
    key_start: Tensor | None = None,
    return_lse: bool = False,
    impl: backend.Impl = "auto",
) -> Tensor | AttentionOutput:
    """Attend to the key blocks that `pattern` lists for each query block.

    softmax(scale * q k^T) v over the visible keys of the listed blocks. The last query sits at
    the last key (bottom-right alignment), so q_len < k_len continues a cache. A row that sees
    no key returns zeros and a log-sum-exp of -inf. NaN inputs give NaN rows.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
        float32 or bfloat16; sums are float32 either way.
    key, value : Tensor [B, H_kv, k_len, D]
        H must be a multiple of H_kv (grouped-query attention); any strides.
    pattern : BlockPattern, optional
        Its heads divide H. None lists every block.
    causal : bool
        Hide keys after the query.
    scale : float, optional
        Default 1 / sqrt(D).
    window : Window, optional
        Further hide keys outside sink and local window; blocks that it hides are skipped. The
        sinks of a padded sequence are its first real keys.
    key_start : Tensor [B] int, optional
        First real key of each sequence, for left padding.
    return_lse : bool
        Return `AttentionOutput` with the log-sum-exp of each row.
    impl : {"auto", "reference", "cpu", "triton"}

    Returns
    -------
    Tensor [B, H, q_len, D] or AttentionOutput

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or the pattern do not fit.
    BackendError
        If `impl` names an implementation that cannot run here.

    Examples
    --------
    >>> q, k, v = torch.randn(3, 1, 2, 200, 16).unbind()
    >>> mask = torch.ones(1, 2, 4, 4, dtype=torch.bool).tril()
    >>> mask[..., 3, 1:3] = False  # the last query block skips two key blocks
    >>> block_sparse_attention(q, k, v, BlockPattern.from_mask(mask)).shape
    torch.Size([1, 2, 200, 16])
    """
    results = _call(query, key, value, pattern, causal, scale, window, key_start, False, impl)
    return AttentionOutput(*results[:2]) if return_lse else results[0]


def block_sparse_state(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockPattern | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: Window | None = None,
    key_start: Tensor | None = None,
    impl: backend.Impl = "auto",
) -> AttentionState:
    """Do what `block_sparse_attention` does, but return the softmax in progress.

    `gathered_attention` resumes it with further keys. Parameters and errors are the same.

    Examples
    --------
    >>> q, k, v = torch.randn(3, 1, 2, 200, 16).unbind()
    >>> state = block_sparse_state(q, k, v, window=Window(sink=4, local=32))
    >>> state.max.shape, state.acc.shape
    (torch.Size([1, 2, 200]), torch.Size([1, 2, 200, 16]))
    """
    results = _call(query, key, value, pattern, causal, scale, window, key_start, True, impl)
    return AttentionState(*results[2:])


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: BlockPattern | None,
    causal: bool,
    scale: float | None,
    window: Window | None,
    key_start: Tensor | None,
    keep_state: bool,
    impl: backend.Impl,
) -> tuple[Tensor, ...]:
    check_attention(query, key, value, causal=causal)
    if pattern is not None:
        check_pattern(pattern, (BlockPattern,), query, key)
    return _block_sparse_attention(
        unit_stride(query),
        unit_stride(key),
        unit_stride(value),
        *((None,) * 3 if pattern is None else (part.contiguous() for part in pattern.rows)),
        1 if pattern is None else pattern.shape[1],
        DENSE_BLOCK if pattern is None else pattern.block,
        causal,
        check_scale(scale, query.shape[3]),
        0 if window is None else window.sink,
        0 if window is None else window.local,
        check_key_start(key_start, key),
        keep_state,
        backend.choose(impl, query.device),
    )


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor | None,
    counts: Tensor | None,
    indices: Tensor | None,
    list_heads: int,
    block: int,
    causal: bool,
    scale: float,
    sink: int,
    local: int,
    key_start: Tensor | None,
    keep_state: bool,
    impl: str,
) -> tuple[Tensor, ...]:
    if impl == "reference":
        state = reference.attend(
            query,
            key,
            value,
            None
            if starts is None or counts is None or indices is None
            else (starts, counts, indices),
            list_heads,
            block,
            causal=causal,
            scale=scale,
            window=Window(sink, local) if local else None,
            key_start=key_start,
        )
        return state.results(query.dtype, keep_state)
    results = empty_results(query, keep_state)
    if query.numel() == 0:
        return results
    output, lse, *state = results
    if impl == "triton":
        from gossamer.kernels.block_sparse_attention import triton

        triton.attend(
            query,
            key,
            value,
            starts,
            counts,
            indices,
            list_heads,
            block,
            causal,
            scale,
            sink,
            local,
            key_start,
            results,
            keep_state,
        )
        return results
    backend.launch(
        "block_sparse_attention",
        query,
        key,
        value,
        None if keep_state else output,
        starts,
        counts,
        indices,
        list_heads,
        -(-query.shape[2] // block),
        block,
        causal,
        scale,
        sink,
        local,
        key_start,
        *(state if keep_state else (None, None, None)),
        None if keep_state else lse,
        torch.get_num_threads(),
    )
    return results


_block_sparse_attention = register(
    "block_sparse_attention(Tensor query, Tensor key, Tensor value, Tensor? starts, "
    "Tensor? counts, Tensor? indices, int list_heads, int block, bool causal, float scale, "
    "int sink, int local, Tensor? key_start, bool keep_state, str impl) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    lambda query, *rest: empty_results(query, rest[-2]),
)
