"""Magnitude, Wanda and SparseGPT decide by hand-checked scores; parameters are checked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.budgets import Density
from gossamer.compression import (
    Decision,
    DSnoT,
    InputStatistics,
    Layer,
    Magnitude,
    SparseGPT,
    Wanda,
)
from gossamer.patterns import NM, Block, Unstructured


def layer(rows: int = 6, width: int = 16, tokens: int = 60, seed: int = 0) -> Layer:
    torch.manual_seed(seed)
    inputs = InputStatistics(gram=True)
    scale = torch.randn(width).exp()  # inputs of trained models differ widely in size
    shared = torch.randn(2, tokens, 6) @ torch.randn(6, width)
    for x in ((shared + torch.randn(2, tokens, width)) * scale).unbind():
        inputs.update(x)
    return Layer("fc", torch.randn(rows, width), inputs)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.floats(0.05, 1.0), st.integers(0, 99))
def test_wanda_keeps_the_best_of_each_row(rows, width, density, seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(3, 20, width), torch.randn(rows, width)
    inputs = InputStatistics()
    for sequence in x:
        inputs.update(sequence)
    mask = Wanda(density=density).decide(Layer("fc", weight, inputs)).mask.numpy()
    norm = np.sqrt((x.double().numpy() ** 2).sum((0, 1)))
    scores = np.abs(weight.double().numpy()) * norm
    count = Density(density).count(width)
    for row, kept in zip(scores, mask, strict=True):
        assert kept.sum() == count
        assert set(np.flatnonzero(kept)) == set(np.argsort(-row, kind="stable")[:count])


def test_magnitude_compares_the_whole_layer_and_needs_no_inputs():
    weight = torch.tensor([[1.0, -5.0, 6.0], [2.0, -3.0, 4.0]])
    mask = Magnitude(density=1 / 3).decide(Layer("fc", weight)).mask
    assert mask.tolist() == [[False, True, True], [False, False, False]]


@pytest.mark.parametrize("method", [Magnitude, Wanda, SparseGPT])
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 8)])
def test_every_group_of_n_m_keeps_n(method, pattern):
    decision = method(pattern=pattern).decide(layer())
    assert bool((pattern.units(decision.mask).sum(-1) == pattern.n).all())
    assert decision.pattern == pattern


def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude():
    found = {}
    each = layer(rows=40, width=64, tokens=400)
    assert each.inputs is not None and each.inputs.gram is not None
    for method in (Magnitude(0.5), Wanda(0.5), SparseGPT(0.5)):
        change = method.apply(each, method.decide(each)) - each.weight
        found[type(method)] = float(((change @ each.inputs.gram) * change).sum())
    assert found[SparseGPT] < 0.9 * found[Wanda] and found[Wanda] < found[Magnitude]


def test_sparsegpt_drops_dead_inputs_first():
    inputs = InputStatistics(gram=True)
    inputs.update(torch.randn(50, 8) * torch.tensor([1, 1, 0, 1, 1, 0, 1, 1.0]))
    each = Layer("fc", 1 + torch.rand(5, 8), inputs)
    method = SparseGPT(density=0.75)
    decision = method.decide(each)
    assert not decision.mask[:, [2, 5]].any() and decision.mask.sum() == 30


def test_sparsegpt_alone_repairs_the_mask_of_another_method():
    each = layer(rows=20, width=32, tokens=300)
    decision = Wanda(0.5).decide(each)
    method = SparseGPT()
    assert method.refines and method.decide(each, decision) is decision
    zeroed, repaired = Wanda(0.5).apply(each, decision), method.apply(each, decision)
    assert torch.equal(repaired != 0, decision.mask)
    assert each.inputs is not None and each.inputs.gram is not None
    losses = [
        float((((w - each.weight) @ each.inputs.gram) * (w - each.weight)).sum())
        for w in (zeroed, repaired)
    ]
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Wanda(), ValueError, "density in .* or an NM pattern, got neither"),
        (lambda: Wanda(density=0.0), ValueError, r"density in \(0, 1\], got 0.0"),
        (lambda: Magnitude(density=1.5), ValueError, r"density in \(0, 1\], got 1.5"),
        (lambda: Wanda(density=float("nan")), ValueError, "got nan"),
        (lambda: Wanda(0.3, NM(2, 4)), ValueError, r"density 0.5 with NM\(n=2, m=4\), got 0.3"),
        (lambda: Wanda(0.5, Block(1, 2)), TypeError, "Unstructured or NM"),  # pyright: ignore
        (lambda: SparseGPT(0.5, dampening=-1), ValueError, "dampening"),
        (lambda: SparseGPT(0.5, block=0), ValueError, "block"),
        (lambda: SparseGPT().decide(layer()), ValueError, "repairs another method's mask"),
        (lambda: DSnoT(max_cycles=-1), ValueError, "max_cycles"),
        (lambda: DSnoT(max_cycles=1.5), ValueError, "max_cycles"),  # pyright: ignore
        (lambda: DSnoT(threshold=float("nan")), ValueError, "threshold"),
        (lambda: DSnoT(var_power=-1), ValueError, "var_power"),
        (lambda: DSnoT(skip="mlp"), ValueError, "tuple of names"),  # pyright: ignore
        (lambda: DSnoT().decide(layer(), None), ValueError, "another method's mask"),
        (lambda: Wanda(0.5).decide(Layer("fc", torch.ones(2, 2))), ValueError, "calibration"),
        (lambda: Wanda(pattern=NM(2, 3)).decide(layer()), ValueError, "NM.* divides"),
    ],
)
def test_bad_parameters_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_decision_that_is_skipped_stays_the_same():
    each = Layer("model.layers.0.mlp.up_proj", layer().weight, layer().inputs)
    decision = Decision(torch.rand(6, 16) < 0.5, torch.rand(6, 16), Unstructured())
    assert DSnoT(skip=("mlp",)).decide(each, decision) is decision
    assert DSnoT.paper() == DSnoT(50, 0.1, 1.0, same_sign=False, skip=("mlp",))
