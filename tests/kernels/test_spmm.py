"""Sparse weight times dense matrix: bounds of every element, awkward shapes, untouched memory."""

import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import backend, instruction_sets, pack, spmm
from gossamer.kernels.spmm import _parts, launch
from gossamer.kernels.support import PANELS, ROWS
from gossamer.patterns import Block
from gossamer.testing import check_product, random_mask

PANEL = max(PANELS)
pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16]
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
cases = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def matrices(
    rows: int, columns: int, width: int, density: float, *, group: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A weight whose rows share columns in groups, and a dense operand."""
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask((-(-rows // group), columns), density=density, seed=seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= mask.repeat_interleave(group, 0)[:rows]
    return weight, torch.randn(columns, width, generator=generator)


def compressed(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return weight.to_sparse_csr()


@cases
@given(
    st.integers(0, 2 * ROWS + 5),
    st.sampled_from([0, 1, 17, 127, 128, 129, PANEL - 1, PANEL, PANEL + 1, 3 * PANEL]),
    st.sampled_from([0, 1, 15, 16, 17, 49, 64, 96, 97, 200]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.sampled_from([1, 1, 2, 4, 8]),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
)
def test_products_are_exact_to_rounding(impl, rows, columns, width, density, group, stored, dtype):
    weight, dense = matrices(rows, columns, width, density, group=group)
    weight, dense = weight.to(stored), dense.to(dtype)
    product = spmm(pack(weight), dense, impl=impl)
    assert product.dtype == dtype
    check_product(product, weight, dense)


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_bias_and_clamp(impl, group, dtype):
    weight, _ = matrices(150, 300, 1, 0.1, group=group)
    dense = torch.randn(3, 300, 49, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.linspace(-1, 1, 150)
    product = spmm(pack(weight), dense, bias=bias, impl=impl)
    check_product(product, weight, dense, bias=bias)
    clamped = spmm(pack(weight), dense, bias=bias, clamp=(0.0, 6.0), impl=impl)
    assert torch.equal(clamped, product.clamp(0.0, 6.0))
    for image, alone in zip(dense, product, strict=True):
        assert torch.equal(spmm(pack(weight), image, bias=bias, impl=impl), alone)


def test_rows_without_entries_are_exactly_zero(impl):
    weight, dense = matrices(140, 260, 33, 0.2)
    weight[3], weight[130:] = 0.0, 0.0
    product = spmm(pack(weight), dense, impl=impl)
    assert not product[3].any() and not product[130:].any()
    bias = torch.arange(140.0)
    assert torch.equal(
        spmm(pack(weight), dense, bias=bias, impl=impl)[130:], bias[130:, None].expand(10, 33)
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(5, 0), (2, 5, 0), (0, 5, 3)])
def test_a_product_without_columns_is_empty(impl, shape, threads):
    torch.set_num_threads(threads)
    product = spmm(pack(torch.ones(7, 5)), torch.ones(shape), impl=impl)
    assert product.shape == (*shape[:-2], 7, shape[-1])


@pytest.mark.parametrize("scale", [1e-39, 1e30, 0.0, -0.0])
def test_awkward_values(impl, scale):
    weight, dense = matrices(40, 150, 20, 0.3)
    check_product(spmm(pack(weight), dense * scale, impl=impl), weight, dense * scale)


def test_integers_are_exact_and_nan_stays_in_its_column(impl):
    weight, dense = matrices(70, 300, 70, 0.2)
    weight, dense = (4 * weight).round(), (4 * dense).round()
    expected = weight @ dense
    assert torch.equal(spmm(pack(weight), dense, impl=impl), expected)
    dense[5, 9] = torch.nan
    product = spmm(pack(weight), dense, clamp=(0.0, math.inf), impl=impl)
    assert bool(product[weight[:, 5] != 0, 9].isnan().all())
    product[:, 9], expected[:, 9] = 0.0, 0.0
    assert torch.equal(product, expected.clamp(min=0.0))


@pytest.mark.parametrize("width", [1, 17, 64, 100])
def test_any_strides_give_the_same_bits(impl, width):
    weight, dense = matrices(60, 140, width, 0.2)
    packed = pack(weight)
    expected = spmm(packed, dense, impl=impl)
    views = [
        dense.mT.contiguous().mT,
        torch.full((290, width + 9), torch.nan)[5:285:2, 3 : 3 + width].copy_(dense),
        dense[None].expand(2, -1, -1),
    ]
    for view in views:
        for product in spmm(packed, view, impl=impl).reshape(-1, 60, width):
            if impl == "cpu":
                assert torch.equal(product, expected)
            check_product(product, weight, dense)


@pytest.mark.parametrize("width", [15, 49, 64, 96, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_and_thread_counts_agree_bitwise(isa, width, dtype):
    weight, dense = matrices(3 * ROWS + 7, 300, width, 0.1)
    packed, dense = pack(weight), dense.to(dtype)
    expected = spmm(packed, dense, impl="cpu")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(spmm(packed, dense, impl="cpu"), expected)


@pytest.mark.parametrize("width", [1, 17, 96, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_around_the_result(isa, width, dtype):
    weight, dense = matrices(131, 300, width, 0.1)
    room = torch.full((2, 131 + 2, width + 6), 7.0, dtype=dtype)
    out = room[:, 1:-1, 3:-3]
    dense = dense.to(dtype)[None].expand(2, -1, -1).contiguous()
    launch(pack(weight).native_panels, dense, out, None, -math.inf, math.inf, 2)
    check_product(out, weight, dense)
    out.fill_(7.0)
    assert bool((room == 7.0).all())


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_around_the_tensors_is_touched(isa, guarded, group, dtype):
    for rows, columns, width in ((131, 140, 17), (7, 129, 96), (1, 1, 1)):
        weight, dense = matrices(rows, columns, width, 0.3, group=group)
        tensors, panel = _parts(pack(weight), "cpu")
        panels = backend.launch("PanelWeight", panel, *map(guarded, tensors))
        bias = guarded(torch.linspace(-1, 1, rows))
        for steps in (1, 2):  # rows that follow one another, and rows apart
            x = guarded(dense.to(dtype).repeat(1, steps)[None, :, :width])
            out = guarded(torch.full((1, rows, width * steps), torch.nan, dtype=dtype)[..., :width])
            launch(panels, x, out, bias, -math.inf, math.inf, 1)
            check_product(out[0], weight, x[0], bias=bias)


def test_offsets_beyond_32_bits(isa, address_space):
    stride = 2**30 + 7
    far = address_space(4 * stride, torch.bfloat16)
    weight, dense = matrices(3, 4, 17, 0.7)
    (starts, lines, counts, columns, values), panel = _parts(pack(weight), "cpu")
    x, out = (far[skip:].as_strided((1, 4, 17), (0, stride, 1)) for skip in (0, 64))
    x[0] = dense
    skip = 2**31 + 2
    far_columns = address_space(skip + len(columns), torch.uint8)
    far_values = address_space(skip + len(values), torch.float32)[:, None]
    far_columns[skip:], far_values[skip:] = columns, values
    parts = starts + skip, lines, counts, far_columns, far_values
    panels = backend.launch("PanelWeight", panel, *parts)
    launch(panels, x, out[:, :3], None, -math.inf, math.inf, 1)
    check_product(out[0, :3], weight, x[0])


def test_images_beyond_32_bits(isa, address_space):
    weight, dense = matrices(3, 4, 17, 0.7)
    images = address_space(2**33, torch.bfloat16).as_strided((4, 4, 17), (2**30 + 7, 17, 1))
    images[3] = dense
    check_product(spmm(pack(weight), images, impl="cpu"), weight, images)


def test_compressed_tensors_are_accepted(impl):
    weight, dense = matrices(40, 60, 20, 0.2)
    csr = compressed(weight)
    assert torch.equal(spmm(csr, dense, impl=impl), spmm(pack(weight), dense, impl=impl))


def test_explicit_zeros_change_nothing(impl):
    weight, dense = matrices(64, 64, 40, 0.1)
    product = spmm(pack(weight, Block(8, 4)), dense, impl=impl)
    check_product(product, weight, dense)


@pytest.mark.parametrize("impl_name", IMPLS)
def test_the_operator_is_registered_for_tracing(impl_name):
    weight, dense = matrices(20, 30, 17, 0.2)
    arguments = (*_parts(pack(weight), impl_name), 20, dense[None], None, -1.0, 1.0, impl_name)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gossamer.spmm.default, arguments, test_utils=tests)


@pytest.mark.parametrize("warm", [False, True])
def test_torch_compile_traces_the_whole_call(warm):
    weight, dense = matrices(20, 30, 17, 0.2)
    packed = pack(weight)

    def double(x: Tensor) -> Tensor:
        return 2 * spmm(packed, x)

    expected = 2 * spmm(packed if warm else pack(weight), dense)
    traced = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(traced(dense), expected)


GOOD = {"weight": pack(torch.eye(3, 4)), "dense": torch.ones(4, 5)}
BAD_INPUT = [
    ({"weight": torch.eye(3, 4)}, TypeError, r"or a torch.sparse_csr .* got torch.strided"),
    (
        {"weight": compressed(torch.eye(3, 4)).requires_grad_()},
        ValueError,
        "weight requires a gradient",
    ),
    ({"weight": None}, TypeError, r"got NoneType; try pack"),
    ({"dense": torch.ones(4, 5).double()}, TypeError, r"float32 or bfloat16, got torch.float64"),
    ({"dense": torch.ones(4)}, ValueError, r"\[K, P\] with K = 4, got \[4\]"),
    ({"dense": torch.ones(5, 4)}, ValueError, r"K = 4, got \[5, 4\]"),
    ({"dense": torch.ones(1, 1, 4, 5)}, ValueError, r"got \[1, 1, 4, 5\]"),
    ({"dense": torch.ones(4, 5, device="meta")}, ValueError, r"weight on cpu, dense on meta"),
    ({"dense": torch.ones(4, 5, requires_grad=True)}, ValueError, r"try torch.no_grad"),
    ({"bias": torch.ones(4)}, ValueError, r"bias to be float32 \[3\] on cpu, got .* \[4\]"),
    ({"bias": torch.ones(3).double()}, ValueError, r"bias .* got torch.float64"),
    ({"bias": torch.ones(3, requires_grad=True)}, ValueError, r"bias requires a gradient"),
    ({"clamp": (1.0, 0.0)}, ValueError, r"low <= high, got \(1.0, 0.0\)"),
    ({"clamp": (math.nan, 0.0)}, ValueError, r"low <= high, got \(nan"),
    ({"impl": "triton"}, ValueError, r"auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(changes, error, message):
    spmm(**GOOD)
    with pytest.raises(error, match=message):
        spmm(**(GOOD | changes))
