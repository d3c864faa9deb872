"""Sparse weight times a few vectors: every way and instruction set, within its bound."""

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import PackedWeight, instruction_sets, pack, sparse_gemv
from gossamer.kernels.sparse_gemv import MAX_VECTORS, WAYS, _parts, _vector_weight, _way
from gossamer.patterns import Block
from gossamer.testing import check_product, random_mask

pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16]
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
COLUMNS = [0, 1, 2, 15, 17, 31, 33, 63, 64, 65, 127, 130, 300]  # around vectors and mask words
ROWS = [0, 1, 2, 31, 32, 33, 64, 65, 130]  # around the tasks of 32
cases = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
operands = given(
    st.sampled_from(ROWS),
    st.sampled_from(COLUMNS),
    st.integers(1, MAX_VECTORS),
    st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
)


def draw(rows: int, columns: int, vectors: int, density: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= random_mask((rows, columns), density=density, seed=rows)
    return weight, torch.randn(vectors, columns, generator=generator)


def compressed(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return weight.to_sparse_csr()


def multiply(packed: PackedWeight, vectors: Tensor, way: str) -> Tensor:
    """The native product by a way that the public function may not choose."""
    parts = _parts(packed, "cpu", way)
    return torch.ops.gossamer.sparse_gemv(parts, packed.shape[0], vectors, way, "cpu")


def launch(way: str, parts: list[Tensor], x: Tensor, out: Tensor) -> None:
    """The native product on tensors of the caller's."""
    held = _vector_weight(way, out.shape[1], parts)
    held.times(x.data_ptr(), *x.shape, out.data_ptr(), torch.get_num_threads())


def check(product: Tensor, weight: Tensor, vectors: Tensor) -> None:
    assert product.dtype == vectors.dtype
    check_product(product.mT, weight, vectors.mT)


@cases
@operands
def test_products_are_exact_to_rounding(impl, rows, columns, vectors, density, stored, dtype):
    weight, x = draw(rows, columns, vectors, density)
    weight, x = weight.to(stored), x.to(dtype)
    check(sparse_gemv(pack(weight), x, impl=impl), weight, x)


@pytest.mark.parametrize("way", WAYS)
@cases
@operands
def test_every_way_is_exact(isa, way, rows, columns, vectors, density, stored, dtype):
    weight, x = draw(rows, columns, vectors, density)
    weight, x = weight.to(stored), x.to(dtype)
    check(multiply(pack(weight), x, way), weight, x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stored", DTYPES)
def test_every_number_of_vectors(isa, way, stored):
    weight, x = draw(70, 133, MAX_VECTORS, 0.3)
    weight[::7], weight[3] = 0.0, 1.0
    packed, weight = pack(weight, dtype=stored), weight.to(stored)
    for vectors in range(1, MAX_VECTORS + 1):
        check(multiply(packed, x[:vectors], way), weight, x[:vectors])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("width", [65536, 65537, 70000])
def test_indices_around_16_bits(isa, way, width):
    places = torch.tensor([0, 32767, 32768, 65534, 65535, 65536, 69999])
    weight = torch.zeros(5, width)
    for row in (0, 2, 4):
        weight[row, places[places < width]] = torch.arange(1.0, 1 + int((places < width).sum()))
    x = draw(1, width, 3, 1.0)[1]
    check(multiply(pack(weight), x, way), weight, x)


@pytest.mark.parametrize("way", WAYS)
def test_rows_without_entries_are_exactly_zero(isa, way):
    weight, x = draw(130, 200, 5, 0.2)
    weight[0], weight[40:100], weight[-1] = 0.0, 0.0, 0.0
    product = multiply(pack(weight), x, way)
    check(product, weight, x)
    assert not product[:, [0, *range(40, 100), -1]].any()


def test_integers_are_exact_and_nan_shows(impl):
    for density in (0.05, 0.5):
        weight, x = draw(70, 150, 3, density)
        weight, x = (4 * weight).round(), (4 * x).round()
        expected = x @ weight.mT
        assert torch.equal(sparse_gemv(pack(weight), x, impl=impl), expected)
        x[1, 5] = torch.nan
        product = sparse_gemv(pack(weight), x, impl=impl)
        assert bool(product[1, weight[:, 5] != 0].isnan().all())
        assert torch.equal(product[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("scale", [1e-39, 1e30, 0.0, -0.0])
def test_awkward_values(impl, scale):
    weight, x = draw(40, 150, 2, 0.3)
    check(sparse_gemv(pack(weight), x * scale, impl=impl), weight, x * scale)


def test_explicit_zeros_change_nothing(impl):
    weight, x = draw(64, 64, 3, 0.1)
    check(sparse_gemv(pack(weight, Block(8, 4)), x, impl=impl), weight, x)


def test_any_strides_give_the_same_product(impl):
    weight, x = draw(60, 140, 4, 0.2)
    packed = pack(weight)
    expected = sparse_gemv(packed, x, impl=impl)
    spaced = torch.full((9, 290), torch.nan)[1::2, 5:285:2].copy_(x)
    for view in (x.mT.contiguous().mT, spaced):
        product = sparse_gemv(packed, view, impl=impl)
        assert impl == "reference" or torch.equal(product, expected)
        check(product, weight, x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stored", DTYPES)
def test_runs_threads_and_batches_agree_bitwise(isa, way, stored):
    weight, x = draw(300, 333, 13, 0.3)
    packed = pack(weight, dtype=stored)
    expected = multiply(packed, x, way)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(multiply(packed, x, way), expected)
    for i in range(13):
        assert torch.equal(multiply(packed, x[i : i + 1], way), expected[i : i + 1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "density"), [(67, 33, 0.5), (5, 64, 1.0), (67, 193, 0.05), (3, 65600, 0.01)]
)
def test_nothing_around_the_tensors_is_touched(isa, guarded, way, stored, rows, columns, density):
    weight, x = draw(rows, columns, 5, density)
    weight = weight.to(stored)
    parts = [guarded(part) for part in _parts(pack(weight), "cpu", way)]
    for vectors in (1, 2, 5):
        before = 0.0 if way == "gather" else torch.nan  # gathering leaves empty rows alone
        out = guarded(torch.full((vectors, rows), before))
        launch(way, parts, guarded(x[:vectors]), out)
        check(out, weight, x[:vectors])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stored", DTYPES)
def test_a_last_row_of_any_length_ends_the_reading(isa, guarded, way, stored):
    x = guarded(draw(1, 40, 2, 1.0)[1])
    for count in [*range(1, 18), 31, 32, 33, 40]:
        weight = torch.zeros(1, 40, dtype=stored)
        weight[0, :count] = 1.0
        parts = [guarded(part) for part in _parts(pack(weight), "cpu", way)]
        out = guarded(torch.full((2, 1), 0.0 if way == "gather" else torch.nan))
        launch(way, parts, x, out)
        check(out, weight, x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stored", DTYPES)
def test_offsets_beyond_32_bits(isa, address_space, way, stored):
    weight, x = draw(3, 100, 3, 0.5)
    weight = weight.to(stored)
    values, offsets, places, *lanes = _parts(pack(weight), "cpu", way)
    skip = 2**32 // values[:1].numel() + 3

    def far(tensor: Tensor) -> Tensor:
        shape = (skip + len(tensor), *tensor.shape[1:])
        room = address_space(math.prod(shape), tensor.dtype).view(shape)
        room[skip:] = tensor
        return room

    places = places if way == "expand" else far(places)
    out = torch.zeros(3, 3)
    launch(way, [far(values), offsets + skip, places, *lanes], x, out)
    check(out, weight, x)


@pytest.mark.parametrize(
    ("density", "vectors", "with_expand", "without"),
    [
        (0.05, 1, "gather", "gather"),
        (0.05, 3, "spread", "spread"),
        (0.5, 1, "expand", "gather"),
        (0.5, 4, "expand", "spread"),
        (0.2, 16, "spread", "spread"),
    ],
)
def test_the_way_follows_density_vectors_and_instructions(
    isa, density, vectors, with_expand, without
):
    expected = without if isa in ("avx2", "portable") else with_expand
    assert _way(density, vectors) == expected


def test_compressed_tensors_are_accepted(impl):
    weight, x = draw(40, 60, 2, 0.2)
    csr = compressed(weight)
    assert torch.equal(sparse_gemv(csr, x, impl=impl), sparse_gemv(pack(weight), x, impl=impl))


@pytest.mark.parametrize("shape", [(), (1, 1), (2, 3), (2, 2, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_keep_their_leading_dimensions(impl, shape, dtype):
    weight, _ = draw(40, 60, 1, 0.2)
    packed = pack(weight)
    x = torch.randn(*shape, 60).to(dtype)
    found = sparse_gemv(packed, x, impl=impl)
    assert (tuple(found.shape), found.dtype) == ((*shape, 40), dtype)
    assert torch.equal(found.view(-1, 40), sparse_gemv(packed, x.view(-1, 60), impl=impl))


@pytest.mark.parametrize("impl_name", IMPLS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operator_is_registered_for_tracing(impl_name, way, dtype):
    weight, x = draw(20, 30, 4, 0.2)
    arguments = (_parts(pack(weight), impl_name, way), 20, x.to(dtype), way, impl_name)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gossamer.sparse_gemv.default, arguments, test_utils=tests)


@pytest.mark.parametrize("warm", [False, True])
def test_torch_compile_traces_the_whole_call(warm):
    weight, x = draw(20, 30, 2, 0.3)
    packed = pack(weight)

    def double(x: Tensor) -> Tensor:
        return 2 * sparse_gemv(packed, x)

    expected = 2 * sparse_gemv(packed if warm else pack(weight), x)
    traced = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(traced(x), expected)


GOOD: dict[str, Any] = {"weight": pack(torch.eye(3, 4)), "vectors": torch.ones(2, 4)}
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight": torch.eye(3, 4)}, TypeError, r"or a torch.sparse_csr .* got torch.strided"),
    (
        {"weight": compressed(torch.eye(3, 4)).requires_grad_()},
        ValueError,
        "weight requires a gradient",
    ),
    ({"weight": None}, TypeError, r"got NoneType; try pack"),
    ({"vectors": torch.ones(2, 4).double()}, TypeError, r"vectors .*, got torch.float64"),
    ({"vectors": torch.ones(2, 4).int()}, TypeError, r"vectors .*, got torch.int32"),
    ({"vectors": torch.tensor(4.0)}, ValueError, r"\[..., K\] with K = 4, got \[\]"),
    ({"vectors": torch.ones(4, 2)}, ValueError, r"K = 4, got \[4, 2\]"),
    ({"vectors": torch.ones(3, 6, 4)}, ValueError, r"1..16 vectors, got 18; try spmm"),
    ({"vectors": torch.ones(0, 4)}, ValueError, r"1..16 vectors, got 0"),
    ({"vectors": torch.ones(17, 4)}, ValueError, r"1..16 vectors, got 17; try spmm"),
    ({"vectors": torch.ones(2, 4, device="meta")}, ValueError, r"on cpu, vectors on meta"),
    ({"vectors": torch.ones(2, 4, requires_grad=True)}, ValueError, r"try torch.no_grad"),
    ({"impl": "triton"}, ValueError, r"auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(changes, error, message):
    sparse_gemv(**GOOD)
    with pytest.raises(error, match=message):
        sparse_gemv(**(GOOD | changes))
