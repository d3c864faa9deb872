"""Lossless weights: the narrowest form that gives every number back, and its products."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import LosslessWeight, instruction_sets, lossless_gemv, pack_lossless
from gossamer.kernels.lossless_gemv import BLOCK, FORMS, ROWS, _vector_weight
from gossamer.kernels.sparse_gemv import MAX_VECTORS
from gossamer.testing import check_product

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
COLUMNS = [1, 15, 31, 32, 33, 64, 65, 130, 300]  # around vectors and blocks
SHAPES = [1, 3, 4, 63, 64, 65, 130]  # rows, around tiles of 4 and tasks of 64
cases = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def draw(form: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A weight as a file of that form would hold it: scales in half precision, codes at random."""
    generator = torch.Generator().manual_seed(seed + rows + columns)
    blocks = -(-columns // BLOCK)
    step = (torch.rand(rows, blocks, 1, generator=generator) + 0.01).half().float() / 64
    low = torch.randn(rows, blocks, 1, generator=generator).half().float()
    if form == "nibbles":
        codes = torch.randint(0, 16, (rows, blocks, BLOCK), generator=generator)
        codes[..., 0], codes[..., 1] = 0, 15  # as the extremes of a block are coded
        weight = codes * step + low
    elif form == "bytes":
        codes = torch.randint(-127, 128, (rows, blocks, BLOCK), generator=generator)
        codes[..., 0] = 127
        weight = codes * step
    else:
        weight = torch.randn(rows, blocks, BLOCK, generator=generator)
        weight = weight.bfloat16().float() if form == "bfloat16" else weight
    return weight.flatten(1)[:, :columns].contiguous()


def vectors(count: int, columns: int) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count))


def launch(weight: LosslessWeight, x: Tensor, out: Tensor) -> None:
    """The native product on tensors of the caller's."""
    held = _vector_weight(weight.form, weight.codes, weight.scales)
    held.times(x.data_ptr(), *x.shape, out.data_ptr(), torch.get_num_threads())


