"""Codes against other solvers, exhaustive search and the conditions that minimisers meet."""

import itertools
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import ConvergenceWarning
from gossamer.penalties import CEL0, L0, L1, Lq

pytest.importorskip("sklearn")
from sklearn.decomposition import sparse_encode

from gossamer.estimators import ISTACoder, debias
from gossamer.estimators.ista import spectral_norm

PENALTIES = [L1(), L0(), Lq(0.5), Lq(0.7), CEL0()]
EXACT = ISTACoder(L1(), lam=0.1, step=None, tol=1e-8, max_iter=5_000)
some_settle = pytest.mark.filterwarnings("ignore::gossamer.errors.ConvergenceWarning")
seeds = st.integers(0, 10_000)


def problem(seed=0, rows=6, atoms=12, features=8):
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(atoms, features, generator=generator, dtype=torch.float64)
    dictionary /= dictionary.norm(dim=1, keepdim=True)
    return torch.randn(rows, features, generator=generator, dtype=torch.float64), dictionary


def cost(coder, x, code, dictionary):
    penalty = coder.penalty.value(code, coder.lam, dictionary.norm(dim=1)).sum(1)
    return (x - code @ dictionary).square().sum(1) / 2 + penalty


def best_l0(x, dictionary, lam):
    """Least cost over all supports, by least squares on each."""
    found = []
    for size in range(len(dictionary) + 1):
        for support in itertools.combinations(range(len(dictionary)), size):
            code = np.zeros(len(dictionary))
            if size:
                code[list(support)] = np.linalg.lstsq(dictionary[list(support)].T, x)[0]
            found.append((((x - code @ dictionary) ** 2).sum() / 2 + lam * size, code))
    return min(found, key=lambda pair: pair[0])


@pytest.mark.parametrize("acceleration", [None, "fista"])
def test_soft_codes_equal_coordinate_descent(acceleration):
    x, dictionary = problem()
    ours = replace(EXACT, acceleration=acceleration).encode(x, dictionary)
    theirs = sparse_encode(
        x.numpy(), dictionary.numpy(), algorithm="lasso_cd", alpha=EXACT.lam, max_iter=100_000
    )
    assert bool(ours.converged.all())
    assert torch.allclose(ours.code, torch.from_numpy(theirs), atol=1e-3)
    gap = cost(EXACT, x, ours.code, dictionary) - cost(
        EXACT, x, torch.from_numpy(theirs), dictionary
    )
    assert bool((gap <= 1e-7).all())


@some_settle
@settings(max_examples=12, deadline=None)
@given(seeds, st.floats(0.02, 1.0))
def test_soft_codes_meet_the_kkt_conditions(seed, lam):
    x, dictionary = problem(seed)
    found = replace(EXACT, lam=lam, acceleration="fista").encode(x, dictionary)
    code, x = found.code[found.converged], x[found.converged]
    pull = (x - code @ dictionary) @ dictionary.T
    used = code != 0
    assert bool((pull.abs() <= lam + 1e-5).all())
    assert torch.allclose(pull[used], lam * code.sign()[used], atol=1e-5)


@some_settle
@settings(max_examples=8, deadline=None)
@given(seeds, st.sampled_from(PENALTIES[1:]))
def test_other_codes_are_fixed_points_without_slope_on_their_support(seed, penalty):
    x, dictionary = problem(seed)
    coder = replace(EXACT, penalty=penalty)
    found = coder.encode(x, dictionary)
    settled, x = found.code[found.converged], x[found.converged]
    again = coder.update(x, settled, dictionary, found.step, dictionary.norm(dim=1))
    assert torch.allclose(again, settled, atol=1e-6)
    used = settled != 0
    code = settled.clone().requires_grad_()
    cost(coder, x, code, dictionary).sum().backward()
    assert code.grad is not None
    assert torch.allclose(code.grad[used], torch.zeros_like(code.grad[used]), atol=1e-4)


