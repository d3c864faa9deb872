"""What every reconstruction returns, and the checks that all of them make."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DynamicReconstruction:
    """An image sequence and how it was reached.

    Parameters
    ----------
    image : Tensor [T, H, W] complex
        The reconstruction.
    error : Tensor [T, H, W] complex, optional
        What the method set apart as error; `image` does not contain it.
    dynamic : Tensor [T, H, W] complex, optional
        What the method holds for moving; `image` contains it.
    change : tuple of float
        Relative change of the image in each iteration; empty for methods without any.
    objective : tuple of float
        Value of the objective, of data scaled as the method scales them, before iterations 0, 20,
        40, ...; empty where the method minimises none.
    converged : bool
        Whether the change fell below the tolerance.
    """

    image: Tensor
    error: Tensor | None = None
    dynamic: Tensor | None = None
    change: tuple[float, ...] = ()
    objective: tuple[float, ...] = ()
    converged: bool = True


Callback = Callable[[int, Tensor], None]
"""Called with the iteration and the image, in the data's own scale."""


def relative_change(new: Tensor, old: Tensor) -> float:
    """Return ``|new - old| / |old|``; 0 where both are zero.

    Examples
    --------
    >>> relative_change(torch.tensor([3.0]), torch.tensor([2.0]))
    0.5
    """
    size, moved = _length(old), _length(new - old)
    return moved / size if size else float("inf") if moved else 0.0


def check_iterations(n_iter: int, tol: float) -> None:
    """Raise ValueError unless there is an iteration to make and a tolerance to meet."""
    if n_iter < 1:
        raise ValueError(f"n_iter: expected at least 1, got {n_iter}")
    if not 0 <= tol < float("inf"):
        raise ValueError(f"tol: expected at least 0, got {tol}")


def check_weights(**weights: float) -> None:
    """Raise ValueError unless every weight is finite and at least 0.

    Examples
    --------
    >>> check_weights(gamma=-1.0)
    Traceback (most recent call last):
    ValueError: gamma: expected a finite weight of at least 0, got -1.0
    """
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name}: expected a finite weight of at least 0, got {weight}")


def _length(x: Tensor) -> float:
    # Of the parts: a complex norm takes ten times as long.
    return float(torch.linalg.vector_norm(torch.view_as_real(x) if x.is_complex() else x))
