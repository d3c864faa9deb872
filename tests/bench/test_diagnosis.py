"""Diagnosis: real sparsity is told from zeros, and a pattern from chance."""

import pytest
import torch
from torch import nn

from gossamer import diagnose
from gossamer.layers import PackedLinear, SparseConv2d, SparseLinear
from gossamer.patterns import NM
from gossamer.training import StaticSparse, attach, nm_mask


def with_zeros(mask: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(mask.shape[1], mask.shape[0])
    with torch.no_grad():
        layer.weight.fill_(1.0).mul_(mask)
    return layer


def tiles(rows: int, columns: int) -> torch.Tensor:
    grid = torch.rand(32 // rows, 32 // columns, generator=torch.Generator().manual_seed(1)) < 0.5
    return grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


RANDOM = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(32)[:, None] % 3 > 0


@pytest.mark.parametrize(
    ("mask", "pattern"),
    [
        (torch.ones(32, 32), "dense"),
        (torch.zeros(32, 32), "empty"),
        (RANDOM < 0.3, "unstructured"),
        (ROWS.expand(32, 32), "output channels"),
        (ROWS.T.expand(32, 32), "input channels"),
        (tiles(8, 8), "block 8x8"),
        (tiles(4, 1), "block 4x1"),
        (nm_mask(RANDOM, 2, 4), "2:4"),
        (nm_mask(RANDOM, 1, 16), "1:16"),
    ],
)
def test_the_most_regular_pattern_is_named(mask, pattern):
    (layer,) = diagnose(with_zeros(mask)).layers
    assert layer.pattern == pattern
    assert layer.simulated is (pattern != "dense")
    assert layer.density == pytest.approx(float(mask.double().mean()))
    assert layer.dead_outputs == int((mask.sum(1) == 0).sum())
    assert layer.dead_inputs == int((mask.sum(0) == 0).sum())


def test_the_same_zeros_are_real_in_a_sparse_layer():
    dense = with_zeros(RANDOM < 0.3)
    model = nn.Sequential(dense, SparseLinear.from_dense(dense), PackedLinear.from_dense(dense))
    found = diagnose(model)
    assert [layer.simulated for layer in found.layers] == [True, False, False]
    assert [layer.kernel for layer in found.layers] == ["dense", "sparse", "sparse"]
    assert len({layer.density for layer in found.layers}) == 1
    assert found.simulated and not diagnose(model[1:]).simulated


def test_convolutions_and_packed_patterns():
    conv = nn.Conv2d(8, 8, 3)
    with torch.no_grad():
        conv.weight[:, ::2] = 0
    dense, stored = diagnose(nn.Sequential(conv, SparseConv2d.from_dense(conv))).layers
    assert (dense.pattern, dense.density, dense.dead_inputs) == ("input channels", 0.5, 4)
    assert (stored.kernel, stored.density) == ("sparse", 0.5)
    packed = PackedLinear.from_dense(with_zeros(nm_mask(RANDOM, 2, 4)), NM(2, 4))
    assert diagnose(packed).layers[0].pattern == "2:4"


def test_masks_are_believed_before_values():
    """A weight that is zero by accident is active; one that a mask drops is not."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, StaticSparse(0.5, "uniform"), skip=["2"]) as attachment:
        with torch.no_grad():
            model[0].weight.zero_()
        assert diagnose(model).collapsed == ("0",)
        found = diagnose(model, attachment.masks())
        assert found.collapsed == () and found.layers[0].density == 0.5
        assert found.density == pytest.approx((128 + 32) / 288)


def test_a_model_without_layers_is_dense():
    found = diagnose(nn.ReLU())
    assert (found.layers, found.density, found.simulated, found.collapsed) == ((), 1.0, False, ())


@pytest.mark.parametrize(
    ("model", "masks", "kind", "message"),
    [
        ("model", None, TypeError, "expected model to be an nn.Module, got str"),
        (nn.Linear(2, 2), {"x": torch.ones(2, 2) > 0}, ValueError, "convolution layers, got 'x'"),
        (nn.Linear(2, 2), {"": torch.ones(2, 3) > 0}, ValueError, r"bool \[2, 2\], got .*\[2, 3\]"),
        (nn.Linear(2, 2), {"": torch.ones(2, 2)}, ValueError, r"to be bool .* torch.float32"),
    ],
)
def test_bad_input_is_refused(model, masks, kind, message):
    with pytest.raises(kind, match=message):
        diagnose(model, masks)
