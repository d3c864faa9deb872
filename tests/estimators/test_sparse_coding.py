"""The estimator: scikit-learn's own checks, the update by hand, and what it must recover."""

import pickle
import re
from typing import Any

import numpy as np
import pytest

from gossamer.errors import ConvergenceWarning
from gossamer.penalties import CEL0, PENALTIES, Lq

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.decomposition import SparseCoder
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gossamer.estimators import SparseCoding


@parametrize_with_checks(
    [SparseCoding(), SparseCoding(6, penalty="soft", step=None, target_density=0.3)]
)
def test_scikit_learn(estimator, check):
    check(estimator)


def signals(n=500, atoms=12, features=16, active=2, seed=0):
    """Draw sparse combinations of hidden atoms; return the signals and the atoms."""
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(atoms, features))
    hidden /= np.linalg.norm(hidden, axis=1, keepdims=True)
    codes = np.zeros((n, atoms))
    for row in codes:
        chosen = random.choice(atoms, active, replace=False)
        row[chosen] = random.choice([-1, 1], active) * random.uniform(1, 2, active)
    return codes @ hidden, hidden


X, HIDDEN = signals()


@pytest.mark.parametrize("schedule", ["constant", "inverse_time"])
def test_a_batch_moves_the_atoms_as_published(schedule):
    """Code until settled, once more, then Phi += lr r^T (x - r Phi), in plain numpy."""
    model = SparseCoding(20, lam=0.1, schedule=schedule, dict_lr=0.02, random_state=0)
    model.partial_fit(X[:1])
    model.n_iter_ = 3
    atoms, x = model.components_.copy(), X[10:11]
    model.partial_fit(x)

    code, settled, count = np.zeros((1, 20)), False, 0
    while True:
        step = 0.05 / (1 + (0.05 / 50) * count) if schedule == "inverse_time" else 0.05
        if settled:
            step = 0.05
        z = code + step * (x - code @ atoms) @ atoms.T
        steep = np.maximum(np.abs(z) - np.sqrt(0.2) * step, 0) / (1 - step)
        new = np.sign(z) * np.minimum(np.abs(z), steep)
        last = settled
        settled = np.linalg.norm(new - code) < 1e-2 * (1e-2 + np.linalg.norm(code))
        code, count = new, count + 1
        if last:
            break
    rate = 0.02 / (1 + (0.02 / 50) * 3) if schedule == "inverse_time" else 0.02
    error = x - code @ atoms
    atoms = atoms + rate * code.T @ error
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    assert np.allclose(model.components_, atoms, atol=1e-12)
    assert model.error_ == pytest.approx((error**2).mean())
    assert model.density_ == (code != 0).mean()
    assert model.n_iter_ == 4


@pytest.mark.parametrize("penalty", ["soft", "cel0"])
def test_recovers_hidden_atoms(penalty):
    """From a dictionary that is nearly right; sparse coding has many optima."""
    model = SparseCoding(
        12, penalty=penalty, lam=0.3, step=None, dict_lr=0.02, batch_size=50, random_state=0
    )
    model.partial_fit(X[:1])
    random = np.random.default_rng(1)
    rough = HIDDEN + 0.1 * random.normal(size=HIDDEN.shape)
    model.components_ = rough / np.linalg.norm(rough, axis=1, keepdims=True)
    before = np.abs((model.components_ * HIDDEN).sum(1))
    for _ in range(12):
        for batch in np.split(random.permutation(X), 10):
            model.partial_fit(batch)
    after = np.abs((model.components_ * HIDDEN).sum(1))
    assert before.min() < 0.96 < 0.99 < after.min()


def test_fit_is_partial_fit_over_a_permutation():
    model = SparseCoding(10, batch_size=60, epochs=2, random_state=3).fit(X[:150])
    random = np.random.RandomState(3)
    random.standard_normal((10, 16))
    other = SparseCoding(10, random_state=3)
    for _ in range(2):
        order = random.permutation(150)
        for rows in (order[:60], order[60:120], order[120:]):
            other.partial_fit(X[rows])
    assert np.allclose(model.components_, other.components_, atol=1e-12)
    assert model.n_iter_ == other.n_iter_ == 6


def test_the_seed_decides():
    first, same, other = (SparseCoding(10, random_state=s).fit(X) for s in (0, 0, 1))
    assert np.array_equal(first.components_, same.components_)
    assert not np.allclose(first.components_, other.components_)
    assert np.allclose(np.linalg.norm(first.components_, axis=1), 1)


