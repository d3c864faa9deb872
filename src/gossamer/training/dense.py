"""Dense training: the baseline that every sparse one is held against."""

from dataclasses import dataclass

from gossamer.training.base import TrainingMethod


@dataclass(frozen=True)
class DenseTraining(TrainingMethod):
    """Train every weight: the model and the optimizer are left alone, steps are counted.

    Examples
    --------
    >>> DenseTraining()
    DenseTraining()
    """
