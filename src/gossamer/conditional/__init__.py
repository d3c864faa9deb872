"""Conditional methods: which activations compute, decided input by input."""

from gossamer.conditional.delta_activation import (
    DeltaActivation,
    L1Activation,
    operations_density,
    temporal_loss,
)
from gossamer.conditional.delta_inference import DeltaInference, LayerWork, Step
from gossamer.conditional.insertion import calibrate, insert_delta, insert_l1

__all__ = [
    "DeltaActivation",
    "DeltaInference",
    "L1Activation",
    "LayerWork",
    "Step",
    "calibrate",
    "insert_delta",
    "insert_l1",
    "operations_density",
    "temporal_loss",
]
