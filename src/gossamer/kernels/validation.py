"""Checks at the public door of the kernels; the implementations trust what passed here."""

import torch
from torch import Tensor

from gossamer.patterns import BlockPattern, StripePattern, TokenPattern

DTYPES = (torch.float32, torch.bfloat16)
MAX_DIM = 512


def check_attention(query: Tensor, key: Tensor, value: Tensor | None, *, causal: bool) -> None:
    """Check [B, H, q_len, D] query against [B, H_kv, k_len, D] key and value.

    Raises
    ------
    TypeError
        If a dtype is not float32 or bfloat16, or dtypes differ.
    ValueError
        If shapes or devices do not fit, or a gradient would be needed.
    """
    named = [("query", query), ("key", key)] + ([("value", value)] if value is not None else [])
    for name, tensor in named:
        if tensor.ndim != 4:
            raise ValueError(
                f"expected {name} to be [batch, heads, tokens, dim], got {list(tensor.shape)}"
            )
        if tensor.dtype not in DTYPES:
            raise TypeError(f"expected {name} to be float32 or bfloat16, got {tensor.dtype}")
        if tensor.dtype != query.dtype:
            raise TypeError(
                f"expected one dtype, got {query.dtype} query and {tensor.dtype} {name}"
            )
        if tensor.device != query.device:
            raise ValueError(
                f"expected one device, got query on {query.device}, {name} on {tensor.device}"
            )
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but this kernel is for inference; "
                "try torch.no_grad() or .detach()"
            )
    if value is not None and value.shape != key.shape:
        raise ValueError(
            f"expected value to have key's shape {list(key.shape)}, got {list(value.shape)}"
        )
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"expected query and key to share batch and dim, got {list(query.shape)} and "
            f"{list(key.shape)}"
        )
    if not 1 <= query.shape[3] <= MAX_DIM:
        raise ValueError(f"expected a head dim in 1..{MAX_DIM}, got {query.shape[3]}")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] != 0:
        raise ValueError(
            f"expected query heads to be a multiple of key heads, got {query.shape[1]} and "
            f"{key.shape[1]}"
        )
    if causal and query.shape[2] > key.shape[2]:
        raise ValueError(
            f"expected q_len <= k_len (the last query sits at the last key), got "
            f"{query.shape[2]} > {key.shape[2]}"
        )


def check_heads(heads: int, query: Tensor, key: Tensor) -> None:
    """Check that pattern heads divide the query heads and nest with the key heads."""
    if heads < 1 or query.shape[1] % heads or (heads % key.shape[1] and key.shape[1] % heads):
        raise ValueError(
            f"expected pattern heads that divide {query.shape[1]} query heads and nest with "
            f"{key.shape[1]} key heads, got {heads}"
        )


def check_pattern(
    pattern: BlockPattern | TokenPattern | StripePattern,
    kinds: tuple[type, ...],
    query: Tensor,
    key: Tensor,
) -> None:
    """Check that `pattern` is one of `kinds` and made for these lengths, heads and device."""
    if not isinstance(pattern, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"expected a {names}, got {type(pattern).__name__}; try from_mask")
    check_heads(pattern.shape[1], query, key)
    is_block = isinstance(pattern, BlockPattern)
    height, width = (pattern.block, pattern.block) if is_block else (pattern.group, 1)
    tiles = (-(-query.shape[2] // height), -(-key.shape[2] // width))
    expected = (query.shape[0], pattern.shape[1], *tiles)
    if pattern.shape != expected:
        raise ValueError(
            f"expected a pattern of shape {expected} for q_len {query.shape[2]}, k_len "
            f"{key.shape[2]} and {'block' if is_block else 'group'} {height}, got {pattern.shape}"
        )
    if pattern.indices.device != query.device:
        raise ValueError(
            f"expected one device, got query on {query.device}, pattern on "
            f"{pattern.indices.device}; try pattern.to(query.device)"
        )


def check_rotary(rotary: tuple[Tensor, Tensor], longest: int, query: Tensor) -> None:
    """Check the (cosine, sine) [n, D / 2] that rotate keys by their place, up to `longest`."""
    dim, device = query.shape[3], query.device
    for name, table in zip(("cosine", "sine"), rotary, strict=True):
        if table.dtype != torch.float32 or table.ndim != 2 or 2 * table.shape[1] != dim:
            raise ValueError(
                f"expected the {name} table to be float32 [n, {dim / 2:g}], got {table.dtype} "
                f"{list(table.shape)}"
            )
        if table.device != device:
            raise ValueError(f"expected the {name} table on {device}, got {table.device}")
        if table.shape[0] < longest:
            raise ValueError(
                f"expected {name} rows for lists of {longest} tokens, got {table.shape[0]}"
            )


def check_scale(scale: float | None, dim: int) -> float:
    """Return `scale`, or 1 / sqrt(dim) where it is None."""
    if scale is None:
        return dim**-0.5
    if not scale > 0 or scale == float("inf"):
        raise ValueError(f"expected scale to be positive and finite, got {scale}")
    return float(scale)


def check_key_start(key_start: Tensor | None, key: Tensor) -> Tensor | None:
    """Return the first real key of each sequence (left padding) as int64 [B] on the device."""
    if key_start is None:
        return None
    if key_start.shape != key.shape[:1] or key_start.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"expected key_start to be integer [{key.shape[0]}], got {key_start.dtype} "
            f"{list(key_start.shape)}"
        )
    on_host = key_start.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and bool(((key_start < 0) | (key_start > key.shape[2])).any()):
        raise ValueError(f"expected key_start in 0..{key.shape[2]}, got {key_start.tolist()}")
    return key_start.to(key.device, torch.int64).contiguous()


def unit_stride(tensor: Tensor) -> Tensor:
    """Return `tensor` with its last dimension contiguous, copied only when it is not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
