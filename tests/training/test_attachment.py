"""Attaching: what it takes, what it refuses, and where training could leak."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.layers import SparseConv2d, SparseLinear
from gossamer.testing.training import OPTIMIZERS, tiny_network, train
from gossamer.training import SET, SRSTE, DenseTraining, RigL, StaticSparse, attach

METHOD = RigL(0.3, every=3, until=12)


def attached(method=METHOD, storage="masked", **options):
    model = tiny_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
    return model, optimizer, attach(model, optimizer, method, storage=storage, **options)


def test_sparse_storage_frees_what_is_dropped_and_fills_it_again():
    model, optimizer, attachment = attached(storage="sparse")
    dense = attachment._weights["4"].module
    assert isinstance(model[0], SparseConv2d) and isinstance(model[4], SparseLinear)
    assert dense.weight.numel() == 0
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    plain = sum(p.numel() for p in tiny_network().parameters())
    assert held < 0.4 * plain
    for _ in train(model, optimizer):
        pass
    sizes = {tuple(value.shape) for state in optimizer.state.values() for value in state.values()}
    assert not any(len(size) > 1 for size in sizes)  # momentum of values and vectors only
    attachment.detach()
    assert model[4] is dense and dense.weight.shape == (32, 72)
    assert optimizer.state[dense.weight]["momentum_buffer"].shape == (32, 72)


def test_clipping_sees_active_weights_only():
    model, _, attachment = attached(StaticSparse(0.3))
    F.cross_entropy(model(torch.ones(2, 4, 6, 6).double()), torch.tensor([0, 1])).backward()
    for name, mask in attachment.masks().items():
        assert not model.get_parameter(f"{name}.weight").grad[~mask].any()


def test_dense_gradients_exist_at_updates_only(monkeypatch):
    model, optimizer, attachment = attached(storage="sparse")
    seen = []
    for weight in attachment._weights.values():
        real = weight._dense_gradient
        monkeypatch.setattr(
            weight,
            "_dense_gradient",
            lambda x, g, real=real: (seen.append(attachment.step), real(x, g))[1],
        )
    for _ in train(model, optimizer):
        pass
    assert sorted(set(seen)) == [0, 3, 6, 9] and len(seen) == 4 * len(attachment.masks())


def test_accumulated_batches_decide_together():
    """The gradient that decides is the sum over a step's batches, in both storages."""
    masks = []
    for storage, parts in (("masked", 1), ("masked", 3), ("sparse", 3)):
        model, optimizer, attachment = attached(storage=storage)
        model.eval()
        x = torch.randn(12, 4, 6, 6, generator=torch.Generator().manual_seed(1)).double()
        y = torch.arange(12) % 5
        for rows in torch.arange(12).chunk(parts):
            loss = F.cross_entropy(model(x[rows]), y[rows], reduction="sum") / 12
            loss.backward()
        optimizer.step()
        masks.append(attachment.masks())
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name]) and torch.equal(mask, masks[2][name])


def test_a_step_that_the_scaler_leaves_out_does_not_count():
    model, optimizer, attachment = attached(StaticSparse(0.3))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, torch.inf, 1.0):
        optimizer.zero_grad()
        output = model(torch.ones(2, 4, 6, 6).double()).float().sum() * factor
        scaler.scale(output).backward()
        scaler.step(optimizer)
        scaler.update()
    assert attachment.step == 2


def test_an_update_leaves_every_parameter_where_it_was():
    model, optimizer, attachment = attached()
    biases = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 1}
    assert attachment.step == 0  # RigL updates at step 0 instead of the optimizer
    next(train(model, optimizer))
    for name, before in biases.items():
        assert torch.equal(model.get_parameter(name), before)
    assert not optimizer.state


def test_a_layer_without_a_gradient_keeps_its_mask():
    model, optimizer, attachment = attached(RigL(0.3, "uniform"))
    before = attachment.masks()
    model[8](torch.rand(2, 16).double()).square().sum().backward()  # the other layers take no part
    optimizer.step()
    after = attachment.masks()
    assert torch.equal(before["0"], after["0"]) and not torch.equal(before["8"], after["8"])


def test_what_stays_dense():
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(10, 8),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "frozen": nn.Linear(8, 8).requires_grad_(False),
            "head": nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)),
            "body": nn.Linear(8, 8),
        }
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attachment = attach(model, optimizer, StaticSparse(0.5), skip=["head"])
    assert [*attachment.masks()] == ["body"]


def test_tied_weights_have_one_mask_and_are_refused_where_they_cannot():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with attach(model, optimizer, StaticSparse(0.5)) as attachment:
        assert [*attachment.masks()] == ["0"]
    for method, storage in ((StaticSparse(0.5), "sparse"), (SRSTE(), "masked")):
        with pytest.raises(ValueError, match=r"weight of its own for '0', got .*1\.weight"):
            attach(model, optimizer, method, storage=storage)