@some_settle
@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0.02, 0.5))
def test_cel0_shares_its_least_cost_with_l0(seed, lam):
    """No CEL0 code beats the best support, and at the best support both costs are the same."""
    x, dictionary = problem(seed, rows=1, atoms=6, features=4)
    least, best = best_l0(x[0].numpy(), dictionary.numpy(), lam)
    relaxed = replace(EXACT, penalty=CEL0(), lam=lam, tol=1e-4)
    at_best = cost(relaxed, x, torch.from_numpy(best)[None], dictionary)
    assert float(at_best) == pytest.approx(least, rel=1e-9)
    reached = cost(relaxed, x, relaxed.encode(x, dictionary).code, dictionary)
    assert float(reached) >= least - 1e-9
    hard = replace(relaxed, penalty=L0())
    assert float(cost(hard, x, hard.encode(x, dictionary).code, dictionary)) >= least - 1e-9


@pytest.mark.parametrize("penalty", [L0(), CEL0(), Lq(0.5)], ids=str)
def test_orthonormal_atoms_are_solved_exactly(penalty):
    """Coefficients do not interact, so the answer is one threshold at a step of 1."""
    q, _ = torch.linalg.qr(problem()[1][:8])
    x = problem(1)[0]
    found = replace(EXACT, penalty=penalty, lam=0.3).encode(x, q).code
    exact = (L0() if penalty == CEL0() else penalty).prox(x @ q.T, 0.3, 1.0)
    costs = [cost(replace(EXACT, penalty=penalty, lam=0.3), x, c, q) for c in (found, exact)]
    if penalty == CEL0():
        assert torch.allclose(found, exact, atol=1e-6)
    assert bool((costs[0] >= costs[1] - 1e-9).all())


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_the_cost_never_rises(penalty):
    x, dictionary = problem(3)
    coder = replace(EXACT, penalty=penalty)
    code, step = torch.zeros(6, 12, dtype=torch.float64), coder.stable_step(dictionary)
    before = cost(coder, x, code, dictionary)
    for _ in range(50):
        code = coder.update(x, code, dictionary, step, dictionary.norm(dim=1))
        after = cost(coder, x, code, dictionary)
        assert bool((after <= before + 1e-12).all())
        before = after


@pytest.mark.parametrize("acceleration", [None, "fista"])
@pytest.mark.parametrize("schedule", ["constant", "inverse_time"])
def test_a_row_does_not_depend_on_the_others(acceleration, schedule):
    x, dictionary = problem(rows=20)
    x *= torch.logspace(-2, 1, 20, dtype=torch.float64)[:, None]  # from few iterations to many
    coder = ISTACoder(L1(), lam=0.1, step=None, acceleration=acceleration, schedule=schedule)
    together = coder.encode(x, dictionary)
    assert len(together.n_iter.unique()) > 3
    for row in range(20):
        alone = coder.encode(x[row : row + 1], dictionary)
        assert torch.allclose(alone.code[0], together.code[row], atol=1e-12)
        assert alone.n_iter[0] == together.n_iter[row]


@pytest.mark.parametrize(("schedule", "decay"), [("constant", 0.0), ("inverse_time", 0.05 / 50)])
def test_iterations_follow_the_rule_to_the_letter(schedule, decay):
    """The published loop, for one row, where norms of batch and row are the same."""
    x, dictionary = problem(rows=1)
    code, lam, eps = torch.zeros(1, 12, dtype=torch.float64), 0.1, 1e-2
    count, change = 0, math.inf
    while change >= eps:
        step = 0.05 / (1 + decay * count)
        z = code + step * (x - code @ dictionary) @ dictionary.T
        steep = (z.abs() - math.sqrt(2 * lam) * step).clamp(min=0) / (1 - step)
        new = z.sign() * torch.minimum(z.abs(), steep)
        change = torch.linalg.matrix_norm(new - code, 2)
        change = float(change / (eps + torch.linalg.matrix_norm(code, 2)))
        code, count = new, count + 1
    for stopping in ("row", "batch"):
        found = ISTACoder(CEL0(), lam=lam, stopping=stopping, schedule=schedule).encode(
            x, dictionary
        )
        assert torch.allclose(found.code, code, atol=1e-12)
        assert int(found.n_iter) == count


def test_batch_stopping_stops_every_row_at_once():
    x, dictionary = problem(rows=20)
    found = ISTACoder(L1(), lam=0.1, stopping="batch").encode(x, dictionary)
    assert len(found.n_iter.unique()) == 1 and bool(found.converged.all())


