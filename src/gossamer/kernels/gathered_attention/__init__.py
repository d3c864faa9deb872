"""Exact attention over gathered tokens, resumable from a softmax in progress."""

from typing import Literal, overload

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.gathered_attention import reference
from gossamer.kernels.library import register
from gossamer.kernels.state import AttentionOutput, AttentionState, empty_output
from gossamer.kernels.validation import (
    check_attention,
    check_key_start,
    check_pattern,
    check_rotary,
    check_scale,
    unit_stride,
)
from gossamer.patterns import StripePattern, TokenPattern


@overload
def gathered_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: TokenPattern | StripePattern,
    *,
    causal: bool = True,
    scale: float | None = None,
    state: AttentionState | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    key_start: Tensor | None = None,
    return_lse: Literal[False] = False,
    impl: backend.Impl = "auto",
) -> Tensor: ...


@overload
def gathered_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: TokenPattern | StripePattern,
    *,
    causal: bool = True,
    scale: float | None = None,
    state: AttentionState | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    key_start: Tensor | None = None,
    return_lse: Literal[True],
    impl: backend.Impl = "auto",
) -> AttentionOutput: ...


def gathered_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: TokenPattern | StripePattern,
    *,
    causal: bool = True,
    scale: float | None = None,
    state: AttentionState | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    key_start: Tensor | None = None,
    return_lse: bool = False,
    impl: backend.Impl = "auto",
) -> Tensor | AttentionOutput:
    """Attend to the tokens that `pattern` lists for each group of queries.

    Gathers each listed key and value once for all query heads and rows that share the list.
    With `state`, continues the softmax of an earlier call over other keys; the two key sets
    must be disjoint, since a key met twice counts twice.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
        float32 or bfloat16; sums are float32 either way.
    key, value : Tensor [B, H_kv, k_len, D]
        H must be a multiple of H_kv; any strides.
    pattern : TokenPattern or StripePattern
        Its heads divide H and nest with H_kv.
    causal : bool
        Hide keys after the query (bottom-right alignment, by the key's index).
    scale : float, optional
        Default 1 / sqrt(D).
    state : AttentionState, optional
        Softmax over earlier keys; left unchanged.
    rotary : (cosine, sine), Tensor [n, D / 2] float32 each, optional
        Rotate the key at place r of its list by row r: positions become ranks, so that keys
        stored without rotary embedding extrapolate. n is at least the longest list.
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
        If shapes, dtypes, pattern, state or rotary tables do not fit.
    BackendError
        If `impl` names an implementation that cannot run here.

    Examples
    --------
    >>> q, k, v = torch.randn(3, 1, 2, 100, 16).unbind()
    >>> tokens = torch.tensor([[[[0, 7, 99]]]], dtype=torch.int32)
    >>> gathered_attention(q[:, :, -1:], k, v, TokenPattern(tokens, group=1, k_len=100)).shape
    torch.Size([1, 2, 1, 16])
    """
    check_attention(query, key, value, causal=causal)
    check_pattern(pattern, (TokenPattern, StripePattern), query, key)
    if state is not None:
        _check_state(state, query)
    starts, counts, indices = (part.contiguous() for part in pattern.rows)
    if rotary is not None:
        check_rotary(rotary, int(counts.max()) if counts.numel() else 0, query)
    output, lse = _gathered_attention(
        unit_stride(query),
        unit_stride(key),
        unit_stride(value),
        starts,
        counts,
        indices,
        pattern.shape[1],
        pattern.group,
        causal,
        check_scale(scale, query.shape[3]),
        check_key_start(key_start, key),
        *(rotary or (None, None)),
        *((None, None, None) if state is None else (state.max, state.sum, state.acc)),
        backend.choose(impl, query.device),
    )
    return AttentionOutput(output, lse) if return_lse else output


def _check_state(state: AttentionState, query: Tensor) -> None:
    rows = query.shape[:3]
    for name, part, shape in (
        ("max", state.max, rows),
        ("sum", state.sum, rows),
        ("acc", state.acc, query.shape),
    ):
        if part.shape != shape or part.dtype != torch.float32 or part.device != query.device:
            raise ValueError(
                f"expected state.{name} to be float32 {list(shape)} on {query.device}, got "
                f"{part.dtype} {list(part.shape)} on {part.device}"
            )


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    counts: Tensor,
    indices: Tensor,
    list_heads: int,
    group: int,
    causal: bool,
    scale: float,
    key_start: Tensor | None,
    cosine: Tensor | None,
    sine: Tensor | None,
    max_: Tensor | None,
    sum_: Tensor | None,
    acc: Tensor | None,
    impl: str,
) -> tuple[Tensor, Tensor]:
    if impl == "reference":
        state = reference.attend(
            query,
            key,
            value,
            (starts, counts, indices),
            list_heads,
            group,
            causal=causal,
            scale=scale,
            key_start=key_start,
            rotary=None if cosine is None or sine is None else (cosine, sine),
            state=None
            if max_ is None or sum_ is None or acc is None
            else AttentionState(max_, sum_, acc),
        )
        output, lse, *_ = state.results(query.dtype, False)
        return output, lse
    output, lse = empty_output(query)
    if query.numel() == 0:
        return output, lse
    if impl == "triton":
        from gossamer.kernels.gathered_attention import triton

        triton.attend(
            query,
            key,
            value,
            starts,
            counts,
            indices,
            list_heads,
            group,
            causal,
            scale,
            key_start,
            cosine,
            sine,
            max_,
            sum_,
            acc,
            output,
            lse,
        )
        return output, lse
    tables = [None if part is None else part.contiguous() for part in (cosine, sine)]
    resumed = [None if part is None else part.contiguous() for part in (max_, sum_, acc)]
    backend.launch(
        "gathered_attention",
        query,
        key,
        value,
        output,
        starts,
        counts,
        indices,
        list_heads,
        -(-query.shape[2] // group),
        group,
        causal,
        scale,
        key_start,
        *tables,
        *resumed,
        None,
        None,
        None,
        lse,
        torch.get_num_threads(),
    )
    return output, lse


_gathered_attention = register(
    "gathered_attention(Tensor query, Tensor key, Tensor value, Tensor starts, Tensor counts, "
    "Tensor indices, int list_heads, int group, bool causal, float scale, Tensor? key_start, "
    "Tensor? cosine, Tensor? sine, Tensor? max, Tensor? sum, Tensor? acc, str impl) -> "
    "(Tensor, Tensor)",
    _run,
    lambda query, *rest: empty_output(query),
)