@pytest.mark.parametrize("penalty", [*PENALTIES, Lq(0.7)], ids=str)
def test_lam_follows_the_target_density(penalty):
    model = SparseCoding(24, penalty=penalty, target_density=0.1, random_state=0, batch_size=50)
    model.fit(X)
    assert model.lam_ != model.lam == 0.27
    fresh, _ = signals(seed=1)
    model.calibrate(fresh)
    assert (model.transform(fresh) != 0).mean() == pytest.approx(0.1, rel=0.0101)


def test_a_density_out_of_reach_is_said():
    model = SparseCoding(8, target_density=0.2, random_state=0).fit(X)
    with pytest.warns(ConvergenceWarning, match=r"no lam gives density 0.2, .* 0"):
        model.calibrate(np.zeros((4, 16)))


def test_idle_atoms_become_the_worst_coded_signals():
    model = SparseCoding(6, lam=0.05, step=None, dead_after=2, random_state=0)
    x = np.zeros((40, 16))
    x[:, 0] = 1.0
    x[7, 0] = 5.0
    model.partial_fit(X[:40])
    model.components_ = np.eye(6, 16)  # the last five never serve these signals
    first = model.components_.copy()
    model.partial_fit(x)
    assert model.n_reseeded_ == 0 and np.array_equal(model.components_[1:], first[1:])
    model.partial_fit(x)
    assert model.n_reseeded_ == 5
    assert np.allclose(model.components_, np.eye(6, 16)[[0] * 6])


def test_codes_and_signals_go_there_and_back():
    model = SparseCoding(24, lam=0.01, epochs=10, random_state=0).fit(X)
    codes = model.transform(X)
    assert np.array_equal(codes, pickle.loads(pickle.dumps(model)).transform(X))
    lost = ((X - model.inverse_transform(codes)) ** 2).mean() / X.var()
    assert lost < 0.05
    assert list(model.get_feature_names_out()[:2]) == ["sparsecoding0", "sparsecoding1"]


def test_scikit_learn_reads_the_components():
    model = SparseCoding(20, penalty="soft", lam=0.2, tol=1e-6, random_state=0).fit(X)
    theirs = SparseCoder(model.components_, transform_algorithm="lasso_cd", transform_alpha=0.2)
    codes = theirs.transform(X[:20])

    def cost(r):
        error = (X[:20] - r @ model.components_) ** 2
        return (error.sum(1) / 2 + 0.2 * np.abs(r).sum(1)).mean()

    assert cost(model.transform(X[:20])) == pytest.approx(cost(codes), rel=1e-3)


def test_works_in_a_pipeline_and_clones():
    model = SparseCoding(5, penalty=CEL0(), step=None, random_state=0)
    codes = make_pipeline(StandardScaler(), model).fit_transform(X.astype(np.float32))
    assert codes.dtype == np.float32 and codes.shape == (500, 5)
    copy: Any = clone(model)
    assert copy.get_params() == model.get_params()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty": "l1"}, "penalty: expected one of soft, hard, half, cel0 or .*got 'l1'"),
        ({"lam": 0}, "lam: expected a finite number above 0, got 0"),
        ({"lam": -1.0}, "lam: .* got -1"),
        ({"step": 0.0}, "step: .* got 0"),
        ({"n_components": 0}, "n_components: expected an integer of at least 1, got 0"),
        ({"n_components": 2.5}, "n_components: .* got 2.5"),
        ({"batch_size": 0}, "batch_size: .* got 0"),
        ({"epochs": 0}, "epochs: .* got 0"),
        ({"dead_after": 0}, "dead_after: .* got 0"),
        ({"dict_lr": 0.0}, "dict_lr: .* got 0"),
        ({"schedule": "linear"}, "schedule: expected one of .* got 'linear'"),
        ({"target_density": 1.5}, "target_density: expected 0 < density < 1, got 1.5"),
        ({"tol": float("nan")}, "tol: .* got nan"),
        ({"max_iter": 0}, "max_iter: .* got 0"),
    ],
)
def test_refuses_parameters_and_learns_nothing(change, message):
    model = SparseCoding().set_params(**change)
    for learn in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=message):
            learn(X)
    assert not hasattr(model, "components_")


def test_a_refused_batch_changes_nothing():
    model = SparseCoding(8, random_state=0).fit(X)
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(np.full((2, 16), np.nan))
    with pytest.raises(ValueError, match="16 features"):
        model.partial_fit(np.ones((2, 3)))
    with pytest.raises(ValueError, match="target_density: expected a density to reach, got None"):
        model.calibrate(X)
    assert pickle.dumps(model) == before
    with pytest.raises(ValueError, match=r"step: .* try step=None"):
        SparseCoding(400, random_state=0).fit(X)


def test_the_docstring_says_which_paper():
    assert re.search(r'Based on ".+" \(arXiv 2301\.10002\)', SparseCoding.__doc__ or "")
