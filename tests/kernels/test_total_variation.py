"""Total variation: differences by hand, the ball of every pixel, adjoints, untouched memory."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.kernels import finite_differences, instruction_sets, tv_adjoint, tv_dual_ascent

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
ALL_DIMS = [(-3,), (-2,), (-1,), (-3, -2), (-3, -1), (-2, -1), (-3, -2, -1)]
ROUNDING = 2.0**-24
cases = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 7, 8, 9, 31])
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def difference(image: np.ndarray, dim: int) -> np.ndarray:
    last = np.take(image, [-1], dim)
    return np.diff(image, axis=dim, append=last)


def ascended(dual: Tensor, image: Tensor, dims, step: float, radius: float) -> np.ndarray:
    x, start = image.numpy().astype(np.complex128), dual.numpy().astype(np.complex128)
    risen = start + step * np.stack([difference(x, dim) for dim in dims])
    length = np.sqrt((np.abs(risen) ** 2).sum(0))
    return risen / np.maximum(1, length / radius)


@cases
@given(shapes, st.sampled_from(ALL_DIMS), st.sampled_from([0.0, 0.3, 2.0]))
def test_the_step_is_differences_then_balls(impl, shape, dims, step):
    image, dual = draw(*shape), draw(len(dims), *shape, seed=1)
    found = tv_dual_ascent(dual, image, dims=dims, step=step, radius=0.8, impl=impl)
    wanted = ascended(dual, image, dims, step, 0.8)
    size = np.abs(dual.numpy()).max() + 4 * step * np.abs(image.numpy()).max()
    assert found.shape == dual.shape and found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=16 * ROUNDING * size)
    assert float(torch.linalg.vector_norm(found, dim=0).max()) <= 0.8 * (1 + 8 * ROUNDING)


@cases
@given(shapes, st.sampled_from(ALL_DIMS))
def test_the_adjoint_is_the_differences_adjoint(impl, shape, dims):
    image, dual = draw(*shape), draw(len(dims), *shape, seed=1)
    found = tv_adjoint(dual, dims=dims, impl=impl)
    x = image.numpy().astype(np.complex128)
    forward = np.stack([difference(x, dim) for dim in dims])
    left = np.vdot(forward, dual.numpy())
    right = np.vdot(x, found.numpy())
    scale = np.abs(forward).max() * np.abs(dual.numpy()).max() * dual.numel()
    assert abs(left - right) <= 8 * ROUNDING * scale


@pytest.mark.parametrize("dims", ALL_DIMS)
def test_differences_and_adjoint_are_exact_in_complex128(dims):
    image, dual = (
        draw(5, 7, 9, dtype=torch.complex128),
        draw(len(dims), 5, 7, 9, dtype=torch.complex128),
    )
    forward = finite_differences(image, dims)
    for part, dim in zip(forward, dims, strict=True):
        np.testing.assert_array_equal(part.numpy(), difference(image.numpy(), dim))
    inner = torch.vdot(forward.flatten(), dual.flatten())
    back = torch.vdot(image.flatten(), tv_adjoint(dual, dims=dims).flatten())
    assert abs(inner - back) < 1e-12 * abs(inner)


def test_a_difference_behind_the_last_pixel_is_not_read(impl):
    dual = draw(3, 4, 5, 6)
    expected = tv_adjoint(dual, dims=(-3, -2, -1), impl=impl)
    dual[0, -1], dual[1, :, -1], dual[2, :, :, -1] = torch.nan, torch.nan, torch.nan
    assert torch.equal(tv_adjoint(dual, dims=(-3, -2, -1), impl=impl), expected)


def test_nan_stays_with_its_neighbours(impl):
    image, dual = draw(4, 6, 9), draw(2, 4, 6, 9, seed=1)
    clean = tv_dual_ascent(dual, image, dims=(-2, -1), step=1.0, radius=1.0, impl=impl)
    image[2, 3, 5] = torch.nan
    found = tv_dual_ascent(dual, image, dims=(-2, -1), step=1.0, radius=1.0, impl=impl)
    reached = torch.zeros(4, 6, 9, dtype=torch.bool)
    reached[2, 3, 5] = reached[2, 2, 5] = reached[2, 3, 4] = True
    assert torch.equal(found.isnan().all(0), reached)
    assert torch.equal(found[:, ~reached], clean[:, ~reached])


@pytest.mark.parametrize("columns", [1, 5, 16, 33])
def test_neighbours_are_neither_read_nor_written(isa, guarded, columns):
    """Pages around the tensors belong to nobody: touching one ends the process."""
    image, dual = guarded(draw(3, 4, columns)), guarded(draw(3, 3, 4, columns, seed=1))
    dims = (-3, -2, -1)
    found = tv_dual_ascent(dual, image, dims=dims, step=0.5, radius=1.0, impl="cpu")
    wanted = ascended(dual, image, dims, 0.5, 1.0)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        tv_adjoint(dual, dims=dims, impl="cpu"), tv_adjoint(dual, dims=dims, impl="reference")
    )


def test_thread_counts_agree_bitwise(isa):
    image, dual = draw(6, 9, 31), draw(2, 6, 9, 31, seed=1)

    def both() -> tuple[Tensor, Tensor]:
        risen = tv_dual_ascent(dual, image, dims=(-2, -1), step=0.5, radius=1.0, impl="cpu")
        return risen, tv_adjoint(dual, dims=(-2, -1), impl="cpu")

    expected = both()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(both(), expected, strict=True))


def test_any_strides_and_lazy_conjugates_give_the_same(impl):
    image, dual = draw(4, 6, 9), draw(1, 4, 6, 9, seed=1)

    def risen(d: Tensor, x: Tensor) -> Tensor:
        return tv_dual_ascent(d, x, dims=(-2,), step=1.0, radius=1.0, impl=impl)

    mixed = image.mT.contiguous().mT
    torch.testing.assert_close(risen(dual, mixed), risen(dual, image))
    torch.testing.assert_close(risen(dual.conj(), image.conj()), risen(dual, image).conj())


def test_nothing_given_is_changed(impl):
    image, dual = draw(4, 6, 9), draw(2, 4, 6, 9, seed=1)
    before = image.clone(), dual.clone()
    tv_dual_ascent(dual, image, dims=(-2, -1), step=1.0, radius=1.0, impl=impl)
    tv_adjoint(dual, dims=(-2, -1), impl=impl)
    assert torch.equal(image, before[0]) and torch.equal(dual, before[1])


@pytest.mark.parametrize("impl_name", IMPLS)
def test_the_operators_are_registered_for_tracing(impl_name):
    image, dual = draw(3, 4, 5), draw(2, 3, 4, 5, seed=1)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    ops = torch.ops.gossamer
    arguments = (dual, image, [-2, -1], 0.5, 1.0, impl_name)
    torch.library.opcheck(ops.tv_dual_ascent.default, arguments, test_utils=tests)
    torch.library.opcheck(ops.tv_adjoint.default, (dual, [-2, -1], impl_name), test_utils=tests)


GOOD: dict[str, Any] = {
    "dual": torch.ones(2, 3, 4, 5, dtype=torch.complex64),
    "image": torch.ones(3, 4, 5, dtype=torch.complex64),
    "dims": (-2, -1),
    "step": 0.5,
    "radius": 1.0,
}
BAD_INPUT = [
    ({"dual": torch.ones(2, 3, 4, 5)}, TypeError, r"complex64 or complex128, got torch.float32"),
    ({"dims": ()}, ValueError, r"dims out of -3, -2, -1, ascending, got \(\)"),
    ({"dims": (-1, -2)}, ValueError, r"ascending, got \(-1, -2\)"),
    ({"dims": (-1, -1)}, ValueError, r"ascending, got \(-1, -1\)"),
    ({"dims": (0, 1)}, ValueError, r"ascending, got \(0, 1\)"),
    ({"dims": (-3, -2, -1)}, ValueError, r"dual \[3, \.\.\., T, H, W\], got \[2, 3, 4, 5\]"),
    ({"dual": torch.ones(2, 4, 5, dtype=torch.complex64)}, ValueError, r"got \[2, 4, 5\]"),
    ({"image": torch.ones(3, 4, 6, dtype=torch.complex64)}, ValueError, r"image \[3, 4, 5\] of"),
    ({"image": torch.ones(3, 4, 5)}, ValueError, r"of torch.complex64 .* of torch.float32"),
    ({"image": GOOD["image"].to("meta")}, ValueError, r"on cpu, got .* on meta"),
    ({"image": GOOD["image"].clone().requires_grad_()}, ValueError, r"try torch.no_grad"),
    ({"dual": GOOD["dual"].clone().requires_grad_()}, ValueError, r"try torch.no_grad"),
    ({"step": -1.0}, ValueError, r"step >= 0 .*got -1.0 and 1.0"),
    ({"radius": 0.0}, ValueError, r"radius > 0, .*got 0.5 and 0.0"),
    ({"radius": float("nan")}, ValueError, r"got 0.5 and nan"),
    ({"impl": "triton"}, ValueError, r"auto, reference, cpu, got 'triton'"),
    (
        {name: GOOD[name].to(torch.complex128) for name in ("dual", "image")} | {"impl": "cpu"},
        TypeError,
        r"complex64 for impl='cpu', got torch.complex128",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD_INPUT)
def test_bad_input_is_named(changes, error, message):
    tv_dual_ascent(**GOOD)
    with pytest.raises(error, match=message):
        tv_dual_ascent(**(GOOD | changes))
