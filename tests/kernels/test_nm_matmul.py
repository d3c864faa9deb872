"""N:M weight times dense matrix: any n of any m, full groups and underfull, within its bound."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import backend, instruction_sets, nm_matmul, pack
from gossamer.patterns import NM, Block, Unstructured
from gossamer.testing import check_product

pytestmark = pytest.mark.usefixtures("nan_memory")
DTYPES = [torch.float32, torch.bfloat16]
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
SMALL = [NM(2, 4), NM(1, 4), NM(2, 8), NM(1, 16), NM(4, 8), NM(3, 7)]
PATTERNS = [*SMALL, NM(1, 1), NM(5, 5), NM(4, 128), NM(3, 130), NM(2, 256)]
cases = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def draw(rows: int, groups: int, width: int, pattern: NM, fill: float) -> tuple[Tensor, Tensor]:
    """A weight with n of m kept, of which a share is dropped again, and a dense operand."""
    generator = torch.Generator().manual_seed(rows + groups)
    scores = torch.rand(rows, groups, pattern.m, generator=generator)
    kept = scores.argsort(2).argsort(2) < pattern.n
    kept &= torch.rand(kept.shape, generator=generator) < fill
    weight = torch.randn(kept.shape, generator=generator) * kept
    columns = groups * pattern.m
    return weight.reshape(rows, columns), torch.randn(columns, width, generator=generator)


@cases
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from([0, 1, 2, 31, 127, 128, 129, 200]),
    st.sampled_from([0, 1, 2, 5, 16, 18, 33, 64, 65]),
    st.sampled_from([0, 1, 15, 16, 17, 49, 64, 96, 97, 200]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
)
def test_products_are_exact_to_rounding(impl, pattern, rows, groups, width, fill, stored, dtype):
    groups = min(groups, 1300 // pattern.m)
    weight, dense = draw(rows, groups, width, pattern, fill)
    weight, dense = weight.to(stored), dense.to(dtype)
    product = nm_matmul(pack(weight, pattern), dense, impl=impl)
    assert product.dtype == dtype
    check_product(product, weight, dense)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("stored", DTYPES)
def test_every_pattern_across_panels(impl, pattern, stored):
    weight, dense = draw(150, 300 // pattern.m + 2, 70, pattern, 0.9)
    weight[3], weight[130:140] = 0.0, 0.0
    weight = weight.to(stored)
    product = nm_matmul(pack(weight, pattern), dense, impl=impl)
    check_product(product, weight, dense)
    assert not product[3].any() and not product[130:140].any()


@pytest.mark.parametrize("pattern", SMALL, ids=str)
def test_full_groups_hold_exactly_n(impl, pattern):
    weight, dense = draw(20, 9, 20, pattern, 1.0)
    assert pack(weight, pattern).density == pytest.approx(pattern.n / pattern.m)
    check_product(nm_matmul(pack(weight, pattern), dense, impl=impl), weight, dense)


@pytest.mark.parametrize("kind", ["first group", "last group", "one of each", "last column"])
def test_underfull_groups(impl, kind):
    weight, dense = draw(40, 30, 33, NM(4, 8), 1.0)
    groups = weight.view(40, 30, 8)
    if kind == "first group":
        groups[:, 1:] = 0.0
    elif kind == "last group":
        groups[:, :-1] = 0.0
    elif kind == "one of each":
        groups.zero_()[:, :, 5] = 1.0
    else:
        groups.zero_()[:, -1, -1] = 2.0
    check_product(nm_matmul(pack(weight, NM(4, 8)), dense, impl=impl), weight, dense)


def test_many_columns(impl):
    weight, dense = draw(2, 65600 // 8, 17, NM(2, 8), 1.0)
    check_product(nm_matmul(pack(weight, NM(2, 8)), dense, impl=impl), weight, dense)


def test_integers_are_exact_and_nan_stays_in_its_column(impl):
    weight, dense = draw(70, 80, 70, NM(2, 4), 1.0)
    weight, dense = (4 * weight).round(), (4 * dense).round()
    packed, expected = pack(weight, NM(2, 4)), weight @ dense
    assert torch.equal(nm_matmul(packed, dense, impl=impl), expected)
    dense[5, 9] = torch.nan
    product = nm_matmul(packed, dense, impl=impl)
    assert bool(product[weight[:, 5] != 0, 9].isnan().all())
    product[:, 9], expected[:, 9] = 0.0, 0.0
    assert torch.equal(product, expected)


@pytest.mark.parametrize("scale", [1e-39, 1e30, 0.0, -0.0])
def test_awkward_values(impl, scale):
    weight, dense = draw(40, 40, 20, NM(2, 4), 0.9)
    product = nm_matmul(pack(weight, NM(2, 4)), dense * scale, impl=impl)
    check_product(product, weight, dense * scale)


def test_explicit_zeros_change_nothing(impl):
    weight, dense = draw(30, 20, 20, NM(2, 4), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        csr = weight.to_sparse_csr()
    csr.values()[::3] = 0.0
    packed = pack(csr, NM(2, 4))
    assert packed.density == 0.5
    check_product(nm_matmul(packed, dense, impl=impl), csr.to_dense(), dense)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_and_strides_give_the_same_bits(impl, dtype):
    weight, _ = draw(60, 35, 1, NM(2, 4), 1.0)
    packed = pack(weight, NM(2, 4))
    dense = torch.randn(3, 140, 49, generator=torch.Generator().manual_seed(1)).to(dtype)
    product = nm_matmul(packed, dense, impl=impl)
    check_product(product, weight, dense)
    spaced = torch.full((3, 290, 60), torch.nan, dtype=dtype)[:, 5:285:2, 3:52].copy_(dense)
    views = [dense.mT.contiguous().mT, dense.transpose(0, 1).contiguous().transpose(0, 1), spaced]
    for view in views:
        other = nm_matmul(packed, view, impl=impl)
        assert impl == "reference" or torch.equal(other, product)
        check_product(other, weight, dense)
    for image, expected in zip(dense, product, strict=True):
        alone = nm_matmul(packed, image, impl=impl)
        assert impl == "reference" or torch.equal(alone, expected)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(3, 7)], ids=str)
@pytest.mark.parametrize("width", [15, 32, 64, 96, 300])
def test_runs_and_thread_counts_agree_bitwise(isa, pattern, width):
    weight, dense = draw(391, 50, width, pattern, 1.0)
    packed = pack(weight, pattern)
    expected = nm_matmul(packed, dense, impl="cpu")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(nm_matmul(packed, dense, impl="cpu"), expected)


@pytest.mark.parametrize("pattern", SMALL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_around_the_tensors_is_touched(isa, guarded, pattern, dtype):
    for rows, width in ((131, 17), (5, 96), (1, 1)):
        weight, dense = draw(rows, 140 // pattern.m, width, pattern, 0.9)
        parts = [guarded(part) for part in pack(weight, pattern).groups]
        dense = guarded(dense.to(dtype)[None])
        out = guarded(torch.full((1, rows, width), torch.nan, dtype=dtype))
        backend.launch("nm_matmul", pattern.m, *parts, dense, out, 1)
        check_product(out[0], weight, dense[0])


@pytest.mark.parametrize("width", [1, 17, 96, 130])
def test_nothing_is_written_between_the_rows(isa, width):
    weight, dense = draw(131, 70, width, NM(2, 4), 1.0)
    room = torch.full((2, 133, width + 6), 7.0)
    out = room[:, 1:-1, 3:-3]
    dense = dense[None].expand(2, -1, -1).contiguous()
    backend.launch("nm_matmul", 4, *pack(weight, NM(2, 4)).groups, dense, out, 1)
    check_product(out, weight, dense)
    out.fill_(7.0)
    assert bool((room == 7.0).all())


def test_offsets_beyond_32_bits(isa, address_space):
    weight, dense = draw(3, 1, 17, NM(2, 4), 1.0)
    stride = 2**30 + 7
    far = address_space(4 * stride, torch.bfloat16)
    x, out = (far[skip:].as_strided((1, 4, 17), (0, stride, 1)) for skip in (0, 64))
    x[0] = dense
    backend.launch("nm_matmul", 4, *pack(weight, NM(2, 4)).groups, x, out[:, :3], 1)
    check_product(out[0, :3], weight, x[0])
    images = address_space(4 * stride, torch.bfloat16).as_strided((4, 4, 17), (stride, 17, 1))
    images[3] = dense
    product = nm_matmul(pack(weight, NM(2, 4)), images, impl="cpu")
    check_product(product, weight, images)


@pytest.mark.parametrize("impl_name", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operator_is_registered_for_tracing(impl_name, dtype):
    weight, dense = draw(20, 8, 17, NM(2, 4), 1.0)
    arguments = (*pack(weight, NM(2, 4)).groups, 4, dense[None].to(dtype), impl_name)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gossamer.nm_matmul.default, arguments, test_utils=tests)


@pytest.mark.parametrize("warm", [False, True])
def test_torch_compile_traces_the_whole_call(warm):
    weight, dense = draw(20, 8, 17, NM(2, 4), 1.0)
    packed = pack(weight, NM(2, 4))

    def double(x: Tensor) -> Tensor:
        return 2 * nm_matmul(packed, x)

    expected = 2 * nm_matmul(packed if warm else pack(weight, NM(2, 4)), dense)
    traced = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(traced(dense), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensor_cores_are_within_a_rounding_of_the_reference():
    weight, dense = draw(128, 64, 64, NM(2, 4), 1.0)
    packed = pack(weight, NM(2, 4), torch.bfloat16).to("cuda")
    dense = dense.to("cuda", torch.bfloat16)
    product = nm_matmul(packed, dense)
    check_product(product.cpu(), packed.to_dense().cpu(), dense.cpu())
    expected = nm_matmul(packed, dense, impl="reference")
    torch.testing.assert_close(product, expected, rtol=1.6e-2, atol=1e-2)


TWO_OF_FOUR = NM(2, 4)
GOOD: dict[str, Any] = {"weight": pack(torch.eye(3, 4), TWO_OF_FOUR), "dense": torch.ones(4, 5)}
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weight": torch.eye(3, 4)}, TypeError, r"expected a PackedWeight, got Tensor; try pack"),
    ({"weight": pack(torch.eye(3, 4))}, ValueError, r"NM\(n, m\) .* got Unstructured\(\); try"),
    ({"weight": pack(torch.eye(3, 4), Unstructured())}, ValueError, r"got Unstructured"),
    ({"weight": pack(torch.eye(4, 4), Block(2, 2))}, ValueError, r"got Block"),
    ({"weight": pack(torch.eye(3, 257), NM(1, 257))}, ValueError, r"m <= 256, got NM\(n=1, m=257"),
    ({"dense": torch.ones(4, 5).double()}, TypeError, r"float32 or bfloat16, got torch.float64"),
    ({"dense": torch.ones(4)}, ValueError, r"\[K, P\] with K = 4, got \[4\]"),
    ({"dense": torch.ones(5, 4)}, ValueError, r"K = 4, got \[5, 4\]"),
    ({"dense": torch.ones(1, 1, 4, 5)}, ValueError, r"got \[1, 1, 4, 5\]"),
    ({"dense": torch.ones(4, 5, device="meta")}, ValueError, r"weight on cpu, dense on meta"),
    ({"dense": torch.ones(4, 5, requires_grad=True)}, ValueError, r"try torch.no_grad"),
    ({"impl": "triton"}, ValueError, r"auto, reference, cpu, got 'triton'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(changes, error, message):
    nm_matmul(**GOOD)
    with pytest.raises(error, match=message):
        nm_matmul(**(GOOD | changes))
