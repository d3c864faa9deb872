"""Training with sparse weights: which weights are zero, and when they change."""

from gossamer.training.attachment import Attachment, attach
from gossamer.training.base import (
    MaskedTraining,
    ProjectedTraining,
    TrainingMethod,
    Update,
    WeightState,
)
from gossamer.training.dense import DenseTraining
from gossamer.training.magnitude_gradual import MagnitudeGradual
from gossamer.training.nm import nm_mask
from gossamer.training.rigl import RigL
from gossamer.training.set import SET
from gossamer.training.sr_ste import SRSTE
from gossamer.training.static import StaticSparse

__all__ = [
    "SET",
    "SRSTE",
    "Attachment",
    "DenseTraining",
    "MagnitudeGradual",
    "MaskedTraining",
    "ProjectedTraining",
    "RigL",
    "StaticSparse",
    "TrainingMethod",
    "Update",
    "WeightState",
    "attach",
    "nm_mask",
]
