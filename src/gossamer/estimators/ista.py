"""Iterative thresholding: the codes of many signals over one dictionary."""

import warnings
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from gossamer.errors import ConvergenceWarning
from gossamer.penalties import CEL0, Penalty
from gossamer.schedules import InverseTime

SCHEDULES = ("constant", "inverse_time")
STOPPINGS = ("row", "batch")
_MARGIN = 0.99  # of the longest stable step


@dataclass(frozen=True, eq=False)
class Encoding:
    """Codes, and how they were reached.

    Parameters
    ----------
    code : Tensor [B, K]
    n_iter : Tensor [B], int64
        Iterations each row took.
    converged : Tensor [B], bool
        Which rows met the tolerance.
    step : float
        The first step, as given or as computed from the dictionary.
    """

    code: Tensor
    n_iter: Tensor
    converged: Tensor
    step: float


@dataclass(frozen=True)
class ISTACoder:
    """Code signals sparsely: gradient steps on the error, each followed by a threshold.

    ``r <- prox(r + step (x - r Phi) Phi^T)`` from r = 0 until ``|change| < tol (tol + |r|)``
    minimises ``||x - r Phi||^2 / 2 + sum(value(r))``, with the atoms as rows of Phi; for penalties
    that are not convex it finds a stationary point. A row that has settled is frozen and costs
    nothing more, so that its code depends on no other row.

    Iterative soft thresholding is Daubechies, Defrise & De Mol (2004); the other penalties are as
    in "Beyond l1 sparse coding in V1" (arXiv 2301.10002), which also gives the defaults.

    Parameters
    ----------
    penalty : Penalty
        Which threshold (paper: `CEL0`).
    lam : float
        Its weight (released configuration: 0.27).
    step : float, optional
        At most 1 / (largest eigenvalue of Phi Phi^T); None takes 0.99 of that (paper: 0.05).
    max_iter : int
        Iterations after which a row is given up, with a warning (paper: 5000).
    tol : float
        When to stop (paper: 0.01).
    acceleration : {"fista"}, optional
        Momentum of Beck & Teboulle (2009), for convex penalties only.
    schedule : {"constant", "inverse_time"}
        The latter divides the step by ``1 + (step / 50) t`` (authors' code, for large CEL0 runs).
    stopping : {"row", "batch"}
        "batch" stops all rows at once when the spectral norms over the batch meet the tolerance,
        as the authors do; some rows are then not done.

    Examples
    --------
    >>> coder = ISTACoder(CEL0(), lam=0.02, step=None)
    >>> coder.encode(torch.tensor([[3.0, 0.1]]), torch.eye(2)).code
    tensor([[2.9997, 0.0000]])
    """

    penalty: Penalty = field(default_factory=CEL0)
    lam: float = 0.27
    step: float | None = 0.05
    max_iter: int = 5000
    tol: float = 1e-2
    acceleration: str | None = None
    schedule: str = "constant"
    stopping: str = "row"

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Penalty):
            raise TypeError(f"penalty: expected a Penalty, got {self.penalty!r}, try CEL0()")
        for name in ("lam", "step", "tol"):
            value = getattr(self, name)
            if not (value is None or 0 < value < float("inf")):
                raise ValueError(f"{name}: expected a finite number above 0, got {value}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter: expected at least 1, got {self.max_iter}")
        for name, allowed in (
            ("acceleration", (None, "fista")),
            ("schedule", SCHEDULES),
            ("stopping", STOPPINGS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: expected one of {', '.join(map(repr, allowed))}, got "
                    f"{getattr(self, name)!r}"
                )
        if self.acceleration and not self.penalty.convex:
            raise ValueError(
                f"acceleration: expected None for {self.penalty}, which is not convex, got "
                f"{self.acceleration!r}"
            )

    def encode(self, x: Tensor, dictionary: Tensor) -> Encoding:
        """Return the codes of signals.

        Parameters
        ----------
        x : Tensor [B, p]
            Signals, float32 or float64, on any device.
        dictionary : Tensor [K, p]
            Atoms, of any norm.

        Returns
        -------
        Encoding

        Raises
        ------
        TypeError
            If the two are not floating point of one type.
        ValueError
            If shapes do not fit, values are not finite, or the step is too long for the
            dictionary.

        Warns
        -----
        ConvergenceWarning
            If rows did not settle within `max_iter` iterations.
        """
        _check(x, dictionary)
        first = self.stable_step(dictionary)
        rate = InverseTime(first, first / 50 if self.schedule == "inverse_time" else 0.0)
        norms = dictionary.norm(dim=1)
        code = x.new_zeros(x.shape[0], dictionary.shape[0])
        n_iter = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        rows = torch.arange(len(x), device=x.device)  # those that still move
        r = ahead = code
        momentum = 1.0
        for t in range(self.max_iter):
            if not len(rows):
                break
            new = self.update(x, ahead, dictionary, rate(t), norms)
            moving = self._moving(new - ahead, ahead)  # a turn of the momentum is not an end
            if self.acceleration:
                following = (1 + sqrt(1 + 4 * momentum**2)) / 2
                ahead = new + (momentum - 1) / following * (new - r)
                momentum = following
            else:
                ahead = new
            r = new
            if not moving.all():
                code[rows[~moving]], n_iter[rows[~moving]] = r[~moving], t + 1
                x, r, ahead, rows = x[moving], r[moving], ahead[moving], rows[moving]
        converged = torch.ones_like(n_iter, dtype=torch.bool)
        if len(rows):
            code[rows], n_iter[rows], converged[rows] = r, self.max_iter, False
            warnings.warn(
                f"{len(rows)} of {len(code)} codes did not settle in {self.max_iter} iterations, "
                "try a larger max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        return Encoding(code, n_iter, converged, first)

    def update(
        self, x: Tensor, code: Tensor, dictionary: Tensor, step: float, norms: Tensor
    ) -> Tensor:
        """Return the codes after one iteration; `encode` checks and repeats it.

        Parameters
        ----------
        x : Tensor [B, p]
        code : Tensor [B, K]
        dictionary : Tensor [K, p]
        step : float
        norms : Tensor [K]
            L2 norms of the atoms.
        """
        ascent = torch.addmm(code, x - code @ dictionary, dictionary.T, alpha=step)
        return self.penalty.prox(ascent, self.lam, step, norms)

    def stable_step(self, dictionary: Tensor) -> float:
        """Return the step for a dictionary [K, p]; ValueError if the one given is too long."""
        largest = spectral_norm(dictionary) ** 2
        if self.step is None:
            return _MARGIN / largest if largest else 1.0
        if self.step * largest >= 1:
            raise ValueError(
                f"step: expected less than {1 / largest:.4g} for this dictionary, got "
                f"{self.step:g}, try step=None"
            )
        return self.step

    def _moving(self, change: Tensor, before: Tensor) -> Tensor:
        """Return bool [B]: the rows that have not met the tolerance."""
        if self.stopping == "row":
            return change.norm(dim=1) >= self.tol * (self.tol + before.norm(dim=1))
        sizes = torch.linalg.matrix_norm(torch.stack([change, before]), ord=2)
        return (sizes[0] >= self.tol * (self.tol + sizes[1])).expand(len(change))


def debias(x: Tensor, code: Tensor, dictionary: Tensor) -> Tensor:
    """Return the codes of least error with the same supports: least squares undoes shrinkage.

    Parameters
    ----------
    x : Tensor [B, p]
    code : Tensor [B, K]
    dictionary : Tensor [K, p]

    Returns
    -------
    Tensor [B, K]
        The shortest minimiser where the atoms in use are not independent.

    Examples
    --------
    >>> debias(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.2, 0.0]]), torch.eye(2))
    tensor([[3., 0.]])
    """
    used = code != 0
    most = int(used.sum(1).max()) if len(code) else 0
    support = used.to(torch.uint8).topk(most, dim=1).indices  # [B, most], zeros behind the ones
    atoms = dictionary[support] * used.gather(1, support)[..., None]
    found = torch.linalg.pinv(atoms.mT) @ x[..., None]
    return torch.zeros_like(code).scatter(1, support, found[..., 0])


def spectral_norm(matrix: Tensor) -> float:
    """Return the largest singular value, from the smaller of the two Gram matrices.

    Examples
    --------
    >>> round(spectral_norm(torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]])), 6)
    4.0
    """
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


def _check(x: Tensor, dictionary: Tensor) -> None:
    if x.dtype != dictionary.dtype or x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            "expected x and dictionary of one type, float32 or float64, got "
            f"{x.dtype} and {dictionary.dtype}"
        )
    if x.ndim != 2 or dictionary.ndim != 2 or x.shape[1] != dictionary.shape[1]:
        raise ValueError(
            f"expected x [B, p] and dictionary [K, p], got {tuple(x.shape)} and "
            f"{tuple(dictionary.shape)}"
        )
    if dictionary.shape[0] < 1:
        raise ValueError("dictionary: expected at least one atom, got none")
    if not (bool(x.isfinite().all()) and bool(dictionary.isfinite().all())):
        raise ValueError("expected finite values in x and dictionary, got NaN or infinity")
