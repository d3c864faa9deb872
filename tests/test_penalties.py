"""Each threshold minimises what its penalty says, found again here without its formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gossamer.penalties import CEL0, L0, L1, PENALTIES, Lq, Penalty

cases = settings(max_examples=100, deadline=None)
penalties = st.one_of(
    st.sampled_from([L1(), L0(), CEL0()]), st.floats(0.05, 0.95).map(Lq), st.just(Lq(0.5))
)
lams = st.floats(1e-3, 10.0)
lengths = st.floats(0.01, 0.9)
numbers = st.floats(-20, 20)
vectors = arrays(np.float64, st.integers(1, 30), elements=numbers).map(torch.from_numpy)
ALL = [*PENALTIES.values(), Lq(0.2), Lq(0.8)]


def objective(penalty: Penalty, r: torch.Tensor, z: float, lam: float, step: float) -> torch.Tensor:
    return (r - z) ** 2 / 2 + step * penalty.value(r, lam)


@cases
@given(penalties, numbers, lams, lengths)
def test_prox_is_no_worse_than_any_value_of_a_fine_grid(penalty, z, lam, step):
    found = penalty.prox(torch.tensor([z], dtype=torch.float64), lam, step)
    near = found + torch.linspace(-0.01, 0.01, 2001, dtype=torch.float64)
    grid = torch.cat([torch.linspace(-21, 21, 40_001, dtype=torch.float64), near, torch.zeros(1)])
    least = float(objective(penalty, grid, z, lam, step).min())
    assert float(objective(penalty, found, z, lam, step)) <= least + 1e-9 * (1 + least)


@cases
@given(penalties, vectors, lams, lengths)
def test_prox_is_odd_shrinks_and_keeps_order(penalty, z, lam, step):
    found = penalty.prox(z, lam, step)
    assert torch.equal(penalty.prox(-z, lam, step), -found)
    assert bool((found.abs() <= z.abs() * (1 + 1e-15)).all())
    assert bool((found * z >= 0).all())
    ordered = penalty.prox(z.sort().values, lam, step)
    assert bool((ordered.diff() >= -1e-12).all())


@cases
@given(vectors, vectors, lams, lengths)
def test_soft_thresholding_never_moves_points_apart(a, b, lam, step):
    n = min(len(a), len(b))
    apart = (L1().prox(a[:n], lam, step) - L1().prox(b[:n], lam, step)).norm()
    assert apart <= (a[:n] - b[:n]).norm() + 1e-12


@cases
@given(st.floats(0.3, 3.0), numbers, lams, st.floats(0.01, 0.99))
def test_cel0_knows_the_norm_of_the_atom(norm, z, lam, share):
    step = share / norm**2
    norms = torch.tensor([norm], dtype=torch.float64)
    found = CEL0().prox(torch.tensor([z], dtype=torch.float64), lam, step, norms)
    grid = torch.cat([torch.linspace(-21, 21, 40_001, dtype=torch.float64), torch.zeros(1)])
    cost = (grid - z) ** 2 / 2 + step * CEL0().value(grid, lam, norms)
    ours = float((found - z) ** 2 / 2 + step * CEL0().value(found, lam, norms))
    assert ours <= float(cost.min()) * (1 + 1e-9) + 1e-9


@cases
@given(vectors, lams, st.floats(0.3, 3.0))
def test_cel0_lies_below_l0_and_touches_it_beyond_its_corner(code, lam, norm):
    relaxed, exact = CEL0().value(code, lam, norm), L0().value(code, lam)
    assert bool((relaxed <= exact + 1e-12).all())
    beyond = (code.abs() * norm >= math.sqrt(2 * lam)) | (code == 0)
    assert torch.allclose(relaxed[beyond], exact[beyond], rtol=0, atol=1e-12 * (1 + lam))


@cases
@given(numbers, lams, lengths)
def test_thresholds_of_the_authors_code_are_ours_at_half_its_lam(z, lam, step):
    """Their theta is lam times step, passed to sqrt(theta) and to Xu's formula without the 1/2."""
    theta, z64 = lam * step, torch.tensor([z], dtype=torch.float64)
    assume(abs(abs(z) - math.sqrt(theta)) > 1e-9)
    hard = z if abs(z) >= math.sqrt(theta) else 0.0
    assert L0().prox(z64, lam / 2, step).item() == hard
    edge = 54 ** (1 / 3) / 4 * theta ** (2 / 3)
    assume(abs(abs(z) - edge) > 1e-9)
    angle = math.acos(theta / 8 * (abs(z) / 3) ** -1.5) if abs(z) > edge else 0.0
    half = 2 / 3 * z * (1 + math.cos(2 * math.pi / 3 - 2 / 3 * angle)) if abs(z) > edge else 0.0
    assert Lq(0.5).prox(z64, lam / 2, step).item() == pytest.approx(half, rel=1e-9, abs=1e-12)


@cases
@given(vectors, lams, lengths)
def test_newton_steps_meet_the_closed_form(z, lam, step):
    newton = Lq(math.nextafter(0.5, 1)).prox(z, lam, step)
    both = newton * Lq(0.5).prox(z, lam, step) != 0  # apart from a z on the threshold itself
    assert torch.allclose(newton[both], Lq(0.5).prox(z, lam, step)[both], rtol=1e-11)


@pytest.mark.parametrize("penalty", ALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_shape_and_input_stay(penalty, dtype):
    z = torch.tensor([[0.0, -0.0, 1e-30], [3e8, -3e8, 1.0]], dtype=dtype)
    before = z.clone()
    found = penalty.prox(z, 0.5, 0.1)
    assert found.dtype == penalty.value(z, 0.5).dtype == dtype
    assert found.shape == z.shape and bool(found.isfinite().all())
    assert torch.equal(z, before)
    assert found[0].count_nonzero() == 0
    assert torch.equal(found[1, 0], -found[1, 1])


@pytest.mark.parametrize("penalty", ALL, ids=str)
@pytest.mark.parametrize(("lam", "step"), [(0.0, 0.1), (-1.0, 0.1), (1.0, 0.0), (math.nan, 0.1)])
def test_weights_and_steps_that_are_not_positive_are_refused(penalty, lam, step):
    with pytest.raises(ValueError, match="expected lam and step above 0, got lam="):
        penalty.prox(torch.ones(1), lam, step)


def test_cel0_refuses_a_step_that_is_too_long():
    with pytest.raises(ValueError, match=r"step: expected less than .* = 0.25, got 0.25"):
        CEL0().prox(torch.ones(2), 1.0, 0.25, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="step: expected less than"):
        CEL0().prox(torch.ones(1), 1.0, 1.0)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_q_outside_the_interval_is_refused(q):
    with pytest.raises(ValueError, match=r"q: expected 0 < q < 1, got"):
        Lq(q)


def test_only_l1_calls_itself_convex():
    assert [penalty.convex for penalty in ALL] == [True, False, False, False, False, False]
