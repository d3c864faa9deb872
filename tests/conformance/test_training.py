"""Every training method through its family's suite, and proof that the suite can fail."""

import re
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer import training
from gossamer.patterns import NM
from gossamer.testing import training as suite
from gossamer.training import (
    SET,
    SRSTE,
    DenseTraining,
    MagnitudeGradual,
    MaskedTraining,
    ProjectedTraining,
    RigL,
    StaticSparse,
    TrainingMethod,
    Update,
    WeightState,
)

COMMON: list[tuple[dict[str, Any], str]] = [
    ({"density": 0.0}, r"density in \(0, 1\], got 0"),
    ({"density": 1.5}, r"density in \(0, 1\], got 1.5"),
    ({"density": nan}, "density .*got nan"),
    ({"density": 0.1, "allocation": "er"}, "allocation .*erdos_renyi.* got 'er'"),
]
REFUSED: dict[type[TrainingMethod], list[tuple[dict[str, Any], str]]] = {
    DenseTraining: [],
    StaticSparse: [
        *COMMON,
        ({"density": 0.1, "criterion": "large"}, "criterion .*'large'"),
        ({"density": 0.5, "pattern": NM(2, 4)}, "allocation='uniform'.* got 0.5 and 'erk'"),
        (
            {"density": 0.4, "allocation": "uniform", "pattern": NM(2, 4)},
            "density=0.5 and .* got 0.4",
        ),
    ],
    MagnitudeGradual: [
        *COMMON,
        ({"density": 0.1, "every": 0}, "every .*0"),
        ({"density": 0.1, "begin": -1}, "begin < until, got -1"),
        ({"density": 0.1, "begin": 5, "until": 5}, "begin < until, got 5 and 5"),
    ],
    SET: [
        *COMMON,
        ({"density": 0.1, "every": 0}, "every .*0"),
        ({"density": 0.1, "fraction": 1.1}, "fraction .*1.1"),
        ({"density": 0.1, "until": 5}, "until of at least every=100, got 5"),
    ],
    RigL: [
        *COMMON,
        ({"density": 0.1, "every": 0}, "every and until .*0 and 25000"),
        ({"density": 0.1, "until": 0}, "every and until .*100 and 0"),
        ({"density": 0.1, "alpha": -0.1}, r"alpha in \[0, 1\], got -0.1"),
    ],
    SRSTE: [
        ({"n": 0}, "1 <= n <= m"),
        ({"n": 5}, "1 <= n <= m"),
        ({"decay": inf}, "finite decay, got inf"),
        ({"decay": nan}, "finite decay, got nan"),
        ({"decay_in": "loss"}, "decay_in .*'loss'"),
    ],
}
METHODS: list[TrainingMethod] = [
    DenseTraining(),
    StaticSparse(0.3),
    StaticSparse(0.5, "uniform", criterion="magnitude", pattern=NM(2, 4)),
    MagnitudeGradual(0.3, until=10, every=3),
    SET(0.3, every=3),
    SET(0.2, "uniform", every=2, fraction=0.5, until=8),
    RigL(0.3, every=3, until=12),
    RigL(0.1, "uniform", every=2, alpha=0.5, replaces_step=False),
    SRSTE(),
    SRSTE(1, 4, decay=-0.1),
    SRSTE(2, 4, decay_in="weight"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method)[:90])
def test_conforms(method: TrainingMethod) -> None:
    suite.check_training_method(method, refused=REFUSED[type(method)])


def test_every_method_is_here() -> None:
    exported = [getattr(training, name) for name in training.__all__]
    kinds = {kind for kind in exported if isinstance(kind, type)}
    bases = {TrainingMethod, MaskedTraining, ProjectedTraining}
    methods = {kind for kind in kinds if issubclass(kind, TrainingMethod)} - bases
    assert {type(method) for method in METHODS} == methods == REFUSED.keys()


@dataclass(frozen=True)
class Forgetful(MaskedTraining):
    """Draws from a generator that no checkpoint holds."""

    def schedule(self, step: int) -> Update | None:
        return Update(drop=0.3)

    def grow(self, state: WeightState) -> Tensor:
        return torch.rand(state.weight.shape)


@dataclass(frozen=True)
class Greedy(MaskedTraining):
    """Grows more than it drops."""

    def schedule(self, step: int) -> Update | None:
        return Update(drop=0.3)

    def exchange(self, state: WeightState, count: int, drop: float) -> tuple[Tensor, Tensor]:
        return super().exchange(state, count + 1, drop)


@pytest.mark.parametrize(
    ("check", "method", "message"),
    [
        (suite.check_resumes, Forgetful(0.3), "resumed after step"),
        (suite.check_storages, Forgetful(0.3), "masks of .* differ"),
        (suite.check_zeros, Greedy(0.3), "active weights"),
    ],
)
def test_the_suite_notices(check, method, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check(method)


def test_the_suite_notices_a_leak(monkeypatch) -> None:
    """Without its masking of gradients and weights, momentum reaches dropped weights."""
    from gossamer.training.weights import MaskedWeight

    monkeypatch.setattr(MaskedWeight, "_mask_gradient", lambda self, gradient: gradient)
    with pytest.raises(AssertionError, match="momentum_buffer of a dropped"):
        suite.check_zeros(StaticSparse(0.3))
    monkeypatch.setattr(MaskedWeight, "_mask_weight", lambda self, *_: None)
    with pytest.raises(AssertionError, match="a dropped weight is not zero"):
        suite.check_zeros(StaticSparse(0.3))


def test_the_suite_notices_what_is_left_behind(monkeypatch) -> None:
    from gossamer.training.weights import ProjectedWeight

    real = ProjectedWeight.release
    monkeypatch.setattr(
        ProjectedWeight, "release", lambda self: (real(self), setattr(self.module, "left", 1))
    )
    with pytest.raises(AssertionError, match=re.escape("SRSTE(n=2, m=4")):
        suite.check_detaches(SRSTE())
