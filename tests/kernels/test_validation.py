"""What the attention kernels refuse: exception, and a message that names argument and value."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.kernels import (
    AttentionState,
    block_sparse_attention,
    block_sparse_state,
    gathered_attention,
)
from gossamer.patterns import BlockPattern, StripePattern
from gossamer.testing import AttentionShape, attention_inputs, random_mask, rotary_tables

SHAPE = AttentionShape(2, 6, 2, 150, 200, 40)
COSINE, SINE = rotary_tables(200, 40)
Row = tuple[dict[str, Any], type[Exception], str]


def zeros(heads: int = 6, tokens: int = 200, dim: int = 40, batch: int = 2, **options) -> Tensor:
    return torch.zeros(batch, heads, tokens, dim, **options)


def blocks(shape: AttentionShape = SHAPE, heads: int | None = None) -> BlockPattern:
    return BlockPattern.from_mask(random_mask(shape.tiles(64, 64, heads)), block=64)


def stripes(shape: AttentionShape = SHAPE, heads: int | None = None) -> StripePattern:
    return StripePattern.from_mask(random_mask(shape.tiles(32, 1, heads)), group=32)


def state_with(**changes: Tensor) -> AttentionState:
    return AttentionState(**(vars(AttentionState.empty(zeros(6, 150))) | changes))


INPUTS: dict[str, Row] = {
    "query without a batch": (
        {"query": torch.zeros(6, 150, 40)},
        ValueError,
        r"query to be \[batch, heads, tokens, dim\], got \[6, 150, 40\]",
    ),
    "integer key": ({"key": zeros(2, dtype=torch.int64)}, TypeError, r"key to be float32.*int64"),
    "complex query": ({"query": zeros(dtype=torch.complex64)}, TypeError, r"query.*complex64"),
    "bool value": ({"value": zeros(2, dtype=torch.bool)}, TypeError, r"value.*bool"),
    "half": ({"query": zeros(dtype=torch.float16)}, TypeError, r"query.*bfloat16, got .*float16"),
    "mixed dtypes": (
        {"key": zeros(2, dtype=torch.bfloat16)},
        TypeError,
        r"one dtype, got torch.float32 query and torch.bfloat16 key",
    ),
    "mixed devices": (
        {"value": zeros(2, device="meta")},
        ValueError,
        r"one device, got query on cpu, value on meta",
    ),
    "value of another length": (
        {"value": zeros(2, 199)},
        ValueError,
        r"value to have key's shape \[2, 2, 200, 40\], got \[2, 2, 199, 40\]",
    ),
    "another batch": ({"query": zeros(6, 150, batch=3)}, ValueError, r"batch and dim, got \[3, 6"),
    "another dim": ({"query": zeros(6, 150, 41)}, ValueError, r"batch and dim, got .* 41\]"),
    "no dim": (
        {name: zeros(2, 200, 0) for name in ("query", "key", "value")},
        ValueError,
        r"head dim in 1..512, got 0",
    ),
    "dim of 513": (
        {name: zeros(2, 200, 513) for name in ("query", "key", "value")},
        ValueError,
        r"head dim in 1..512, got 513",
    ),
    "heads that do not share": ({"query": zeros(5, 150)}, ValueError, r"heads.*got 5 and 2"),
    "no key heads": ({"key": zeros(0), "value": zeros(0)}, ValueError, r"heads.*got 6 and 0"),
    "more queries than keys": ({"query": zeros(6, 201)}, ValueError, r"q_len <= k_len.*201 > 200"),
    "a gradient": (
        {"key": zeros(2, requires_grad=True)},
        ValueError,
        r"key requires a gradient.*torch.no_grad\(\)",
    ),
    "scale zero": ({"scale": 0.0}, ValueError, r"scale to be positive and finite, got 0.0"),
    "scale negative": ({"scale": -1.0}, ValueError, r"scale .*got -1.0"),
    "scale nan": ({"scale": float("nan")}, ValueError, r"scale.*got nan"),
    "scale inf": ({"scale": float("inf")}, ValueError, r"scale.*got inf"),
    "key_start of another batch": (
        {"key_start": torch.tensor([1])},
        ValueError,
        r"key_start to be integer \[2\], got torch.int64 \[1\]",
    ),
    "float key_start": ({"key_start": torch.zeros(2)}, ValueError, r"key_start.*got torch.float32"),
    "bool key_start": ({"key_start": torch.zeros(2) > 0}, ValueError, r"key_start.*got torch.bool"),
    "key_start below 0": (
        {"key_start": torch.tensor([0, -1])},
        ValueError,
        r"key_start in 0..200, got \[0, -1\]",
    ),
    "key_start past the keys": (
        {"key_start": torch.tensor([0, 201])},
        ValueError,
        r"key_start in 0..200, got \[0, 201\]",
    ),
    "unknown impl": (
        {"impl": "cuda"},
        ValueError,
        r"impl to be one of auto, reference, cpu, triton, got 'cuda'",
    ),
}
BLOCKS: dict[str, Row] = {
    "a mask": (
        {"pattern": random_mask(SHAPE.tiles(64, 64))},
        TypeError,
        r"expected a BlockPattern, got Tensor; try from_mask",
    ),
    "stripes": ({"pattern": stripes()}, TypeError, r"a BlockPattern, got StripePattern"),
    "pattern of other keys": (
        {"pattern": blocks(SHAPE._replace(k_len=300))},
        ValueError,
        r"shape \(2, 6, 3, 4\) for q_len 150, k_len 200 and block 64, got \(2, 6, 3, 5\)",
    ),
    "pattern of one batch element": (
        {"pattern": blocks(SHAPE._replace(batch=1))},
        ValueError,
        r"got \(1, 6, 3, 4\)",
    ),
    "pattern of more heads": ({"pattern": blocks(heads=12)}, ValueError, r"heads.*got 12"),
    "pattern heads that do not nest": (
        {"pattern": blocks(heads=3)},
        ValueError,
        r"divide 6 query heads and nest with 2 key heads, got 3",
    ),
    "pattern elsewhere": (
        {"pattern": blocks().to("meta")},
        ValueError,
        r"query on cpu, pattern on meta; try pattern.to",
    ),
}
LISTS: dict[str, Row] = {
    "a mask": (
        {"pattern": random_mask(SHAPE.tiles(32, 1))},
        TypeError,
        r"expected a TokenPattern or StripePattern, got Tensor; try from_mask",
    ),
    "blocks": ({"pattern": blocks()}, TypeError, r"got BlockPattern"),
    "pattern of other keys": (
        {"pattern": stripes(SHAPE._replace(k_len=300))},
        ValueError,
        r"shape \(2, 6, 5, 200\) for q_len 150, k_len 200 and group 32, got \(2, 6, 5, 300\)",
    ),
    "pattern of other queries": (
        {"pattern": stripes(SHAPE._replace(q_len=161))},
        ValueError,
        r"got \(2, 6, 6, 200\)",
    ),
    "pattern heads that do not nest": ({"pattern": stripes(heads=3)}, ValueError, r"got 3"),
    "pattern elsewhere": ({"pattern": stripes().to("meta")}, ValueError, r"pattern on meta"),
    "state of other queries": (
        {"state": AttentionState.empty(zeros(6, 149))},
        ValueError,
        r"state.max to be float32 \[2, 6, 150\] on cpu, got torch.float32 \[2, 6, 149\]",
    ),
    "state with another sum": (
        {"state": state_with(sum=torch.zeros(2, 6, 1))},
        ValueError,
        r"state.sum to be float32 \[2, 6, 150\] on cpu, got torch.float32 \[2, 6, 1\]",
    ),
    "state in float64": (
        {"state": state_with(acc=zeros(6, 150, dtype=torch.float64))},
        ValueError,
        r"state.acc to be float32 .* got torch.float64",
    ),
    "short tables": (
        {"rotary": (COSINE[:50], SINE[:50])},
        ValueError,
        r"cosine rows for lists of 1\d\d tokens, got 50",
    ),
    "one short table": ({"rotary": (COSINE, SINE[:50])}, ValueError, r"sine rows .* got 50"),
    "tables in float64": (
        {"rotary": (COSINE.double(), SINE.double())},
        ValueError,
        r"cosine table to be float32 \[n, 20\], got torch.float64 \[200, 20\]",
    ),
    "tables of another dim": (
        {"rotary": (COSINE, SINE[:, :19])},
        ValueError,
        r"sine table to be float32 \[n, 20\], got torch.float32 \[200, 19\]",
    ),
    "tables elsewhere": (
        {"rotary": (COSINE.to("meta"), SINE)},
        ValueError,
        r"cosine table on cpu, got meta",
    ),
}
CASES = [
    pytest.param(function, row, id=f"{function.__name__}-{name}")
    for function, rows in (
        (block_sparse_attention, INPUTS | BLOCKS),
        (block_sparse_state, INPUTS | BLOCKS),
        (gathered_attention, INPUTS | LISTS),
    )
    for name, row in rows.items()
]


@pytest.mark.parametrize("function, row", CASES)
def test_bad_input_is_named(function, row):
    changes, error, message = row
    good: dict[str, Any] = dict(
        zip(("query", "key", "value"), attention_inputs(SHAPE), strict=True),
        pattern=stripes() if function is gathered_attention else blocks(),
    )
    function(**good)
    with pytest.raises(error, match=message):
        function(**(good | changes))
