"""The closed set of exceptions that gossamer raises beside ValueError and TypeError."""

from pathlib import Path


class BackendError(RuntimeError):
    """A kernel back end was asked for by name and cannot run here."""


class FormatError(ValueError):
    """A file does not hold what its format promises.

    Parameters
    ----------
    path : Path or str
        The file that was read.
    problem : str
        What was expected and what was found.
    """

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = Path(path)
        self.problem = problem


class SolverError(RuntimeError):
    """An optimiser ended without a solution, or with one that the model does not reproduce."""


class ConvergenceWarning(UserWarning):
    """An iterative solver stopped before it reached its tolerance."""