@pytest.mark.parametrize("form", FORMS)
@cases
@given(st.sampled_from(SHAPES), st.sampled_from([33, 64, 90, 320]), st.integers(0, 9))
def test_each_form_is_found_and_gives_every_number_back(form, rows, columns, seed):
    weight = draw(form, rows, columns, seed)
    packed = pack_lossless(weight)
    assert (packed.form, packed.shape) == (form, (rows, columns))
    assert torch.equal(packed.to_dense(), weight)
    stored = {"nibbles": 24, "bytes": 36, "bfloat16": 64, "float32": 128}[form]
    assert packed.nbytes == rows * -(-columns // BLOCK) * stored


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_codes_may_count_from_a_farthest_number(sign):
    # Blocks whose codes reach 8 steps to one side of zero and fewer to the other.
    codes = torch.randint(0, 13, (5, 3, BLOCK), generator=torch.Generator().manual_seed(0))
    codes[..., 7] = 0
    weight = (sign * 0.0123 * torch.ones(1).half().float() * (codes - 8)).flatten(1)
    weight = (weight / 0.0123).half().float() * 0.5
    packed = pack_lossless(weight)
    assert packed.form == "nibbles"
    assert torch.equal(packed.to_dense(), weight)


@cases
@given(
    st.integers(1, 40), st.integers(1, 70), st.sampled_from([1e-42, 1e-20, 1.0, 1e20]), st.data()
)
def test_no_number_is_ever_lost(rows, columns, scale, data):
    levels = data.draw(st.sampled_from([1, 2, 3, 15, 16, 17, 200, 255, 256]))
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randint(-levels, levels + 1, (rows, columns), generator=generator) * scale
    weight += data.draw(st.sampled_from([0.0, 0.25, 3e-8])) * scale
    assert torch.equal(pack_lossless(weight).to_dense(), weight)


def test_what_is_not_a_number_stays_in_place():
    weight = draw("nibbles", 3, 64)
    weight[1, 5], weight[2, 40] = torch.nan, -torch.inf
    packed = pack_lossless(weight)
    assert packed.form == "float32"
    torch.testing.assert_close(packed.to_dense(), weight, rtol=0, atol=0, equal_nan=True)


def test_one_row_among_thousands_decides_the_form():
    weight = draw("nibbles", 2 * ROWS + 5, 32)
    weight[-1, 3] += 1e-3
    packed = pack_lossless(weight)
    assert packed.form != "nibbles"
    assert torch.equal(packed.to_dense(), weight)


def test_float32_shares_memory():
    weight = draw("float32", 6, 64)
    assert pack_lossless(weight).codes.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("form", FORMS)
@cases
@given(st.sampled_from(SHAPES), st.sampled_from(COLUMNS), st.integers(1, MAX_VECTORS))
def test_products_are_exact_to_rounding(impl, form, rows, columns, count):
    weight, x = draw(form, rows, columns), vectors(count, columns)
    check_product(lossless_gemv(pack_lossless(weight), x, impl=impl).mT, weight, x.mT)


@pytest.mark.parametrize("form", FORMS)
def test_threads_agree_bitwise_and_every_number_of_vectors_is_right(isa, form):
    weight, x = draw(form, 300, 333), vectors(MAX_VECTORS, 333)
    packed = pack_lossless(weight)
    for count in range(1, MAX_VECTORS + 1):
        expected = lossless_gemv(packed, x[:count])
        check_product(expected.mT, weight, x[:count].mT)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(lossless_gemv(packed, x[:count]), expected)
        torch.set_num_threads(1)


def test_zero_rows_are_exactly_zero_and_nan_shows(impl):
    weight, x = draw("nibbles", 70, 150), vectors(3, 150)
    weight[::3] = 0.0
    x[1, 5] = torch.nan
    product = lossless_gemv(pack_lossless(weight), x, impl=impl)
    assert not product[[0, 2], ::3].any()
    assert bool(product[1].isnan().all())
    assert bool(product[[0, 2]].isfinite().all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns"), [(67, 33), (5, 64), (1, 31)])
def test_nothing_around_the_tensors_is_touched(isa, guarded, form, rows, columns):
    weight, x = draw(form, rows, columns), vectors(5, columns)
    packed = pack_lossless(weight)
    scales = None if packed.scales is None else guarded(packed.scales)
    walled = LosslessWeight(packed.form, columns, guarded(packed.codes), scales)
    for count in (1, 2, 5):
        out = guarded(torch.full((count, rows), torch.nan))
        launch(walled, guarded(x[:count]), out)
        check_product(out.mT, weight, x[:count].mT)


@pytest.mark.parametrize("shape", [(), (1, 1), (2, 3), (2, 2, 4)])
def test_vectors_keep_their_leading_dimensions_and_any_strides(impl, shape):
    packed = pack_lossless(draw("bytes", 40, 60))
    x = torch.randn(*shape, 120)[..., ::2]
    found = lossless_gemv(packed, x, impl=impl)
    assert tuple(found.shape) == (*shape, 40)
    assert torch.equal(found.reshape(-1, 40), lossless_gemv(packed, x.reshape(-1, 60), impl=impl))


def test_no_rows_and_no_columns():
    for rows, columns in ((0, 5), (3, 0), (0, 0)):
        packed = pack_lossless(torch.ones(rows, columns))
        assert packed.to_dense().shape == (rows, columns)
        for impl in IMPLS:
            assert not lossless_gemv(packed, torch.ones(2, columns), impl=impl).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("impl_name", IMPLS)
def test_the_operator_is_registered_for_tracing(form, impl_name):
    packed = pack_lossless(draw(form, 20, 30))
    arguments = (packed.form, packed.codes, packed.scales, vectors(4, 30), impl_name)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gossamer.lossless_gemv.default, arguments, test_utils=tests)


def test_copies_hold_nothing_native():
    packed = pack_lossless(draw("nibbles", 8, 64))
    lossless_gemv(packed, torch.ones(64))
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert "native" not in twin.__dict__
        assert torch.equal(twin.to_dense(), packed.to_dense())


GOOD: dict[str, Any] = {"weight": pack_lossless(torch.eye(3, 4)), "vectors": torch.ones(2, 4)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"vectors": torch.ones(2, 4).double()}, TypeError, "float32 vectors, got torch.float64"),
        ({"vectors": torch.ones(4, 2)}, ValueError, r"vectors of \[..., 4\] on cpu, got \[4, 2\]"),
        ({"vectors": torch.tensor(4.0)}, ValueError, r"\[..., 4\] on cpu, got \[\]"),
        ({"vectors": torch.ones(17, 4)}, ValueError, r"1..16 vectors, got 17; try to_dense"),
        ({"vectors": torch.ones(0, 4)}, ValueError, "1..16 vectors, got 0"),
        ({"vectors": torch.ones(2, 4, device="meta")}, ValueError, "on cpu, got .* on meta"),
        ({"vectors": torch.ones(2, 4, requires_grad=True)}, ValueError, "try torch.no_grad"),
        ({"impl": "triton"}, ValueError, "auto, reference, cpu, got 'triton'"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    lossless_gemv(**GOOD)
    with pytest.raises(error, match=message):
        lossless_gemv(**(GOOD | changes))


def test_bad_weights_are_named():
    with pytest.raises(TypeError, match=r"float32 weights, got torch.bfloat16"):
        pack_lossless(torch.ones(2, 2).bfloat16())
    for weight in (torch.ones(2), torch.ones(2, 2, device="meta")):
        with pytest.raises(ValueError, match="a matrix on the CPU"):
            pack_lossless(weight)
