"""Block-sparse attention on CUDA: a list names blocks of keys for a block of queries."""

from torch import Tensor

from gossamer.kernels import triton_launch


def attend(
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
    results: tuple[Tensor, ...],
    keep_state: bool,
) -> None:
    """Fill (output, lse) of `results`, or the (max, sum, acc) after them to `keep_state`."""
    triton_launch.attend(
        query,
        key,
        value,
        None if starts is None or counts is None or indices is None else (starts, counts, indices),
        results[2:] if keep_state else results[:2],
        list_heads=list_heads,
        group=block,
        unit=block,
        causal=causal,
        scale=scale,
        sink=sink,
        local=local,
        key_start=key_start,
    )
