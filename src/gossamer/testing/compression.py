"""Conformance of pruning methods: what every one of them must do, yours included.

`check_pruning_method` runs all of it on random layers and random models of a few thousand weights;
each check is also a function of its own. A method that refines another's mask is run behind Wanda
and behind N:M magnitude pruning. A check that fails raises `AssertionError` and says what it found.

Examples
--------
>>> from gossamer.compression import DSnoT
>>> check_pruning_method(DSnoT(), refused=[({"threshold": -1.0}, "threshold")])
"""

import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gossamer.compression import (
    Decision,
    InputStatistics,
    Layer,
    Magnitude,
    PruningMethod,
    Wanda,
    load,
    pack_linears,
    prune,
    save,
)
from gossamer.patterns import NM
from gossamer.testing.attention import prompt, tiny_gemma3, tiny_llama
from gossamer.testing.records import check_documented, check_record, check_refusals, expect

SHAPES = ((24, 64), (64, 24), (1, 8))
DEAD = 3  # an input that is always zero
SLACK = 0.01  # of a loss: what damping the Hessian may cost a method that repairs


def random_layer(rows: int, width: int, *, tokens: int = 96, seed: int = 0) -> Layer:
    """Build a layer whose inputs are correlated, differ in size, are not centred, and one is dead.

    Examples
    --------
    >>> layer = random_layer(4, 8)
    >>> layer.weight.shape, layer.calibrated.tokens, float(layer.calibrated.norm[DEAD])
    (torch.Size([4, 8]), 192, 0.0)
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shared = normal(2, tokens, 6) @ normal(6, width)
    x = (shared + normal(2, tokens, width) + 0.3) * normal(width).exp()
    x[..., DEAD] = 0.0
    inputs = InputStatistics(gram=True)
    for sequence in x:
        inputs.update(sequence)
    return Layer("layer", normal(rows, width), inputs)


def check_pruning_method(
    method: PruningMethod, *, refused: Iterable[tuple[Mapping[str, Any], str]] = ()
) -> None:
    """Run every check of this module on a method.

    Parameters
    ----------
    method : PruningMethod
        That prunes something of layers with 8 to 96 inputs.
    refused : iterable of (parameters, pattern)
        Parameters that the constructor must refuse, and a regular expression for its message.

    Raises
    ------
    AssertionError
        Naming the first rule broken.
    """
    check_record(method)
    check_documented(type(method))
    check_refusals(type(method), refused)
    for shape in SHAPES:
        layer = random_layer(*shape)
        check_decides(method, layer)
        check_applies(method, layer)
    check_asks_for_calibration(method)
    for model in (tiny_llama(), tiny_gemma3(), tiny_llama().bfloat16()):
        check_prunes(method, model)
    check_restores(method)
    check_saves(method)


def check_decides(method: PruningMethod, layer: Layer) -> None:
    """Check the mask: of the density or pattern asked for, repeatable, at no one's expense."""
    for methods in _lists(method):
        case = f"{method} on {list(layer.weight.shape)}"
        weight, held = layer.weight.clone(), [part.clone() for part in _told(layer)]
        before, decision = _decided(methods, layer)
        kept = None if before is None else before.mask.sum(1)
        again = method.decide(layer, before)
        mask, scores = decision.mask, decision.scores
        fits = mask.dtype == torch.bool and mask.shape == scores.shape == weight.shape
        expect(fits, f"{case}: mask {mask.dtype} {list(mask.shape)}, {list(scores.shape)} scores")
        expect(bool(torch.isfinite(scores).all()), f"{case}: scores are not finite")
        expect(torch.equal(mask, again.mask), f"{case}: a second call gives another mask")
        same = all(map(torch.equal, _told(layer), held))
        expect(same, f"{case}: decide changed the layer or its statistics")
        if before is not None and kept is not None:
            expect(torch.equal(before.mask.sum(1), kept), f"{case}: decide changed the mask given")
            counted = torch.equal(mask.sum(1), kept)
            expect(counted, f"{case}: rows keep another number of weights than they were given")
            expect(decision.pattern == before.pattern, f"{case}: the pattern became another")
        if isinstance(decision.pattern, NM):
            each = decision.pattern.units(mask).sum(-1)
            expect(bool((each == decision.pattern.n).all()), f"{case}: not {decision.pattern}")
        elif (density := getattr(methods[0], "density", None)) is not None:
            share = float(mask.double().mean())
            close = abs(share - density) <= 0.5 / min(weight.shape[1], 32) + 1e-9
            expect(close, f"{case}: density {share:.4f}, asked for {density}")


