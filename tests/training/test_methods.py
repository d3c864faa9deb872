"""The baselines' rules against their papers, by hand."""

from math import cos, pi

import pytest
import torch

from gossamer.allocations import erk
from gossamer.patterns import NM, Block
from gossamer.testing.training import tiny_network, train
from gossamer.training import (
    SET,
    MagnitudeGradual,
    RigL,
    StaticSparse,
    Update,
    WeightState,
    attach,
)


def state(weight, mask, gradient=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor(mask, dtype=torch.bool)
    gradient = None if gradient is None else torch.tensor(gradient)
    return WeightState("fc", torch.tensor(weight), mask, generator, gradient)


def test_rigl_drops_the_smallest_and_grows_the_steepest():
    found = state(
        [[0.5, -0.1, 0.3, 0.0, 0.0, 0.0]], [[1, 1, 1, 0, 0, 0]], [[9.0, 2.0, 9.0, 1.0, -3.0, 0.5]]
    )
    kept, grown = RigL(0.5).exchange(found, count=3, drop=0.34)
    assert kept.tolist() == [[True, False, True, False, False, False]]
    assert grown.tolist() == [[False, False, False, False, True, False]]


def test_rigl_may_grow_what_it_dropped():
    found = state([[0.5, 0.1, 0.0]], [[1, 1, 0]], [[0.0, 5.0, 1.0]])
    kept, grown = RigL(0.5).exchange(found, count=2, drop=0.5)
    assert (kept.tolist(), grown.tolist()) == ([[True, False, False]], [[False, True, False]])


def test_rigl_schedule_is_the_paper_s():
    method = RigL(0.1)
    assert (method.every, method.alpha, method.allocation) == (100, 0.3, "erk")
    for step in (0, 100, 12_500, 24_900):
        fraction = 0.15 * (1 + cos(pi * step / 25_000))
        assert method.schedule(step) == Update(pytest.approx(fraction), None, True, True)
    assert [step for step in range(26_000) if method.schedule(step)][-1] == 24_900


def test_rigl_starts_from_random_masks_of_erk_size():
    model = tiny_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks = attach(model, optimizer, RigL(0.2)).masks()
    densities = erk({name: tuple(mask.shape) for name, mask in masks.items()}, 0.2)
    for name, mask in masks.items():
        assert int(mask.sum()) == round(densities[name] * mask.numel())


def test_a_dropped_weight_that_grows_again_starts_at_zero():
    model = tiny_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for storage in ("masked", "sparse"):
        with attach(model, optimizer, RigL(0.9, every=1, alpha=1.0), storage=storage):
            next(train(model, optimizer))
            layer = model[4]
            values = layer.weight if storage == "masked" else layer.values
            assert not values.any()  # all were dropped, and all but a tenth came back


def test_set_is_uniform_over_what_is_not_kept():
    weight = torch.arange(1.0, 11.0)[None]
    mask = [[1] * 5 + [0] * 5]
    counts = torch.zeros(10)
    for seed in range(2000):
        kept, grown = SET(0.5).exchange(state(weight.tolist(), mask, seed=seed), 5, 0.4)
        assert kept.tolist() == [[False, False, True, True, True, *[False] * 5]]
        assert int(grown.sum()) == 2
        counts += grown[0]
    expected = 2000 * 2 / 7
    assert (counts[[0, 1, 5, 6, 7, 8, 9]] - expected).abs().max() < 5 * expected**0.5
    assert not counts[2:5].any()


def test_gradual_pruning_follows_the_cube_and_never_grows():
    model = tiny_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    method = MagnitudeGradual(0.2, begin=2, until=11, every=3)
    attachment = attach(model, optimizer, method)
    before = attachment.masks()
    for step in train(model, optimizer):
        after = attachment.masks()
        assert all(bool((after[name] <= before[name]).all()) for name in after)
        if step in (2, 5, 8, 11):
            wanted = 0.2 + 0.8 * (1 - (step - 2) / 9) ** 3
            assert attachment.density() == pytest.approx(wanted, abs=1e-3)
        else:
            assert all(torch.equal(after[name], before[name]) for name in after)
        before = after
    assert attachment.density() == pytest.approx(0.2, abs=1e-3)


def test_gradual_pruning_reaches_its_density_whatever_the_interval():
    method = MagnitudeGradual(0.2, until=10, every=4)
    found = {step: method.schedule(step) for step in range(20)}
    assert [step for step, update in found.items() if update] == [0, 4, 8, 10]
    assert found[10] == Update(density=0.2)


@pytest.mark.parametrize("pattern", [NM(1, 4), Block(2, 4)])
def test_static_masks_have_their_pattern(pattern):
    model = tiny_network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    method = StaticSparse(0.25, "uniform", criterion="magnitude", pattern=pattern)
    attachment = attach(model, optimizer, method, skip=["8"])
    for mask in attachment.masks().values():
        pattern.from_mask(mask.movedim((0, 1), (-2, -1)))  # raises if it lacks the pattern
        assert pattern.density(mask.movedim((0, 1), (-2, -1))) == pytest.approx(0.25, abs=0.01)


def test_static_by_magnitude_keeps_the_largest_values():
    model = tiny_network()
    weight = model[4].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    attachment = attach(model, optimizer, StaticSparse(0.1, "uniform", criterion="magnitude"))
    mask = attachment.masks()["4"]
    assert torch.equal(model[4].weight[mask], weight[mask])
    assert weight[mask].abs().min() >= weight[~mask].abs().max()
