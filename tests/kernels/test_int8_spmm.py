"""Int8 products: every sum exact, on every instruction set, and rounded as they say."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import Affine, Int8Weight, backend, instruction_sets, int8_spmm, pack_int8
from gossamer.testing import random_mask

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
cases = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def operands(
    rows: int, columns: int, width: int, density: float = 0.5, *, group: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A weight whose rows share columns in groups, and bytes of the whole range."""
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask((-(-rows // group), columns), density=density, seed=seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= mask.repeat_interleave(group, 0)[:rows]
    dense = torch.randint(256, (columns, width), generator=generator, dtype=torch.uint8)
    return weight, dense


def exact(weight: Int8Weight, dense: Tensor) -> np.ndarray:
    return weight.to_dense().numpy().astype(np.int64) @ dense.numpy().astype(np.int64)


@cases
@given(
    st.integers(0, 40),
    st.sampled_from([0, 1, 3, 4, 5, 64, 130]),
    st.sampled_from([0, 1, 15, 16, 17, 48, 49, 63, 64, 65, 130]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.booleans(),
)
def test_sums_are_exact(impl, rows, columns, width, density, group, signed):
    weight, dense = operands(rows, columns, width, density, group=group)
    dense = (dense.int() - 128).to(torch.int8) if signed else dense
    packed = pack_int8(weight, group=group)
    product = int8_spmm(packed, dense, impl=impl)
    assert product.dtype == torch.int32
    assert np.array_equal(product.numpy(), exact(packed, dense))


def test_the_largest_sums_do_not_overflow(impl):
    weight = torch.ones(8, 2**16)
    weight[3] = -1.0
    dense = torch.full((2**16, 1), 255, dtype=torch.uint8)
    product = int8_spmm(pack_int8(weight), dense, impl=impl)
    most = 127 * 255 * 2**16
    assert product[:, 0].tolist() == [most] * 3 + [-most] + [most] * 4
    low = torch.full((2**16, 1), -128, dtype=torch.int8)
    assert int(int8_spmm(pack_int8(weight), low, impl=impl)[0, 0]) == -127 * 128 * 2**16


@pytest.mark.parametrize("bytes_of", [Affine(0.02, 3), Affine(0.02, -70, torch.int8)])
def test_real_numbers_are_those_the_bytes_stand_for(impl, bytes_of):
    weight, _ = operands(21, 90, 1)
    x = bytes_of.quantise(2 * torch.randn(2, 90, 49, generator=torch.Generator().manual_seed(1)))
    packed, bias = pack_int8(weight), torch.linspace(-1, 1, 21)
    product = int8_spmm(packed, x, read=bytes_of, bias=bias, impl=impl)
    wide = packed.to_dense().double() * packed.scale.double()[:, None]
    expected = wide @ bytes_of.dequantise(x).double() + bias.double()[:, None]
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)
    clamped = int8_spmm(packed, x, read=bytes_of, bias=bias, clamp=(0.0, 1.0), impl=impl)
    assert torch.equal(clamped, product.clamp(0.0, 1.0))
    for image, alone in zip(x, product, strict=True):
        assert torch.equal(int8_spmm(packed, image, read=bytes_of, bias=bias, impl=impl), alone)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("clamp", [(-math.inf, math.inf), (0.0, 6.0), (-0.3, 0.4)])
def test_bytes_are_the_nearest_to_the_real_results(impl, dtype, clamp):
    weight, x = operands(19, 70, 33)
    packed, read = pack_int8(weight), Affine(0.01, 128)
    write = Affine.over(-2.5, 6.0, dtype)
    real = int8_spmm(packed, x, read=read, clamp=clamp, impl=impl).double()
    found = int8_spmm(packed, x, read=read, clamp=clamp, write=write, impl=impl)
    assert found.dtype == dtype
    low, high = write.limits
    wanted = (real / write.scale + write.zero_point).clamp(low, high)
    error = (found.double() - wanted).abs()
    assert float(error.max()) <= 0.5 + 1e-3
    assert len(found.unique()) > 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("width", [1, 50, 64, 100])
def test_real_inputs_are_rounded_to_bytes_on_the_way_in(impl, dtype, width):
    weight, _ = operands(21, 70, 1)
    packed, read = pack_int8(weight), Affine.over(-1.0, 3.0, dtype)
    low, high = read.limits
    x = torch.randint(low - 20, high + 20, (2, 70, width)) - read.zero_point
    x = (x + 0.8 * torch.rand(x.shape) - 0.4) * read.scale  # never halfway between two bytes
    expected = int8_spmm(packed, read.quantise(x), read=read, impl=impl)
    assert torch.equal(int8_spmm(packed, x, read=read, impl=impl), expected)
    x[0, 3, 0] = math.nan  # one byte or another, but no other column
    found = int8_spmm(packed, x, read=read, impl=impl)
    assert bool(found.isfinite().all()) and torch.equal(found[1], expected[1])
    assert torch.equal(found[0, :, 1:], expected[0, :, 1:])


def test_halves_go_to_the_even_byte(impl):
    weight = pack_int8(torch.full((1, 1), 127.0), group=1)  # scale 1, byte 127
    read, write = Affine(1 / 127), Affine(2.0)
    x = torch.arange(12, dtype=torch.uint8)[None]
    found = int8_spmm(weight, x, read=read, write=write, impl=impl)
    factor = torch.tensor(1 / 127) * torch.tensor(1.0) / 2.0
    halves = [float(127 * factor * i) for i in range(12)]
    assert found[0].tolist() == [round(Fraction(half)) for half in halves]


def test_rows_without_weights_are_their_bias(impl):
    weight, x = operands(20, 40, 17)
    weight[8:16] = 0.0
    packed, bias = pack_int8(weight), torch.arange(20.0)
    product = int8_spmm(packed, x, read=Affine(0.1, 7), bias=bias, impl=impl)
    assert torch.equal(product[8:16], bias[8:16, None].expand(8, 17))
    assert int(packed.starts[2] - packed.starts[1]) == 0


def test_skipped_columns_are_not_read(isa):
    """Quads name only columns that a group keeps: the share of them is the density."""
    weight, _ = operands(64, 256, 1, 0.25)
    packed = pack_int8(weight)
    assert packed.quads.numel() * 8 <= 0.25 * 64 * 256 + 8 * 8 * 3
    assert packed.density == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("width", [1, 17, 64, 100])
def test_any_strides_give_the_same_sums(impl, width):
    weight, dense = operands(20, 70, width)
    packed = pack_int8(weight)
    expected = int8_spmm(packed, dense, impl=impl)
    views = [
        dense.mT.contiguous().mT,
        torch.full((150, width + 9), 255, dtype=torch.uint8)[5:145:2, 3 : 3 + width].copy_(dense),
        dense[None].expand(2, -1, -1),
    ]
    for view in views:
        for product in int8_spmm(packed, view, impl=impl).reshape(-1, 20, width):
            assert torch.equal(product, expected)


@pytest.mark.parametrize("width", [15, 49, 300])
def test_thread_counts_agree_bitwise(isa, width):
    weight, dense = operands(300, 100, width)
    packed = pack_int8(weight)
    options = {"read": Affine(0.1), "write": Affine(0.5, 100), "impl": "cpu"}
    expected = int8_spmm(packed, dense, **options)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(int8_spmm(packed, dense, **options), expected)


@pytest.mark.parametrize("kind", [torch.int32, torch.float32, torch.uint8, torch.int8])
@pytest.mark.parametrize("width", [1, 17, 64, 130])
def test_nothing_is_written_around_the_result(isa, kind, width):
    weight, dense = operands(21, 70, width)
    packed = pack_int8(weight)
    room = torch.full((2, 21 + 2, width + 6), 77, dtype=kind)
    out = room[:, 1:-1, 3:-3]
    parts = [packed.starts, packed.quads, packed.values, -0 * packed.row_sums]
    factor, offset = torch.full((21,), 1e-9), torch.zeros(21)
    dense = dense[None].expand(2, -1, -1).contiguous()
    places = (1.0, 0.0, out, factor, offset, 0.0, 0.0, 2)
    backend.launch("int8_spmm", packed.group, *parts, dense, *places)
    if kind == torch.int32:
        assert np.array_equal(out[1].numpy(), exact(packed, dense[1]))
    else:
        assert bool((out == (-128 if kind == torch.int8 else 0)).all())
    out.fill_(77)
    assert bool((room == 77).all())


def test_packing_is_quantisation_of_each_row():
    weight, _ = operands(21, 33, 1, 0.4, group=4)
    weight[4] = 0.0
    packed = pack_int8(weight, group=4)
    assert packed.group == 4
    assert torch.equal(packed.to_dense(), (weight / packed.scale[:, None]).round().to(torch.int8))
    error = (packed.dequantise() - weight).abs()
    assert bool((error <= packed.scale[:, None] / 2 * 1.00001).all())
    assert int(packed.to_dense().abs().amax(1)[5]) == 127 and float(packed.scale[4]) == 1.0
    assert torch.equal(packed.row_sums, packed.to_dense().sum(1).int())


@given(st.floats(-100, 100), st.floats(-100, 100), st.sampled_from([torch.uint8, torch.int8]))
def test_an_interval_is_covered_and_zero_is_exact(a, b, dtype):
    affine = Affine.over(min(a, b), max(a, b), dtype)
    assert float(affine.dequantise(affine.quantise(torch.zeros(1)))) == 0.0
    x = torch.linspace(min(a, b, 0.0), max(a, b, 0.0), 50)
    error = (affine.dequantise(affine.quantise(x)) - x).abs()
    assert float(error.max()) <= affine.scale * 1.0001


@pytest.mark.parametrize("impl_name", IMPLS)
def test_the_operator_is_registered_for_tracing(impl_name):
    weight, dense = operands(20, 30, 17)
    packed = pack_int8(weight)
    parts = [packed.starts, packed.quads, packed.values, packed.row_sums]
    how = (1.0, 0.0, None, None, -1.0, 1.0, torch.int32, impl_name)
    arguments = (parts, 20, packed.group, dense[None], *how)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gossamer.int8_spmm.default, arguments, test_utils=tests)


GOOD = {
    "weight": pack_int8(torch.eye(3, 4)),
    "dense": torch.ones(4, 5, dtype=torch.uint8),
    "read": Affine(1.0),
}
BAD_INPUT = [
    ({"weight": torch.eye(3, 4)}, TypeError, "an Int8Weight, got Tensor; try pack_int8"),
    ({"dense": torch.ones(4, 5), "read": None}, TypeError, "or float32 with read, got"),
    ({"dense": torch.ones(4, 5, requires_grad=True)}, ValueError, "dense requires a gradient"),
    ({"dense": torch.ones(4, 5).double()}, TypeError, "or float32 with read, got torch.float64"),
    ({"dense": torch.ones(5, 4, dtype=torch.uint8)}, ValueError, r"K = 4, got \[5, 4\]"),
    ({"dense": torch.ones(4, dtype=torch.uint8)}, ValueError, r"K = 4, got \[4\]"),
    ({"dense": torch.ones(4, 5, dtype=torch.uint8, device="meta")}, ValueError, "on the CPU"),
    ({"read": Affine(1.0, dtype=torch.int8)}, TypeError, "read to be of dense's torch.uint8"),
    ({"read": None, "bias": torch.ones(3)}, ValueError, "bias and write need real numbers"),
    ({"read": None, "write": Affine(1.0)}, ValueError, "bias and write need real numbers"),
    ({"bias": torch.ones(4)}, ValueError, r"bias to be float32 \[3\], got .* \[4\]"),
    ({"bias": torch.ones(3).double()}, ValueError, r"bias .* got torch.float64"),
    ({"clamp": (1.0, 0.0)}, ValueError, r"low <= high, got \(1.0, 0.0\)"),
    ({"impl": "triton"}, ValueError, "auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(changes, error, message):
    int8_spmm(**GOOD)
    with pytest.raises(error, match=message):
        int8_spmm(**(GOOD | changes))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pack_int8(torch.ones(2, 2).double()), TypeError, "float32, got torch.float64"),
        (lambda: pack_int8(torch.ones(2)), ValueError, r"\[M, K\] .* got \[2\]"),
        (lambda: pack_int8(torch.ones(1, 2**16 + 1)), ValueError, "K <= 65536"),
        (lambda: pack_int8(torch.ones(2, 2), group=3), ValueError, "one of .* got 3"),
        (lambda: pack_int8(torch.tensor([[math.nan]])), ValueError, "finite weights"),
        (lambda: Affine(0.0), ValueError, r"scale in \[2\*\*-100, .* got 0.0"),
        (lambda: Affine(1.0, 256), ValueError, r"zero_point in \[0, 255\], got 256"),
        (lambda: Affine(1.0, -129, torch.int8), ValueError, r"\[-128, 127\], got -129"),
        (lambda: Affine(1.0, dtype=torch.int32), TypeError, "uint8 or int8, got torch.int32"),
    ],
)
def test_bad_weights_and_scales_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