class Odd(nn.Linear):
    pass


BAD = {
    "model": (lambda m, o: ([], o, METHOD), {}, TypeError, "model to be a Module, got list"),
    "optimizer": (lambda m, o: (m, m, METHOD), {}, TypeError, "optimizer .* got Sequential"),
    "method": (lambda m, o: (m, o, RigL), {}, TypeError, "method .* got type"),
    "storage": (lambda m, o: (m, o, METHOD), {"storage": "csr"}, ValueError, "'csr'"),
    "projected": (lambda m, o: (m, o, SRSTE()), {"storage": "sparse"}, ValueError, "SRSTE"),
    "skip": (lambda m, o: (m, o, METHOD), {"skip": ["9"]}, ValueError, "modules .* got 9"),
    "one name": (lambda m, o: (m, o, METHOD), {"skip": "0"}, TypeError, r"try \['0'\]"),
    "seed": (lambda m, o: (m, o, METHOD), {"seed": -1}, ValueError, "seed .*-1"),
    "nothing": (
        lambda m, o: (m, o, METHOD),
        {"skip": ["0", "4", "6", "8"]},
        ValueError,
        "at least one",
    ),
    "foreign optimizer": (
        lambda m, o: (m, torch.optim.SGD(m[0].parameters(), 0.1), METHOD),
        {},
        ValueError,
        "hold the weight of '4'",
    ),
    "groups": (lambda m, o: (m, o, SRSTE(2, 16)), {}, ValueError, "16 divides in '0', got 4"),
    "bare layer": (
        lambda m, o: (m[4], torch.optim.SGD(m[4].parameters(), 0.1), METHOD),
        {"storage": "sparse"},
        ValueError,
        "inside a model",
    ),
    "subclass": (
        lambda m, o: (
            nn.Sequential(m[4], odd := Odd(72, 32)),
            torch.optim.SGD([m[4].weight, *odd.parameters()], 0.1),
            METHOD,
        ),
        {"storage": "sparse"},
        ValueError,
        "'1' to be .* got Odd",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_and_changes_nothing(case):
    make, options, error, message = BAD[case]
    model = tiny_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = make(model, optimizer)
    with pytest.raises(error, match=message):
        attach(*arguments, **options)
    assert not optimizer._optimizer_step_pre_hooks and type(model[4]) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for step, _ in enumerate(train(model, optimizer)):
        assert step < 20


def test_one_method_at_a_time_and_detaching_twice_is_once():
    model, optimizer, attachment = attached()
    with pytest.raises(ValueError, match=r"without a method, got one with RigL"):
        attach(model, optimizer, SET(0.3))
    attachment.detach()
    attachment.detach()
    with pytest.raises(InterruptedError), attach(model, optimizer, DenseTraining()):
        raise InterruptedError
    attach(model, optimizer, DenseTraining()).detach()


def test_refuses_a_closure():
    model, optimizer, _ = attached()
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step(lambda: model(torch.ones(2, 4, 6, 6).double()).sum())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "step, generator and masks"),
        ([], "step, generator and masks"),
        ({"masks": {}}, "masks of .* got {}"),
        ({"masks": {"0": torch.ones(2)}}, "got {'0': "),
    ],
)
def test_refuses_a_foreign_state(state, message):
    _, _, attachment = attached()
    before = attachment.state_dict()
    if isinstance(state, dict) and state:
        state = before | state
    with pytest.raises(ValueError, match=message):
        attachment.load_state_dict(state)
    assert attachment.step == 0 and attachment.masks().keys() == before["masks"].keys()


def test_seeds_draw_masks_alone():
    """Same seed, same masks, whatever else has been drawn; the global generator is not touched."""
    before = torch.get_rng_state()
    first = attached(seed=3)[2].masks()
    torch.rand(5)
    second, other = attached(seed=3)[2].masks(), attached(seed=4)[2].masks()
    torch.set_rng_state(before)
    attached(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())
    assert not torch.equal(first["4"], other["4"])


def test_density_counts_active_weights():
    _, _, attachment = attached()
    masks = attachment.masks().values()
    share = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    assert attachment.density() == share == pytest.approx(0.3, abs=1e-3)
    assert attached(DenseTraining())[2].density() == 1.0


def test_optimizer_state_from_before_follows_into_sparse_storage():
    """Momentum gathered densely goes on with the weights that stay."""
    model = tiny_network()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    next(train(model, optimizer))
    dense = optimizer.state[model[4].weight]["exp_avg"].clone()
    attachment = attach(model, optimizer, StaticSparse(0.3), storage="sparse")
    kept = optimizer.state[model[4].values]["exp_avg"]
    assert torch.equal(kept, dense[attachment.masks()["4"]])
