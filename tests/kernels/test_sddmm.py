"""Dot products at the entries of a pattern, against the dense product in float64."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import SparsePattern, backend, instruction_sets, sddmm
from gossamer.testing import random_mask

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
cases = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def inputs(rows: int, batch: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (rows, batch), (batch, columns)
    a, b = (torch.randn(size, generator=generator) for size in sizes)
    return a, b


def check(found: Tensor, a: Tensor, b: Tensor, mask: Tensor) -> None:
    """Hold every entry to the rigorous bound of a float32 dot product."""
    terms = (a.shape[1] + 2) * 2.0**-24
    bound = terms / (1 - terms) * (a.double().abs() @ b.double().abs())[mask]
    error = (found.double() - (a.double() @ b.double())[mask]).abs()
    assert found.shape == bound.shape and bool((error <= bound).all())


@cases
@given(st.integers(0, 20), st.integers(0, 300), st.integers(0, 20), st.floats(0, 1))
def test_sddmm_at_the_entries(impl, rows, batch, columns, density):
    mask = random_mask((rows, columns), density=density, seed=rows)
    a, b = inputs(rows, batch, columns)
    found = sddmm(a, b, SparsePattern.from_mask(mask), impl=impl)
    check(found, a, b, mask)
    flipped = sddmm(
        a.T.contiguous().T, b.T.contiguous().T, SparsePattern.from_mask(mask), impl=impl
    )
    torch.testing.assert_close(flipped, found)


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 49, 128, 129, 300])
def test_batches_around_the_vector_widths(impl, batch):
    mask = random_mask((40, 70), density=0.3)
    mask[::4], mask[:, ::5], mask[7] = False, False, True
    a, b = inputs(40, batch, 70)
    check(sddmm(a, b, SparsePattern.from_mask(mask), impl=impl), a, b, mask)


def test_no_batch_gives_zeros(impl):
    pattern = SparsePattern.from_mask(torch.ones(3, 4) > 0)
    found = sddmm(torch.ones(3, 0), torch.ones(0, 4), pattern, impl=impl)
    assert torch.equal(found, torch.zeros(12))


def test_threads_agree_bitwise(isa):
    a, b = inputs(200, 150, 90)
    pattern = SparsePattern.from_mask(random_mask((200, 90), density=0.2))
    expected = sddmm(a, b, pattern, impl="cpu")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(sddmm(a, b, pattern, impl="cpu"), expected)


def test_nothing_around_the_tensors_is_touched(isa, guarded):
    for rows, batch, columns in ((37, 19, 53), (1, 1, 1), (70, 131, 16)):
        mask = random_mask((rows, columns), density=0.3)
        mask[0, -1] = True
        pattern = SparsePattern.from_mask(mask)
        a, b = inputs(rows, batch, columns)
        for left, right in (
            (a.T[None], b[None]),
            (a.T.contiguous()[None], b.T.contiguous().T[None]),
        ):
            parts = map(guarded, (left, right, pattern.offsets, pattern.indices))
            dots = guarded(torch.full((pattern.nnz,), torch.nan))
            backend.launch("sddmm", *parts, dots, 1)
            check(dots, a, b, mask)


@pytest.mark.parametrize("features_first", [False, True])
def test_offsets_beyond_32_bits(isa, address_space, features_first):
    mask = random_mask((5, 6), density=0.6)
    pattern = SparsePattern.from_mask(mask)
    a, b = inputs(5, 4, 6)
    stride, skip = 2**30 + 7, 2**31 + 5
    strides = (0, 1, stride) if features_first else (0, stride, 1)
    left, right = (
        address_space(6 * stride, torch.float32).as_strided((1, 4, size), strides)
        for size in (5, 6)
    )
    left[0], right[0] = a.T, b
    indices = address_space(skip + pattern.nnz, torch.int32)
    indices[skip:] = pattern.indices
    dots = address_space(skip + pattern.nnz, torch.float32)
    backend.launch("sddmm", left, right, pattern.offsets + skip, indices, dots, 1)
    check(dots[skip:], a, b, mask)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_torch_csr_matrix_is_a_pattern(impl):
    mask = random_mask((6, 5), density=0.5)
    rows = torch.cat([torch.zeros(1).long(), mask.sum(1).cumsum(0)])
    csr = torch.sparse_csr_tensor(rows, mask.nonzero()[:, 1], torch.ones(int(mask.sum())), (6, 5))
    a, b = inputs(6, 3, 5)
    check(sddmm(a, b, csr, impl=impl), a, b, mask)


@pytest.mark.parametrize("impl_name", IMPLS)
def test_operator_is_registered_for_tracing(impl_name):
    pattern = SparsePattern.from_mask(random_mask((6, 5), density=0.5))
    a, b = inputs(6, 14, 5)
    torch.library.opcheck(
        torch.ops.gossamer.sddmm.default,
        (a.mT[None], b[None], pattern.offsets, pattern.indices, impl_name),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


PATTERN = SparsePattern.from_mask(torch.ones(4, 3) > 0)
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"a": torch.ones(3, 2)}, ValueError, r"a of \[4, N\], got \[3, 2\]"),
    ({"b": torch.ones(3, 3)}, ValueError, r"b of \[2, 3\], got \[3, 3\]"),
    ({"a": torch.ones(4, 2).int()}, TypeError, r"a to be float32, got torch.int32"),
    ({"b": torch.ones(2, 3).double()}, TypeError, r"one dtype, got torch.float32 a and .*64 b"),
    ({"a": torch.ones(4, 2, requires_grad=True)}, ValueError, r"a requires a gradient"),
    ({"b": torch.ones(2, 3, device="meta")}, ValueError, r"one device, got b on meta"),
    ({"pattern": torch.ones(4, 3)}, TypeError, r"torch.sparse_csr matrix, got torch.strided"),
    ({"impl": "gpu"}, ValueError, r"got 'gpu'"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, error, message = row
    good = {"a": torch.ones(4, 2), "b": torch.ones(2, 3), "pattern": PATTERN}
    sddmm(**good)
    with pytest.raises(error, match=message):
        sddmm(**(good | changes))