def test_fista_takes_fewer_iterations():
    x, dictionary = problem(rows=30)
    plain, fast = (
        replace(EXACT, acceleration=a, tol=1e-6).encode(x, dictionary) for a in (None, "fista")
    )
    assert int(fast.n_iter.sum()) < int(plain.n_iter.sum()) / 2


def test_rows_that_do_not_settle_are_named():
    x, dictionary = problem()
    x[0] = 0
    with pytest.warns(ConvergenceWarning, match="5 of 6 codes did not settle in 3 iterations"):
        found = replace(EXACT, max_iter=3).encode(x, dictionary)
    assert found.converged.tolist() == [True, *[False] * 5]
    assert found.n_iter.tolist() == [1, *[3] * 5]
    assert bool(found.code[1:].any())


def test_inputs_stay_and_empty_batches_pass():
    x, dictionary = problem()
    copies = x.clone(), dictionary.clone()
    EXACT.encode(x, dictionary)
    assert torch.equal(x, copies[0]) and torch.equal(dictionary, copies[1])
    assert EXACT.encode(x[:0], dictionary).code.shape == (0, 12)
    zero = EXACT.encode(x, torch.zeros_like(dictionary))
    assert not bool(zero.code.any())


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 4)])
def test_spectral_norm_is_the_largest_singular_value(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert spectral_norm(matrix) == pytest.approx(float(torch.linalg.svdvals(matrix)[0]))


def test_debias_is_least_squares_on_the_support():
    x, dictionary = problem(rows=10, features=8)
    code = replace(EXACT, lam=0.3).encode(x, dictionary).code
    code[0] = 0
    found = debias(x, code, dictionary)
    assert bool(((found != 0) <= (code != 0)).all())
    for row in range(10):
        support = code[row].nonzero()[:, 0].numpy()
        exact = np.zeros(12)
        exact[support] = np.linalg.lstsq(dictionary.numpy()[support].T, x[row].numpy())[0]
        assert np.allclose(found[row], exact, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"penalty": "cel0"}, TypeError, r"penalty: expected a Penalty, got 'cel0', try CEL0"),
        ({"lam": 0.0}, ValueError, "lam: expected a finite number above 0, got 0.0"),
        ({"lam": math.nan}, ValueError, "lam: .* got nan"),
        ({"step": -1.0}, ValueError, "step: .* got -1"),
        ({"tol": 0.0}, ValueError, "tol: .* got 0"),
        ({"max_iter": 0}, ValueError, "max_iter: expected at least 1, got 0"),
        ({"acceleration": "heavy"}, ValueError, "acceleration: expected one of .* got 'heavy'"),
        ({"schedule": "cosine"}, ValueError, "schedule: expected one of .* got 'cosine'"),
        ({"stopping": "column"}, ValueError, "stopping: expected one of .* got 'column'"),
        ({"penalty": L0(), "acceleration": "fista"}, ValueError, "acceleration: .*not convex"),
    ],
)
def test_refuses_settings(change, kind, message):
    with pytest.raises(kind, match=message):
        replace(EXACT, **change)


@pytest.mark.parametrize(
    ("x", "dictionary", "kind", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 3).double(), TypeError, "one type, .*float32 and .*64"),
        (torch.ones(2, 3).long(), torch.ones(4, 3).long(), TypeError, "float32 or float64"),
        (torch.ones(3), torch.ones(4, 3), ValueError, r"x \[B, p\] and .*got \(3,\)"),
        (torch.ones(2, 5), torch.ones(4, 3), ValueError, r"got \(2, 5\) and \(4, 3\)"),
        (torch.ones(2, 3), torch.ones(0, 3), ValueError, "at least one atom"),
        (torch.tensor([[math.nan]]), torch.ones(1, 1), ValueError, "finite values"),
        (torch.ones(1, 1), torch.tensor([[math.inf]]), ValueError, "finite values"),
    ],
)
def test_refuses_inputs(x, dictionary, kind, message):
    with pytest.raises(kind, match=message):
        EXACT.encode(x, dictionary)


def test_refuses_a_step_too_long_for_the_dictionary():
    with pytest.raises(
        ValueError, match=r"step: expected less than 0.02 .*got 0.05, try step=None"
    ):
        ISTACoder().encode(torch.ones(1, 1), torch.ones(50, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ISTACoder(step=None).encode(torch.ones(1, 1), torch.ones(50, 1))
