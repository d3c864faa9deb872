"""A product that spends nothing on zero activations, against float64."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import activation_sparse_matmul, backend, instruction_sets
from gossamer.testing import random_mask

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
DTYPES = [torch.float32, torch.bfloat16]
cases = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def inputs(
    n: int, k: int, m: int, density: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + k)
    activations = torch.randn(n, k, generator=generator)
    activations *= random_mask((n, k), density=density, seed=m)
    return activations, torch.randn(k, m, generator=generator).to(dtype)


def check(found: Tensor, activations: Tensor, weight_t: Tensor) -> None:
    """Hold every output to the rigorous bound of a float32 sum of its non-zero products."""
    assert found.dtype == torch.float32 and found.shape == (len(activations), weight_t.shape[1])
    a, w = activations.double(), weight_t.double()
    terms = ((a != 0).sum(1, keepdim=True) + 2) * 2.0**-24
    bound = terms / (1 - terms) * (a.abs() @ w.abs())
    assert bool(((found.double() - a @ w).abs() <= bound).all())


@cases
@given(
    st.integers(0, 40),
    st.integers(0, 90),
    st.integers(0, 90),
    st.floats(0, 1),
    st.sampled_from(DTYPES),
)
def test_product_is_within_the_rounding_bound(impl, n, k, m, density, dtype):
    activations, weight_t = inputs(n, k, m, density, dtype)
    check(activation_sparse_matmul(activations, weight_t, impl=impl), activations, weight_t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_columns_past_one_task(impl, n, density, dtype):
    activations, weight_t = inputs(n, 37, 2311, density, dtype)
    found = activation_sparse_matmul(activations, weight_t, impl=impl)
    check(found, activations, weight_t)
    if density == 0.0:
        assert torch.equal(found, torch.zeros(n, 2311))


def test_each_row_skips_its_own_zeros(impl):
    """Rows of the weight that others need are poison to a row that does not."""
    activations = torch.tensor([[1.0, 0.0, 2.0], [-0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    weight_t = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 4.0]])
    result = activation_sparse_matmul(activations, weight_t, impl=impl)
    assert result[[0, 2]].tolist() == [[7.0, 10.0], [0.0, 0.0]]
    assert result[1].isnan()[0] and result[1, 1] == torch.inf


def test_nan_activations_are_not_zero(impl):
    activations = torch.tensor([[torch.nan, 0.0]])
    assert activation_sparse_matmul(activations, torch.ones(2, 3), impl=impl).isnan().all()


def test_bfloat16_activations_and_strides(impl):
    activations, weight_t = inputs(5, 33, 70, 0.3)
    half = activations.bfloat16()
    expected = activation_sparse_matmul(half.float(), weight_t, impl=impl)
    assert torch.equal(activation_sparse_matmul(half, weight_t, impl=impl), expected)
    turned = half.T.contiguous().T
    assert torch.equal(activation_sparse_matmul(turned, weight_t, impl=impl), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_rows_agree_bitwise(isa, dtype):
    activations, weight_t = inputs(20, 300, 1500, 0.3, dtype)
    expected = activation_sparse_matmul(activations, weight_t, impl="cpu")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        found = activation_sparse_matmul(activations, weight_t, impl="cpu")
        assert torch.equal(found, expected)
    alone = activation_sparse_matmul(activations[7:8], weight_t, impl="cpu")
    assert torch.equal(alone, expected[7:8])


def test_guard_values_around_the_output_stay(isa):
    activations, weight_t = inputs(3, 40, 37, 0.5)
    guarded = torch.full((3 * 37 + 2,), -7.0)
    out = guarded[1:-1].view(3, 37)
    backend.launch("activation_sparse_matmul", activations, weight_t, out, 2)
    assert guarded[0] == guarded[-1] == -7.0
    check(out, activations, weight_t)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_around_the_tensors_is_touched(isa, guarded, dtype):
    for n, k, m, density in (
        (3, 40, 37, 0.5),
        (17, 9, 64, 0.1),
        (1, 1, 1, 1.0),
        (1, 300, 260, 0.3),
    ):
        activations, weight_t = map(guarded, inputs(n, k, m, density, dtype))
        out = guarded(torch.full((n, m), torch.nan))
        backend.launch("activation_sparse_matmul", activations, weight_t, out, 1)
        check(out, activations, weight_t)


def test_offsets_beyond_32_bits(isa, address_space):
    rows, columns = 2**16 + 3, 2**15  # of which two rows are read
    weight_t = address_space(rows * columns, torch.bfloat16).view(rows, columns)
    activations = torch.zeros(1, rows)
    activations[0, 1], activations[0, -1] = 2.0, 3.0
    weight_t[1], weight_t[-1] = 1.0, torch.arange(columns)
    found = activation_sparse_matmul(activations, weight_t, impl="cpu")
    assert torch.equal(found[0], 2.0 + 3.0 * weight_t[-1].float())


@pytest.mark.parametrize("impl_name", IMPLS)
def test_operator_is_registered_for_tracing(impl_name):
    torch.library.opcheck(
        torch.ops.gossamer.activation_sparse_matmul.default,
        (torch.randn(3, 4), torch.randn(4, 5).bfloat16(), impl_name),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight_t": torch.ones(4, 3)}, ValueError, r"\[2, 3\] and \[4, 3\].*weight.T"),
    ({"activations": torch.ones(3)}, ValueError, r"activations to be a matrix, got \[3\]"),
    ({"weight_t": torch.ones(3, 4).double()}, TypeError, "weight_t .* got torch.float64"),
    ({"activations": torch.ones(2, 3).int()}, TypeError, "activations .* got torch.int32"),
    ({"weight_t": torch.ones(4, 3).T}, ValueError, r"contiguous, .* strides \(1, 3\)"),
    ({"weight_t": torch.ones(3, 4, device="meta")}, ValueError, "one device"),
    ({"weight_t": torch.ones(3, 4, requires_grad=True)}, ValueError, "requires a gradient"),
    ({"impl": "triton"}, ValueError, "auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, error, message = row
    good: dict[str, Any] = {"activations": torch.ones(2, 3), "weight_t": torch.ones(3, 4)}
    activation_sparse_matmul(**good)
    with pytest.raises(error, match=message):
        activation_sparse_matmul(**(good | changes))
