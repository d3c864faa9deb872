"""The probes: a hidden dense buffer is caught, honest work is not, and density is a curve."""

import pytest
import torch
from torch import nn

from gossamer.bench.probes import AllocationProbe, DensityTrace
from gossamer.training import RigL, StaticSparse, attach

SHAPE = (48, 32)
KNOWN = torch.zeros(48, 32)


def caught(run) -> list[str]:
    with AllocationProbe([SHAPE]) as probe:
        run()
    return [one.operator for one in probe.caught]


@pytest.mark.parametrize(
    ("run", "operators"),
    [
        (lambda: torch.zeros(48, 32), ["aten::zeros"]),
        (lambda: torch.zeros(32, 48), ["aten::zeros"]),
        (lambda: torch.zeros(48, 1, 32), ["aten::zeros"]),
        (lambda: torch.zeros(48 * 32), ["aten::zeros"]),
        (lambda: torch.ones(48, 2) @ torch.ones(2, 32), ["aten::mm"]),
        (lambda: torch.zeros(48, 32).clone(), ["aten::zeros", "aten::clone"]),
        (lambda: torch.zeros(48, 32).t().view(32, 48).add_(1), ["aten::zeros"]),
        (lambda: torch.zeros(48, 31), []),
        (lambda: torch.zeros(24, 64), []),
        (lambda: torch.zeros(4, 32) @ KNOWN.T, []),
        (lambda: KNOWN.T.contiguous(), ["aten::clone"]),
        (lambda: KNOWN.view(32, 48).mul_(2), []),
    ],
)
def test_only_new_memory_of_the_watched_shape_is_caught(run, operators):
    assert caught(run) == operators


def test_bytes_are_counted_by_operator():
    with AllocationProbe([SHAPE]) as probe:
        torch.zeros(10, dtype=torch.float64)
        torch.zeros(3, dtype=torch.uint8)
    assert probe.nbytes == {"aten::zeros": 83}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_shape_that_everything_has_is_refused(shape):
    with pytest.raises(ValueError, match="expected at least one dimension above 1"):
        AllocationProbe([shape])


def traced(method, storage, steps=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with attach(model, optimizer, method, storage=storage, skip=["2"]) as attachment:
        trace = DensityTrace(attachment)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 20)).square().sum().backward()
            trace.record()
            optimizer.step()
        trace.record()
    return trace


def test_masks_hold_everything_densely_and_sparse_storage_nothing():
    masked = traced(StaticSparse(0.25), "masked")
    assert masked.peak_dense == ("weights", "gradients", "optimizer_state")
    stored = traced(StaticSparse(0.25), "sparse")
    assert stored.peak_dense == ("none",)
    assert stored.moments[-1].states == stored.moments[-1].active == stored.peak_density == 0.25


def test_moving_masks_explore_and_fixed_ones_do_not():
    fixed, moving = (
        traced(method, "sparse") for method in (StaticSparse(0.25), RigL(0.25, every=2, until=99))
    )
    assert fixed.exploration == 0.25 < moving.exploration < 0.75
    assert moving.mean_density == moving.peak_density == 0.25
