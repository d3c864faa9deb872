"""`prune`: exact densities, honest reports, and a model that is untouched when it fails."""

import json

import pytest
import torch

from gossamer.budgets import Density
from gossamer.compression import (
    Decision,
    DSnoT,
    Layer,
    Magnitude,
    PruningMethod,
    SparseGPT,
    Wanda,
    prune,
)
from gossamer.compression.block_walker import block_linears
from gossamer.patterns import NM
from gossamer.testing.attention import prompt, tiny_gemma3, tiny_llama


def linears(model):
    return {name: layer for block in block_linears(model) for name, layer in block.items()}


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("build", [tiny_llama, tiny_gemma3])
@pytest.mark.parametrize("density", [0.5, 0.3])
@pytest.mark.parametrize("refined", [[], [DSnoT()]])
def test_every_row_keeps_its_count_and_its_values(build, density, refined):
    model = build()
    before = state(model)
    report = prune(model, [Wanda(density=density), *refined], [prompt(2)])
    for layer in report.layers:
        weight, original = model.get_submodule(layer.name).weight, before[f"{layer.name}.weight"]
        kept = weight != 0
        assert bool((kept.sum(1) == Density(density).count(weight.shape[1])).all())
        assert torch.equal(weight[kept], original[kept])
        assert layer.density == int(kept.sum()) / kept.numel()
        assert layer.shape == tuple(weight.shape)
    pruned = {f"{layer.name}.weight" for layer in report.layers}
    for name, tensor in model.state_dict().items():
        assert name in pruned or torch.equal(tensor, before[name])
    assert report.density == pytest.approx(density, abs=0.02)
    assert all((layer.moved > 0) == bool(refined) for layer in report.layers)


@pytest.mark.parametrize(
    "methods",
    [
        [Magnitude(pattern=NM(2, 4))],
        [Wanda(pattern=NM(2, 4)), DSnoT()],
        [SparseGPT(pattern=NM(2, 4))],
        [Magnitude(pattern=NM(1, 4)), DSnoT(), SparseGPT()],
    ],
)
def test_n_m_holds_in_every_group_of_the_model(llama, methods):
    prune(llama, methods, [prompt(2)])
    pattern = methods[0].pattern
    for layer in linears(llama).values():
        assert bool((pattern.units(layer.weight != 0).sum(-1) == pattern.n).all())


def test_the_report_tells_what_happened(llama):
    dense = tiny_llama()
    calls = []
    report = prune(llama, [SparseGPT(0.5)], [prompt(3)], progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]
    assert report.tokens == 3 * prompt().shape[1] and report.methods[0].startswith("SparseGPT(")
    first = report.layers[0]
    # The first block's inputs are those of the dense model.
    x = dense.model.layers[0].input_layernorm(dense.model.embed_tokens(prompt(3)))[:].detach()
    old, new = (m.get_submodule(first.name).weight.detach() for m in (dense, llama))
    change = x @ (new - old).mT
    assert first.output_error == pytest.approx(
        float(change.square().sum() / (x @ old.mT).square().sum()), rel=1e-3
    )
    assert first.mean_error == pytest.approx(float(change.mean((0, 1)).abs().mean()), rel=1e-3)
    document = json.loads(json.dumps(report.to_json()))
    assert document["density"] == 0.5 and document["layers"][0]["shape"] == list(first.shape)


def test_magnitude_needs_no_calibration_and_runs_no_forward(llama, monkeypatch):
    monkeypatch.setattr(type(llama), "forward", None)
    monkeypatch.setattr(type(llama.model), "forward", None)
    report = prune(llama, [Magnitude(0.5)])
    assert report.density == 0.5 and report.tokens == 0
    assert report.layers[0].mean_error is None and report.layers[0].output_error is None


def test_dsnot_lowers_the_expected_error_of_a_model():
    found = [
        prune(tiny_llama(), [Wanda(0.5), *more], [prompt(4)]).layers[0].mean_error
        for more in ([], [DSnoT(threshold=0.0)])
    ]
    assert found[1] < 0.7 * found[0]


def test_two_runs_give_one_model():
    models = [tiny_llama(), tiny_llama()]
    for model in models:
        prune(model, [SparseGPT(0.5), DSnoT()], [prompt(2)])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_bfloat16_models_are_pruned_in_their_own_type():
    model = tiny_llama().bfloat16()
    report = prune(model, [Wanda(0.5), DSnoT()], [prompt(2)])
    assert model.dtype == torch.bfloat16 and report.density == 0.5


class Interrupted(PruningMethod):
    """Prunes one block, then stops."""

    def __init__(self, error):
        self.error = error

    def decide(self, layer: Layer, before: Decision | None) -> Decision:
        if "layers.1" in layer.name:
            raise self.error
        return Wanda(0.5).decide(layer, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), RuntimeError("memory")])
def test_a_model_is_untouched_when_pruning_fails(llama, error):
    llama.train()
    before = state(llama)
    with pytest.raises(type(error)):
        prune(llama, [Interrupted(error)], [prompt()])
    for name, tensor in llama.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(module.training for module in llama.modules())
    assert not any(module._forward_pre_hooks for module in llama.modules())


@pytest.mark.parametrize(
    ("methods", "calibration", "error", "message"),
    [
        ([], None, ValueError, "one method that chooses"),
        ([DSnoT()], [prompt()], ValueError, r"try \[Wanda\(density=0.5\), DSnoT\(\)\]"),
        ([Wanda(0.5), Magnitude(0.5)], [prompt()], ValueError, "one method that chooses"),
        ([SparseGPT()], [prompt()], ValueError, "one method that chooses"),
        (Wanda(0.5), [prompt()], TypeError, r"try \[Wanda"),
        (["wanda"], [prompt()], TypeError, "pruning methods, got 'wanda'"),
        ([Wanda(0.5)], None, ValueError, "Wanda: expected calibration batches, got none"),
        ([Magnitude(0.5), DSnoT()], None, ValueError, "Magnitude, DSnoT: expected calibration"),
        ([Wanda(0.5)], [], ValueError, "calibration sequences, got none"),
        ([Wanda(pattern=NM(2, 5))], [prompt()], ValueError, r"layers\.0\.\S+_proj: .*NM"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(llama, methods, calibration, error, message):
    before = state(llama)
    with pytest.raises(error, match=message):
        prune(llama, methods, calibration)
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
