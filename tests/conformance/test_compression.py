"""Every pruning method through its family's suite, and proof that the suite can fail."""

from dataclasses import dataclass
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer import compression
from gossamer.compression import (
    Decision,
    DSnoT,
    Layer,
    Magnitude,
    PruningMethod,
    ScoreMethod,
    SparseGPT,
    Wanda,
)
from gossamer.patterns import NM, Unstructured
from gossamer.testing import compression as suite

COMMON: list[tuple[dict[str, Any], str]] = [
    ({"density": 0.0}, r"density in \(0, 1\], got 0"),
    ({"density": 1.5}, r"density in \(0, 1\], got 1.5"),
    ({"density": nan}, "density .*got nan"),
    ({"density": 0.4, "pattern": NM(2, 4)}, "expected density 0.5 with .*, got 0.4"),
]
REFUSED: dict[type[PruningMethod], list[tuple[dict[str, Any], str]]] = {
    Magnitude: [*COMMON, ({}, "density .* or an NM pattern, got neither")],
    Wanda: [*COMMON, ({}, "density .* or an NM pattern, got neither")],
    SparseGPT: [
        *COMMON,
        ({"density": 0.5, "dampening": -0.1}, r"dampening in \[0, 1\], got -0.1"),
        ({"density": 0.5, "dampening": nan}, "dampening .*got nan"),
        ({"density": 0.5, "block": 0}, "block of at least 1, got 0"),
    ],
    DSnoT: [
        ({"max_cycles": -1}, "max_cycles .* got -1"),
        ({"max_cycles": "all"}, "max_cycles .* got 'all'"),
        ({"threshold": -0.1}, "threshold of at least 0, got -0.1"),
        ({"threshold": nan}, "threshold .*got nan"),
        ({"var_power": inf}, "finite var_power .*got inf"),
        ({"skip": "mlp"}, "tuple of names, got 'mlp'"),
    ],
}
METHODS: list[PruningMethod] = [
    Magnitude(0.5),
    Magnitude(pattern=NM(2, 4)),
    Wanda(0.3),
    Wanda(pattern=NM(1, 4)),
    SparseGPT(0.5),
    SparseGPT(0.4, block=8),
    SparseGPT(pattern=NM(2, 4)),
    SparseGPT(),
    DSnoT(),
    DSnoT.paper(),
    DSnoT(0, skip=("self_attn",)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method)[:90])
def test_conforms(method: PruningMethod) -> None:
    suite.check_pruning_method(method, refused=REFUSED[type(method)])


def test_every_method_is_here() -> None:
    exported = [getattr(compression, name) for name in compression.__all__]
    methods = {kind for kind in exported if isinstance(kind, type)}
    methods = {kind for kind in methods if issubclass(kind, PruningMethod)} - {
        PruningMethod,
        ScoreMethod,
    }
    assert {type(method) for method in METHODS} == methods == REFUSED.keys()


class Broken(Magnitude):
    """Half of the weights, by magnitude; what is wrong is added below."""


class Drawn(Broken):
    def score(self, layer: Layer) -> Tensor:
        return torch.rand(layer.weight.shape)


class Greedy(Broken):
    def decide(self, layer: Layer, before: Decision | None = None) -> Decision:
        found = super().decide(layer, before)
        return Decision(found.mask | (layer.weight > 0), found.scores, Unstructured())


class Careless(Broken):
    def decide(self, layer: Layer, before: Decision | None = None) -> Decision:
        found = super().decide(layer, before)
        layer.weight[~found.mask] = 0.0
        return found


class Leaking(Broken):
    def apply(self, layer: Layer, decision: Decision) -> Tensor:
        return layer.weight * (0.1 + 0.9 * decision.mask)


class Harmful(Broken):
    def apply(self, layer: Layer, decision: Decision) -> Tensor:
        return super().apply(layer, decision) * 1.5


class Pretending(Broken):
    collect = "gram"


@dataclass(frozen=True)
class Shifting(DSnoT):
    """Refines by dropping a weight of every row."""

    def decide(self, layer: Layer, before: Decision | None) -> Decision:
        found = super().decide(layer, before)
        mask = found.mask.clone()
        mask[torch.arange(len(mask)), mask.int().argmax(1)] = False
        return Decision(mask, found.scores, found.pattern)


@pytest.mark.parametrize(
    ("check", "method", "message"),
    [
        (suite.check_decides, Drawn(0.5), "a second call gives another mask"),
        (suite.check_decides, Greedy(0.5), "density .*, asked for 0.5"),
        (suite.check_decides, Careless(0.5), "decide changed the layer"),
        (suite.check_decides, Shifting(), "another number of weights"),
        (suite.check_applies, Leaking(0.5), "weights outside the mask are not zero"),
        (suite.check_applies, Harmful(0.5), "with zeros alone"),
    ],
)
def test_the_suite_notices(check, method, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check(method, suite.random_layer(24, 64))


def test_the_suite_notices_statistics_that_are_not_read() -> None:
    with pytest.raises(AssertionError, match="collects gram but does not read it"):
        suite.check_asks_for_calibration(Pretending(0.5))


def test_the_suite_notices_a_walk_that_does_not_restore(monkeypatch) -> None:
    from contextlib import nullcontext

    from gossamer.compression import pruning

    monkeypatch.setattr(pruning, "_all_or_nothing", lambda model, linears: nullcontext())
    with pytest.raises(AssertionError, match=r"interrupted, .* is changed"):
        suite.check_restores(Wanda(0.5))


def test_the_suite_notices_what_is_not_reported(monkeypatch) -> None:
    real = suite.prune

    def spoiled(model, methods, calibration):
        report = real(model, methods, calibration)
        model.model.norm.weight.data.add_(1.0)
        return report

    monkeypatch.setattr(suite, "prune", spoiled)
    with pytest.raises(AssertionError, match=r"model\.norm\.weight changed"):
        suite.check_prunes(Wanda(0.5), suite.tiny_llama())
