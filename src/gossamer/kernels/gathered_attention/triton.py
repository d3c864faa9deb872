"""Gathered attention on CUDA: a list names the tokens of a group of queries."""

from torch import Tensor

from gossamer.kernels import triton_launch


def attend(
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
    output: Tensor,
    lse: Tensor,
) -> None:
    """Fill `output` and `lse`, going on from the softmax (max_, sum_, acc) if there is one."""
    triton_launch.attend(
        query,
        key,
        value,
        (starts, counts, indices),
        (output, lse),
        list_heads=list_heads,
        group=group,
        unit=1,
        causal=causal,
        scale=scale,
        key_start=key_start,
        rotary=None if cosine is None or sine is None else (cosine.contiguous(), sine.contiguous()),
        state=None
        if max_ is None or sum_ is None or acc is None
        else (max_.contiguous(), sum_.contiguous(), acc.contiguous()),
    )