def check_applies(method: PruningMethod, layer: Layer) -> None:
    """Check the weight: zero outside the mask, no further from the dense outputs than zeroing."""
    for methods in _lists(method):
        _, decision = _decided(methods, layer)
        before, pruned = layer.weight.clone(), method.apply(layer, decision)
        case = f"{method} on {list(before.shape)}"
        expect(torch.equal(before, layer.weight), f"{case}: apply changed the layer")
        fits = pruned.dtype == before.dtype and pruned.shape == before.shape
        expect(fits, f"{case}: a weight {pruned.dtype} {list(pruned.shape)}")
        expect(bool(torch.isfinite(pruned).all()), f"{case}: weights are not finite")
        outside = int((pruned[~decision.mask] != 0).sum())
        expect(outside == 0, f"{case}: {outside} weights outside the mask are not zero")
        zeroed = before.masked_fill(~decision.mask, 0.0)
        losses = _loss(layer, pruned), _loss(layer, zeroed)
        expect(
            losses[0] <= losses[1] * (1 + SLACK),
            f"{case}: squared error {losses[0]:.4g}, and {losses[1]:.4g} with zeros alone",
        )


def check_asks_for_calibration(method: PruningMethod) -> None:
    """Check that a method prunes without calibration, or says that it needs some."""
    layer = random_layer(8, 24)
    for methods in _lists(method):
        before = None if len(methods) == 1 else methods[0].decide(layer, None)
        blind = Layer(layer.name, layer.weight)
        if method.collect == "nothing":
            method.decide(blind, before)
            continue
        try:
            method.apply(blind, method.decide(blind, before))
        except ValueError as error:
            expect("calibration" in str(error), f"{method} without inputs says {error!s}")
        else:
            raise AssertionError(f"{method} collects {method.collect} but does not read it")


def check_prunes(method: PruningMethod, model: Any) -> None:
    """Check that `prune` changes the linear layers it reports, as it reports, and nothing else."""
    start = _state(model)
    for methods in _lists(method):
        found: list[dict[str, Tensor]] = []
        for _ in range(2):
            model.load_state_dict(start)
            report = prune(model, methods, [prompt(2, 48)])
            found.append(_state(model))
        case = f"{methods} on {type(model).__name__}"
        pruned = {f"{layer.name}.weight": layer for layer in report.layers}
        for name, tensor in found[1].items():
            expect(torch.equal(tensor, found[0][name]), f"{case}: {name} differs in a second run")
            expect(tensor.dtype == start[name].dtype, f"{case}: {name} became {tensor.dtype}")
            if name not in pruned:
                same = torch.equal(tensor, start[name])
                expect(same, f"{case}: {name} changed, which is no layer of the report")
            else:
                share = float((tensor != 0).double().mean())
                told = pruned[name].density
                expect(share <= told + 1e-9, f"{case}: {name} has {share:.4f}, told {told:.4f}")
    model.load_state_dict(start)


def check_restores(method: PruningMethod) -> None:
    """Check that a model is bit for bit as it was when pruning is interrupted."""

    class Interrupted(Exception):
        pass

    def interrupt(done: int, blocks: int) -> None:
        raise Interrupted

    model = tiny_llama().train()
    for methods in _lists(method):
        start = _state(model)
        try:
            prune(model, methods, [prompt(1, 48)], progress=interrupt)
        except Interrupted:
            pass
        for name, tensor in _state(model).items():
            expect(torch.equal(tensor, start[name]), f"{methods}: interrupted, {name} is changed")
        expect(model.training, f"{methods}: interrupted, the model stays in evaluation mode")


def check_saves(method: PruningMethod) -> None:
    """Check that a pruned model computes the same bits once saved and loaded, either way."""
    for methods in _lists(method):
        model, ids = tiny_llama(), prompt(1, 12)
        prune(model, methods, [prompt(1, 48)])
        for kind in (model, pack_linears(model)):
            with torch.no_grad(), tempfile.TemporaryDirectory() as directory:
                save(kind, directory)
                expected, loaded = kind(ids).logits, load(directory)(ids).logits
            expect(torch.equal(expected, loaded), f"{methods}: a saved model computes others")


def _lists(method: PruningMethod) -> list[list[PruningMethod]]:
    """The lists of methods that `prune` is given to run this one."""
    if not method.refines:
        return [[method]]
    return [[Wanda(density=0.5), method], [Magnitude(pattern=NM(2, 4)), method]]


def _decided(methods: list[PruningMethod], layer: Layer) -> tuple[Decision | None, Decision]:
    """What the last method was given and decided."""
    before, decision = None, methods[0].decide(layer, None)
    for method in methods[1:]:
        before, decision = decision, method.decide(layer, decision)
    return before, decision


def _told(layer: Layer) -> list[Tensor]:
    """All that a method may read of a layer."""
    inputs = layer.calibrated
    gram = [] if inputs.gram is None else [inputs.gram]
    return [layer.weight, inputs.mean, inputs.variance, *gram]


def _loss(layer: Layer, weight: Tensor) -> float:
    """Squared error of the outputs on the calibration inputs."""
    gram, change = layer.calibrated.gram, (weight - layer.weight).double()
    if gram is None:
        raise ValueError("expected a layer with a Gram matrix; try random_layer")
    return float(((change @ gram.double()) * change).sum())


def _state(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
