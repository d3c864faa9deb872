"""Dynamics: learnt models of what happens next, with few nonlinearities to plan through."""

try:
    import highspy  # noqa: F401
except ImportError as error:
    raise ImportError("gossamer.dynamics needs HiGHS: pip install 'gossamer[control]'") from error

from gossamer.dynamics.cem import CEM
from gossamer.dynamics.controller import MixedIntegerController
from gossamer.dynamics.gradient_shooting import GradientShooting
from gossamer.dynamics.keypoints import KeypointCost, KeypointDynamics
from gossamer.dynamics.milp import MilpModel, relu_milp
from gossamer.dynamics.mppi import MPPI
from gossamer.dynamics.neuron_types import (
    NeuronType,
    NeuronTypes,
    SparseActivation,
    sparse_mlp,
)
from gossamer.dynamics.piecewise_affine import PiecewiseAffine
from gossamer.dynamics.problem import ControlProblem, Plan, Planner
from gossamer.dynamics.relaxed_training import Training
from gossamer.dynamics.relu_program import ReluProgram
from gossamer.dynamics.sparsification import Sparsified, settle_stable, sparsify_activations

__all__ = [
    "CEM",
    "MPPI",
    "ControlProblem",
    "GradientShooting",
    "KeypointCost",
    "KeypointDynamics",
    "MilpModel",
    "MixedIntegerController",
    "NeuronType",
    "NeuronTypes",
    "PiecewiseAffine",
    "Plan",
    "Planner",
    "ReluProgram",
    "SparseActivation",
    "Sparsified",
    "Training",
    "relu_milp",
    "settle_stable",
    "sparse_mlp",
    "sparsify_activations",
]
