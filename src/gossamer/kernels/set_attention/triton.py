"""Set attention on CUDA: a program for each set and head, all its slots in one tile."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(base, head, strides, tokens, kept, column, DIM: tl.constexpr):
    """Load rows of [heads, tokens, DIM], zeros where a slot is not kept."""
    cell = base + head * strides[0] + tokens[:, None] * strides[1] + column[None, :]
    return tl.load(cell, mask=kept[:, None] & (column < DIM)[None, :], other=0.0)


@triton.jit
def _store(base, head, strides, tokens, kept, column, rows, DIM: tl.constexpr):
    cell = base + head * strides[0] + tokens[:, None] * strides[1] + column[None, :]
    rows = rows.to(base.dtype.element_ty)
    tl.store(cell, rows, mask=kept[:, None] & (column < DIM)[None, :])


@triton.jit
def _shares(queries, keys, kept, scale):
    """Return the softmax over the kept keys, [SLOTS, SLOTS] float32."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    scores = tl.where(kept[None, :], scores, -float("inf"))
    shares = tl.exp2((scores - tl.max(scores, 1)[:, None]) * (scale * LOG2E))
    return shares / tl.sum(shares, 1)[:, None]


@triton.jit
def set_attention_kernel(
    query, key, value, indices, repeated, output,
    query_strides, key_strides, value_strides, output_strides, scale,
    SIZE: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SLOTS)
    head = tl.program_id(1).to(tl.int64)
    there = tl.arange(0, SLOTS) < SIZE
    tokens = tl.load(indices + place, mask=there, other=0)
    kept = there & (tl.load(repeated + place, mask=there, other=1) == 0)
    column = tl.arange(0, PADDED)
    queries = _load(query, head, query_strides, tokens, kept, column, DIM)
    keys = _load(key, head, key_strides, tokens, kept, column, DIM)
    shares = _shares(queries, keys, kept, scale)
    values = _load(value, head, value_strides, tokens, kept, column, DIM)
    attended = tl.dot(shares.to(values.dtype), values, input_precision="ieee")
    _store(output, head, output_strides, tokens, kept, column, attended, DIM)


@triton.jit
def set_attention_backward_kernel(
    grad, query, key, value, indices, repeated, query_grad, key_grad, value_grad,
    grad_strides, query_strides, key_strides, value_strides, out_strides, scale,
    SIZE: tl.constexpr, SLOTS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SLOTS)
    head = tl.program_id(1).to(tl.int64)
    there = tl.arange(0, SLOTS) < SIZE
    tokens = tl.load(indices + place, mask=there, other=0)
    kept = there & (tl.load(repeated + place, mask=there, other=1) == 0)
    column = tl.arange(0, PADDED)
    queries = _load(query, head, query_strides, tokens, kept, column, DIM)
    keys = _load(key, head, key_strides, tokens, kept, column, DIM)
    values = _load(value, head, value_strides, tokens, kept, column, DIM)
    grads = _load(grad, head, grad_strides, tokens, kept, column, DIM)
    shares = _shares(queries, keys, kept, scale)
    found = tl.dot(tl.trans(shares).to(grads.dtype), grads, input_precision="ieee")
    _store(value_grad, head, out_strides, tokens, kept, column, found, DIM)
    slopes = tl.dot(grads, tl.trans(values), input_precision="ieee")
    slopes = shares * (slopes - tl.sum(shares * slopes, 1)[:, None]) * scale
    found = tl.dot(slopes.to(keys.dtype), keys, input_precision="ieee")
    _store(query_grad, head, out_strides, tokens, kept, column, found, DIM)
    found = tl.dot(tl.trans(slopes).to(queries.dtype), queries, input_precision="ieee")
    _store(key_grad, head, out_strides, tokens, kept, column, found, DIM)


def _tile(query: Tensor, indices: Tensor) -> dict[str, Any]:
    slots = max(16, triton.next_power_of_2(indices.shape[1]))
    padded = max(16, triton.next_power_of_2(query.shape[2]))
    return {
        "SIZE": indices.shape[1],
        "SLOTS": slots,
        "DIM": query.shape[2],
        "PADDED": padded,
        "num_warps": 4 if slots * max(slots, padded) <= 4096 else 8,
    }


def _computable(*parts: Tensor) -> tuple[Tensor, ...]:
    # The interpreter keeps bfloat16 as integers, and would multiply those.
    if knobs.runtime.interpret and parts[0].dtype == torch.bfloat16:
        return tuple(part.float() for part in parts)
    return parts


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    repeated: Tensor,
    scale: float,
    output: Tensor,
) -> None:
    """Fill `output` [heads, tokens, dim]."""
    q, k, v = _computable(query, key, value)
    with torch.cuda.device_of(query):
        set_attention_kernel[(len(indices), len(query))](
            q, k, v, indices, repeated.view(torch.uint8), output,
            q.stride(), k.stride(), v.stride(), output.stride(), scale, **_tile(query, indices),
        )  # fmt: skip


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    repeated: Tensor,
    scale: float,
    query_grad: Tensor,
    key_grad: Tensor,
    value_grad: Tensor,
) -> None:
    """Fill the gradients of query, key and value, which share their strides."""
    g, q, k, v = _computable(grad, query, key, value)
    with torch.cuda.device_of(query):
        set_attention_backward_kernel[(len(indices), len(query))](
            g, q, k, v, indices, repeated.view(torch.uint8), query_grad, key_grad, value_grad,
            g.stride(), q.stride(), k.stride(), v.stride(), query_grad.stride(), scale,
            **_tile(query, indices),
        )  # fmt: skip
