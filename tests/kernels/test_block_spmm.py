"""Block-sparse weight times dense matrix: any block, packed or torch's own tensor."""

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import block_spmm, pack, spmm
from gossamer.patterns import NM, Block
from gossamer.testing import check_product, random_mask

pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16]
BLOCKS = [
    Block(1, 4),
    Block(4, 4),
    Block(8, 4),
    Block(16, 16),
    Block(1, 16),
    Block(2, 1),
    Block(3, 5),
    Block(6, 7),
    Block(1, 1),
]
cases = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def draw(
    block: Block, across: tuple[int, int], width: int, density: float
) -> tuple[Tensor, Tensor]:
    """A weight of whole blocks, `across` of them each way, and a dense operand."""
    generator = torch.Generator().manual_seed(across[0])
    mask = block.to_mask(
        random_mask(across, density=density, seed=width),
        (across[0] * block.rows, across[1] * block.columns),
    )
    weight = torch.randn(mask.shape, generator=generator) * mask
    return weight, torch.randn(mask.shape[1], width, generator=generator)


def blocked(weight: Tensor, block: Block) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return weight.to_sparse_bsr((block.rows, block.columns))


@cases
@given(
    st.sampled_from(BLOCKS),
    st.sampled_from([0, 1, 2, 9, 40]),
    st.sampled_from([0, 1, 3, 20]),
    st.sampled_from([0, 1, 16, 17, 49, 97]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
)
def test_products_are_exact_to_rounding(impl, block, down, across, width, density, stored, dtype):
    weight, dense = draw(block, (down, across), width, density)
    weight, dense = weight.to(stored), dense.to(dtype)
    product = block_spmm(pack(weight, block), dense, impl=impl)
    assert product.dtype == dtype
    check_product(product, weight, dense)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_torchs_block_tensors_are_weights(impl, block):
    weight, dense = draw(block, (12, 10), 33, 0.3)
    expected = block_spmm(pack(weight, block), dense, impl=impl)
    tensor = blocked(weight, block)
    assert torch.equal(block_spmm(tensor, dense, impl=impl), expected)
    tensor.values()[0] = 0.0  # a block of explicit zeros
    check_product(block_spmm(tensor, dense, impl=impl), tensor.to_dense(), dense)
    empty = blocked(torch.zeros_like(weight), block)
    assert not block_spmm(empty, dense, impl=impl).any()


@pytest.mark.parametrize(
    ("block", "shared"),
    [(Block(1, 16), 1), (Block(2, 3), 2), (Block(4, 4), 4), (Block(8, 4), 8), (Block(16, 16), 8)],
    ids=str,
)
def test_rows_of_a_block_read_the_operand_once(block, shared):
    weight, _ = draw(block, (16, 12), 1, 0.2)
    assert pack(weight, block).support.panels.group == shared


def test_batches_bias_and_clamp(impl):
    weight, _ = draw(Block(4, 4), (30, 40), 1, 0.2)
    packed, bias = pack(weight, Block(4, 4)), torch.linspace(-1, 1, 120)
    dense = torch.randn(3, 160, 49, generator=torch.Generator().manual_seed(1))
    product = block_spmm(packed, dense, bias=bias, impl=impl)
    check_product(product, weight, dense, bias=bias)
    clamped = block_spmm(packed, dense, bias=bias, clamp=(0.0, 6.0), impl=impl)
    assert torch.equal(clamped, product.clamp(0.0, 6.0))
    assert torch.equal(product, spmm(packed, dense, bias=bias, impl=impl))


def test_torch_compile_traces_the_whole_call():
    weight, dense = draw(Block(4, 2), (5, 9), 17, 0.4)
    packed = pack(weight, Block(4, 2))
    expected = block_spmm(packed, dense)
    traced = torch.compile(lambda x: block_spmm(packed, x), fullgraph=True, backend="eager")
    assert torch.equal(traced(dense), expected)


GOOD: dict[str, Any] = {"weight": pack(torch.eye(4), Block(2, 2)), "dense": torch.ones(4, 5)}
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight": torch.eye(4)}, TypeError, r"or a torch.sparse_bsr .* got torch.strided; try pack"),
    ({"weight": [1.0]}, TypeError, r"got list; try pack"),
    ({"weight": pack(torch.eye(4))}, ValueError, r"Block\(rows, columns\), got Unstructured"),
    ({"weight": pack(torch.eye(4), NM(1, 4))}, ValueError, r"got NM\(n=1, m=4\); try .*or spmm"),
    (
        {"weight": blocked(torch.eye(4), Block(2, 2)).requires_grad_()},
        ValueError,
        "weight requires a gradient",
    ),
    ({"dense": torch.ones(5, 4)}, ValueError, r"K = 4, got \[5, 4\]"),
    ({"dense": torch.ones(4, 5).double()}, TypeError, r"float32 or bfloat16, got torch.float64"),
    ({"bias": torch.ones(3)}, ValueError, r"bias to be float32 \[4\]"),
    ({"clamp": (1.0, -math.inf)}, ValueError, r"low <= high"),
    ({"impl": "triton"}, ValueError, r"auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(changes, error, message):
    block_spmm(**GOOD)
    with pytest.raises(error, match=message):
        block_spmm(**(GOOD | changes))


def test_a_block_that_is_no_block_is_refused():
    with pytest.raises(ValueError, match=r"Block\(rows=3, columns=2\) divides, got \(4, 4\)"):
        pack(torch.eye(4), Block(3, 2))
