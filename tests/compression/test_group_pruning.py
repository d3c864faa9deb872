"""Group pruning: the units of lowest score go, whole, and nothing else changes."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gossamer.compression import GroupPruner, reestimate_batch_norm, search_groups
from gossamer.compression import pattern_search as search
from gossamer.kernels import pack
from gossamer.schedules import Cubic


def network(width: int = 20, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.Conv2d(width, width, 3, groups=width),
        nn.Conv2d(width, 2 * width, 1),
        nn.Conv2d(2 * width, width, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 12),
        nn.Linear(12, 5),
    )


def oracle(weight: np.ndarray, group: int, sparsity: float) -> np.ndarray:
    """The mask by a plain loop over units."""
    units = []
    for begin in range(0, len(weight), group):
        for k in range(weight.shape[1]):
            block = weight[begin : begin + group, k]
            units.append((np.abs(block).sum() / len(block), begin, k))
    mask = np.ones(weight.shape, bool)
    for _, begin, k in sorted(units)[: int(len(units) * sparsity)]:
        mask[begin : begin + group, k] = False
    return mask


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 12),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.integers(0, 1000),
)
def test_masks_are_those_of_a_plain_loop(rows, columns, kernel, group, sparsity, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(columns, rows, kernel))
    masks = GroupPruner(sparsity, group, dense=()).decide(model)
    expected = oracle(model[0].weight.detach().double().numpy(), group, sparsity)
    assert np.array_equal(masks["0"].numpy(), expected)


def test_the_first_convolution_depthwise_ones_and_the_classifier_stay_dense():
    model = network()
    before = copy.deepcopy(model)
    pruner = GroupPruner(0.5, 4)
    masks = pruner.decide(model)
    assert list(masks) == ["2", "3", "6"]
    assert torch.equal(model[2].weight, before[2].weight)  # deciding changes nothing
    pruner.apply(model, masks)
    for name, value in model.state_dict().items():
        layer = name.split(".")[0]
        if name.endswith("weight") and layer in masks:
            assert torch.equal(value, before.state_dict()[name] * masks[layer])
            assert float((value == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
        else:
            assert torch.equal(value, before.state_dict()[name])


def test_whole_kernels_go_and_the_kernel_packs_groups():
    model = network(width=32)
    pruner = GroupPruner(0.6, 8)
    pruner.apply(model, pruner.decide(model))
    kernels = (model[3].weight == 0).flatten(2)
    assert torch.equal(kernels.any(-1), kernels.all(-1))
    assert pack(model[2].weight.detach().flatten(1)).support.panels.group == 8


def test_pruning_twice_is_pruning_once():
    model, pruner = network(), GroupPruner(0.5, 8)
    masks = pruner.decide(model)
    pruner.apply(model, masks)
    again = pruner.decide(model)
    assert all(torch.equal(masks[name], again[name]) for name in masks)


def test_a_smaller_last_group_is_scored_by_its_weights():
    layer = nn.Linear(2, 6, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]] * 4 + [[1.5, 3.0]] * 2))
    model = nn.Sequential(layer)
    mask = GroupPruner(0.5, 4, dense=()).decide(model)["0"]
    assert mask.tolist() == [[False, True]] * 4 + [[False, True]] * 2
    mask = GroupPruner(0.25, 4, dense=()).decide(model)["0"]
    assert mask.tolist() == [[False, True]] * 4 + [[True, True]] * 2  # 4 x 1.0 goes, not 2 x 1.5


def test_a_schedule_prunes_more_at_every_step():
    model = network()
    pruner = GroupPruner(Cubic(0.0, 0.6, steps=10), 4)
    kept = []
    for step in range(11):
        masks = pruner.decide(model, step=step)
        pruner.apply(model, masks)
        kept.append(sum(int(mask.sum()) for mask in masks.values()))
    total = sum(mask.numel() for mask in masks.values())
    assert kept[0] == total and kept == sorted(kept, reverse=True)
    assert kept[-1] / total == pytest.approx(0.4, abs=0.03)


def test_erk_keeps_small_layers_denser_at_the_same_total():
    model = network(width=32)
    masks = GroupPruner(0.8, 4, allocation="erk").decide(model)
    share = {name: float(mask.float().mean()) for name, mask in masks.items()}
    assert share["6"] > share["2"] > share["3"]
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept / sum(mask.numel() for mask in masks.values()) == pytest.approx(0.2, abs=0.02)


def test_scores_are_those_named():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [3.0, 0.0]]))  # l1: 6, 4; l2: 18, 16
    model = nn.Sequential(layer)
    gradient = {"0": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}  # 3, 4
    for score, kept in (("l1", 0), ("sensitivity", 1)):
        mask = GroupPruner(0.5, 2, score, dense=()).decide(model, gradient)["0"]
        assert mask[:, kept].all() and not mask[:, 1 - kept].any()
    with torch.no_grad():
        layer.weight[0, 1] = 5.0  # l1: 6, 5; l2: 18, 25
    assert GroupPruner(0.5, 2, "l2", dense=()).decide(model)["0"][:, 1].all()


def test_collected_gradients_are_the_mean_over_batches():
    model = network(width=8)
    pruner = GroupPruner(0.5, 4, "sensitivity")
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(5, (4,))) for _ in range(3)]

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    found = pruner.collect(model, batches, loss)
    assert all(weight.grad is None for weight in model.parameters())
    sum(loss(model, batch) / 3 for batch in batches).backward()
    torch.testing.assert_close(found["3"], model[3].weight.grad)
    masks = pruner.decide(model, found)
    scores = (model[3].weight * found["3"]).abs()
    assert scores[masks["3"]].sum() > 0.6 * scores.sum()


def test_statistics_are_the_mean_over_batches():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = copy.deepcopy(model[0].state_dict())
    batches = [torch.randn(8, 3, 4, 4) + i for i in range(3)]
    reestimate_batch_norm(model, batches)
    means = torch.stack([model[0](batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    assert (model.training, model[1].training, model[1].momentum) == (True, False, 0.1)
    assert torch.equal(model[0].weight, before["weight"])
    with pytest.raises(ValueError, match="got none"):
        reestimate_batch_norm(model, [])


def test_only_what_pruning_moves_is_moved():
    dense = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    dense[1].running_mean.copy_(torch.arange(4.0))
    batches = [torch.randn(8, 3, 4, 4) + 5]
    same, scaled = copy.deepcopy(dense), copy.deepcopy(dense)
    reestimate_batch_norm(same, batches, like=dense)
    torch.testing.assert_close(same[1].running_mean, dense[1].running_mean)
    torch.testing.assert_close(same[1].running_var, dense[1].running_var)
    with torch.no_grad():
        scaled[0].weight.mul_(3.0)
        moved = (scaled[0](batches[0]) - dense[0](batches[0])).mean((0, 2, 3))
    reestimate_batch_norm(scaled, batches, like=dense)
    torch.testing.assert_close(scaled[1].running_mean, dense[1].running_mean + moved)
    torch.testing.assert_close(scaled[1].running_var, 9 * dense[1].running_var)
    with pytest.raises(ValueError, match="batch norms of the model, got others"):
        reestimate_batch_norm(scaled, batches, like=nn.Sequential(nn.BatchNorm2d(3)))


def test_the_search_weighs_time_against_what_stays(monkeypatch):
    widths = set()
    times = {2: 1.3, 4: 1.08, 8: 1.0, 16: 0.99}

    def seconds(weight, columns):
        widths.add((weight.shape[0], columns))
        return times[next(calls)]

    model = network(width=32)
    for slack, chosen in ((0.0, 16), (0.1, 4), (1.0, 2)):
        calls = iter([2, 4, 8, 16] * 2)
        monkeypatch.setattr(search, "_seconds", seconds)
        found = search_groups(model, torch.zeros(2, 3, 9, 9), sparsity=0.5, slack=slack)
        assert {name: choice.group for name, choice in found.items()} == {"2": chosen, "6": chosen}
    assert widths == {(64, 2 * 25), (12, 2)}
    kept = list(found["2"].kept.values())
    assert kept == sorted(kept, reverse=True) and 0.5 < kept[-1] < kept[0] < 1
    assert not model[2]._forward_hooks


def test_the_search_times_the_kernel():
    model = network(width=16)
    found = search_groups(model, torch.zeros(1, 3, 9, 9), sparsity=0.5, groups=(1, 8))
    assert all(value > 0 for choice in found.values() for value in choice.seconds.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupPruner(1.0), r"sparsity in \[0, 1\), got 1.0"),
        (lambda: GroupPruner(math.nan), r"sparsity in \[0, 1\), got nan"),
        (lambda: GroupPruner(0.5, 0), "groups of at least 1, got 0"),
        (lambda: GroupPruner(0.5, {"a": 0}), "groups of at least 1"),
        (lambda: GroupPruner(0.5, score="l3"), "score to be one of l1, l2, sensitivity, got 'l3'"),
        (lambda: GroupPruner(0.5, allocation="x"), "allocation to be one of uniform, erk"),
        (lambda: GroupPruner(lambda step: 2.0).decide(network()), r"\[0, 1\), got 2.0"),
        (lambda: GroupPruner(0.5, score="sensitivity").decide(network()), "needs gradients"),
        (lambda: GroupPruner(0.5, dense=("x",)).decide(network()), "prunable layers, got 'x'"),
        (lambda: GroupPruner(0.5).decide(nn.Sequential(nn.Linear(2, 2))), "layers to prune"),
        (
            lambda: GroupPruner(0.5).collect(network(), [], lambda model, batch: batch),
            "batches to collect gradients from, got none",
        ),
        (lambda: search_groups(network(), torch.zeros(1), sparsity=1), r"\[0, 1\), got 1"),
        (lambda: search_groups(network(), torch.zeros(1), sparsity=0, groups=()), "at least 1"),
        (lambda: search_groups(network(), torch.zeros(1), sparsity=0, slack=-1), "slack of at"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
