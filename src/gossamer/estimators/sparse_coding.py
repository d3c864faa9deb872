"""Sparse coding beyond L1: dictionaries learnt with soft, hard, half or CEL0 thresholds."""

import warnings
from math import inf, sqrt
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from gossamer.errors import ConvergenceWarning
from gossamer.estimators.ista import ISTACoder
from gossamer.measure import density
from gossamer.penalties import PENALTIES, Penalty
from gossamer.schedules import InverseTime

_LEAST_NORM = 1e-8  # authors' code
_LAM_FACTOR = 2.0  # most that one batch changes lam by
_BISECTIONS = 60
_LEAST_LAM = 1e-30  # for batches of zeros, whose codes no lam makes denser
_DENSITY_RTOL = 0.01


class SparseCoding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learn atoms of which few are needed at a time, and code signals with them.

    ``min ||X - R Phi||^2 / 2 + penalty(R)``: each batch is coded from zero by iterative
    thresholding (`ISTACoder`), then the atoms follow the gradient, ``Phi += dict_lr R^T (X - R
    Phi)``, and are scaled to norm 1.

    Based on "Beyond l1 sparse coding in V1" (arXiv 2301.10002) and the authors' code. Two things
    differ: rows stop one by one instead of with the batch, so that a code does not depend on its
    neighbours, and atoms that stay idle are re-seeded. Penalties other than "soft" are not convex:
    the codes are stationary points. Compare penalties at one density or one error, never at one
    `lam`, which means something else in each; `target_density` is for that.

    Parameters
    ----------
    n_components : int, optional
        Atoms; None takes as many as there are features (released configuration: 1000 for 256).
    penalty : {"soft", "hard", "half", "cel0"} or Penalty
        Which threshold (paper: "cel0").
    lam : float
        Weight of the penalty (released configuration: 0.27), the first one under
        `target_density`.
    step : float, optional
        Length of a gradient step on the codes (paper: 0.05); None takes the longest stable one.
    dict_lr : float
        Rate at which the atoms follow a batch (paper: 0.005).
    batch_size : int
        Signals coded before the atoms change (paper: 250).
    epochs : int
        Passes over the data, each in another order (paper: one over 10^6 patches).
    schedule : {"constant", "inverse_time"}
        The latter divides both rates by ``1 + (rate / 50) t``, t counting iterations for `step`
        and batches for `dict_lr`.
    target_density : float, optional
        Share of coefficients to use. `lam` follows it from batch to batch and is bisected on the
        last one.
    max_iter : int
        Most iterations of a code (paper: 5000).
    tol : float
        Relative change at which a code has settled (paper: 0.01).
    dead_after : int
        Batches without use after which an atom becomes the worst coded signal.
    random_state : int, RandomState or None

    Attributes
    ----------
    components_ : ndarray [n_components, n_features]
        The atoms, of norm 1.
    lam_ : float
        The weight in use.
    n_iter_ : int
        Batches learnt from.
    error_, density_ : float
        Mean squared error of a value, and share of coefficients used, in the last batch.
    n_reseeded_ : int
        Atoms replaced so far.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(500, 8))
    >>> model = SparseCoding(16, target_density=0.1, random_state=0).fit(X)
    >>> codes = model.transform(X)
    >>> codes.shape, round(float((codes != 0).mean()), 1)
    ((500, 16), 0.1)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        penalty: str | Penalty = "cel0",
        lam: float = 0.27,
        step: float | None = 0.05,
        dict_lr: float = 5e-3,
        batch_size: int = 250,
        epochs: int = 1,
        schedule: str = "constant",
        target_density: float | None = None,
        max_iter: int = 5000,
        tol: float = 1e-2,
        dead_after: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.penalty = penalty
        self.lam = lam
        self.step = step
        self.dict_lr = dict_lr
        self.batch_size = batch_size
        self.epochs = epochs
        self.schedule = schedule
        self.target_density = target_density
        self.max_iter = max_iter
        self.tol = tol
        self.dead_after = dead_after
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn the atoms from new ones on.

        Parameters
        ----------
        X : array [n_samples, n_features]
        y : None
            Not used.

        Raises
        ------
        ValueError
            If a parameter or X is refused, or the atoms grow too alike for `step`.
        """
        self._check_parameters()
        x = self._tensor(X, reset=True)
        random = self._start(x)
        for _ in range(self.epochs):
            order = torch.from_numpy(random.permutation(len(x)))
            for rows in order.split(self.batch_size):
                self._learn(x[rows])
        if self.target_density is not None:
            self._bisect(x[order[-self.batch_size :]], self.target_density)
        return self

    def partial_fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn from X as one more batch.

        Parameters
        ----------
        X : array [n_samples, n_features]
        y : None
            Not used.
        """
        self._check_parameters()
        new = not hasattr(self, "components_")
        x = self._tensor(X, reset=new)
        if new:
            self._start(x)
        self._learn(x.to(self._atoms().dtype))
        return self

    def calibrate(self, X: ArrayLike) -> Self:
        """Bisect `lam_` until the codes of X have the target density, within 1 % of it.

        Parameters
        ----------
        X : array [n_samples, n_features]

        Warns
        -----
        ConvergenceWarning
            If no `lam` gives that density.
        """
        check_is_fitted(self)
        self._check_parameters()
        if self.target_density is None:
            raise ValueError("target_density: expected a density to reach, got None")
        self._bisect(self._tensor(X).to(self._atoms().dtype), self.target_density)
        return self

    def transform(self, X: ArrayLike) -> NDArray:
        """Return the codes [n_samples, n_components] of X."""
        check_is_fitted(self)
        x = self._tensor(X)
        return self._coder(self.lam_).encode(x, self._atoms().to(x.dtype)).code.numpy()

    def inverse_transform(self, X: ArrayLike) -> NDArray:
        """Return the signals [n_samples, n_features] that codes X stand for."""
        check_is_fitted(self)
        return np.asarray(X) @ self.components_

    def _start(self, x: Tensor) -> np.random.RandomState:
        random = check_random_state(self.random_state)
        atoms = random.standard_normal((self.n_components or x.shape[1], x.shape[1]))
        self._idle = torch.zeros(len(atoms), dtype=torch.int64)
        self._set_atoms(torch.from_numpy(atoms).to(x.dtype))
        self.lam_, self.n_iter_, self.n_reseeded_ = float(self.lam), 0, 0
        return random

    def _learn(self, x: Tensor) -> None:
        """Code a batch, once more after it has settled as the authors do, and move the atoms."""
        atoms, coder = self._atoms(), self._coder(self.lam_)
        found = coder.encode(x, atoms)
        code = coder.update(x, found.code, atoms, found.step, atoms.norm(dim=1))
        error = x - code @ atoms
        decay = self.dict_lr / 50 if self.schedule == "inverse_time" else 0.0
        rate = InverseTime(self.dict_lr, decay)(self.n_iter_)
        atoms = atoms + rate * code.T @ error

        self._idle = torch.where((code != 0).any(0), 0, self._idle + 1)
        dead = (self._idle >= self.dead_after).nonzero()[: len(x), 0]
        worst = error.norm(dim=1).topk(len(dead)).indices
        atoms[dead] = x[worst]
        self._idle[dead] = 0
        self._set_atoms(atoms)

        self.n_iter_ += 1
        self.n_reseeded_ += len(dead)
        self.error_, self.density_ = float(error.square().mean()), density(code)
        if self.target_density is not None:
            change = (self.density_ / self.target_density) ** 0.5
            change = min(max(change, 1 / _LAM_FACTOR), _LAM_FACTOR)
            self.lam_ = max(self.lam_ * change, _LEAST_LAM)

    def _bisect(self, x: Tensor, target: float) -> None:
        """Set `lam_` so that the codes of x have the target density."""
        atoms, lam, low, high = self._atoms(), self.lam_, 0.0, inf
        for _ in range(_BISECTIONS):
            found = density(self._coder(lam).encode(x, atoms).code)
            if abs(found - target) <= _DENSITY_RTOL * target:
                break
            low, high = (lam, high) if found > target else (low, lam)
            lam = 2 * low if high == inf else sqrt(low * high) if low else high / 2
        else:
            warnings.warn(
                f"no lam gives density {target:g}, the last one tried {found:g}",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.lam_ = lam

    def _coder(self, lam: float) -> ISTACoder:
        return ISTACoder(
            PENALTIES[self.penalty] if isinstance(self.penalty, str) else self.penalty,
            lam=lam,
            step=self.step,
            max_iter=self.max_iter,
            tol=self.tol,
            schedule=self.schedule,
        )

    def _check_parameters(self) -> None:
        if isinstance(self.penalty, str) and self.penalty not in PENALTIES:
            raise ValueError(
                f"penalty: expected one of {', '.join(PENALTIES)} or a Penalty, got "
                f"{self.penalty!r}"
            )
        self._coder(self.lam)  # checks what it is given
        counts = ["batch_size", "epochs", "dead_after"]
        for name in counts if self.n_components is None else ["n_components", *counts]:
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        if not 0 < self.dict_lr < inf:
            raise ValueError(f"dict_lr: expected a finite number above 0, got {self.dict_lr}")
        if self.target_density is not None and not 0 < self.target_density < 1:
            raise ValueError(f"target_density: expected 0 < density < 1, got {self.target_density}")

    def _atoms(self) -> Tensor:
        return torch.tensor(self.components_)

    def _set_atoms(self, atoms: Tensor) -> None:
        self.components_ = (atoms / atoms.norm(dim=1, keepdim=True).clamp(min=_LEAST_NORM)).numpy()
        self._n_features_out = len(atoms)

    def _tensor(self, X: Any, *, reset: bool = False) -> Tensor:
        """Check X as scikit-learn does; a copy, so that read-only arrays are welcome."""
        return torch.tensor(validate_data(self, X, dtype=[np.float64, np.float32], reset=reset))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
