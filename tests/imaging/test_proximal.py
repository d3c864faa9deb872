"""Proximal operators against singular value decompositions and their own minimisation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.imaging.proximal import singular_values, soft, svt
from gossamer.imaging.regularizers import SPACE, TIME, Magnitude, NuclearNorm, TotalVariation

cases = settings(max_examples=30, deadline=None)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def thresholded(x: Tensor, threshold: float, dim: int) -> np.ndarray:
    """By a full decomposition of the unfolding."""
    moved = np.moveaxis(x.numpy(), dim, 0)
    u, s, v = np.linalg.svd(moved.reshape(len(moved), -1), full_matrices=False)
    return np.moveaxis(((u * np.maximum(s - threshold, 0)) @ v).reshape(moved.shape), 0, dim)


@cases
@given(
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([-3, -2]),
    st.sampled_from([0.0, 0.5, 3.0]),
)
def test_svt_is_that_of_a_full_decomposition(frames, height, width, dim, threshold):
    x = draw(frames, height, width)
    np.testing.assert_allclose(
        svt(x, threshold, dim=dim).numpy(), thresholded(x, threshold, dim), atol=1e-7
    )


@pytest.mark.parametrize("dim", [-3, -2])
def test_rank_deficiency_and_zero_do_no_harm(dim):
    low = draw(6, 1, 1) * draw(1, 8, 1, seed=1) * draw(1, 1, 9, seed=2)  # of rank 1, unfolded
    np.testing.assert_allclose(
        svt(low, 0.5, dim=dim).numpy(), thresholded(low, 0.5, dim), atol=1e-7
    )
    assert float((svt(low, 0.0, dim=dim) - low).abs().max()) < 1e-7
    assert not bool(svt(torch.zeros_like(low), 0.5, dim=dim).any())


def test_small_singular_values_survive_single_precision():
    """A Gram matrix in float32 would drown what is 3e-4 of the largest value."""
    basis = np.linalg.qr(draw(400, 3).numpy())[0].T
    sizes = np.array([100.0, 0.05, 0.02])
    x = torch.from_numpy((np.eye(3) * sizes) @ basis).to(torch.complex64).view(3, 20, 20)
    found = svt(x, 0.01, dim=-3).flatten(1).to(torch.complex128).numpy() @ basis.conj().T
    np.testing.assert_allclose(np.diag(found)[1:].real, [0.04, 0.01], atol=1e-4)


@cases
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.sampled_from([-3, -2]))
def test_singular_values(frames, height, width, dim):
    x = draw(frames, height, width)
    moved = np.moveaxis(x.numpy(), dim, 0).reshape(x.shape[dim], -1)
    wanted = np.sort(np.linalg.svd(moved, compute_uv=False))
    found = singular_values(x, dim=dim).numpy()
    np.testing.assert_allclose(found[-len(wanted) :], wanted, atol=1e-6)
    np.testing.assert_allclose(found[: -len(wanted)], 0, atol=1e-6)


def test_soft_keeps_phases():
    z = draw(50)
    found = soft(z, 0.7)
    assert torch.allclose(found.abs(), (z.abs() - 0.7).clamp(min=0))
    kept = found != 0
    assert torch.allclose(found[kept].angle(), z[kept].angle())
    assert torch.equal(soft(torch.zeros(3, dtype=torch.complex64), 0.5), torch.zeros(3) + 0j)
    assert torch.equal(soft(z, 0.0), z)


@pytest.mark.parametrize("penalty", [Magnitude(0.6), NuclearNorm(0.6), NuclearNorm(0.6, -2)])
def test_a_prox_is_the_minimiser(penalty):
    x, step = draw(4, 5, 6), 0.8
    best = penalty.prox(x, step)

    def cost(z: Tensor) -> float:
        return float((z - x).abs().square().sum()) / 2 + step * penalty.value(z)

    least = cost(best)
    for seed in range(20):
        assert cost(best + 0.05 * draw(4, 5, 6, seed=seed)) > least
    assert least < cost(x) and least < cost(torch.zeros_like(x))


@pytest.mark.parametrize(
    "penalty", [NuclearNorm(0.6, -2), TotalVariation(0.6, SPACE), TotalVariation(0.6, TIME)]
)
def test_a_dual_bounds_its_penalty_from_below_and_reaches_it(penalty):
    """A feasible dual never pulls more than the penalty; ascending long it pulls as much."""
    x = draw(4, 5, 6)
    dual = penalty.start(x)
    pulls = []
    for _ in range(300):
        dual = penalty.ascend(dual, x, 0.5)
        pulls.append(float(torch.vdot(penalty.adjoint(dual).flatten(), x.flatten()).real))
    assert max(pulls) <= penalty.value(x) * (1 + 1e-9)
    assert pulls[-1] == pytest.approx(penalty.value(x), rel=1e-3)
    other = draw(4, 5, 6, seed=7)
    pull = float(torch.vdot(penalty.adjoint(dual).flatten(), other.flatten()).real)
    assert pull <= penalty.value(other) * (1 + 1e-9)


@pytest.mark.parametrize("dims", [SPACE, TIME, (-3, -2, -1)])
def test_the_norm_bound_holds_and_is_near(dims):
    term = TotalVariation(1.0, dims)
    x = draw(20, 20, 20)
    from gossamer.kernels import finite_differences, tv_adjoint

    for _ in range(60):  # power iteration
        x = tv_adjoint(finite_differences(x / x.norm(), dims), dims=dims)
    assert 0.9 * term.norm_squared < float(x.norm()) <= term.norm_squared
