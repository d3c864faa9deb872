"""The backbone: which windows each block uses, which voxels can reach which, what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gossamer.spatial import DSVT, DSVTConfig, Stage, Voxels, window_partition

SHAPE = (30, 24, 1)
STAGE = Stage((6, 6, 1), blocks=2, set_size=5)
CONFIG = DSVTConfig(SHAPE, channels=16, heads=2, hidden=16, stages=(STAGE,), shift=(3, 3, 0))


def scene(count: int = 200, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Voxels:
    x, y, z = shape
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(2 * x * y * z, generator=generator)[:count]
    parts = cells // (x * y * z), cells // (x * y) % z, cells // x % y, cells % x
    return Voxels(torch.randn(count, 16, generator=generator), torch.stack(parts, 1), shape, 2)


def make(config: DSVTConfig) -> DSVT:
    torch.manual_seed(0)
    return DSVT(config).eval()


def test_one_block_never_crosses_its_windows():
    """Poison one window: everything outside it comes out bit-identical, everything inside NaN."""
    voxels = scene()
    model = make(replace(CONFIG, stages=(replace(STAGE, blocks=1),)))
    clean = model(voxels).features
    ids = window_partition(voxels.coords, SHAPE, STAGE.window).ids
    for window in ids.unique()[::3]:
        features = voxels.features.masked_fill((ids == window)[:, None], torch.nan)
        found = model(replace(voxels, features=features)).features
        assert torch.equal(found[ids != window], clean[ids != window])
        assert bool(found[ids == window].isnan().any(1).any())


def test_the_second_block_uses_larger_shifted_windows():
    """A voxel's influence ends at the windows of block two, and of block one around them."""
    voxels = scene(400)
    model = make(CONFIG)
    small = window_partition(voxels.coords, SHAPE, (6, 6, 1)).ids
    large = window_partition(voxels.coords, SHAPE, (12, 12, 1), (3, 3, 0)).ids
    features = voxels.features.clone().requires_grad_()
    output = model(replace(voxels, features=features)).features
    for voxel in (0, 57, 333):
        (grad,) = torch.autograd.grad(output[voxel].square().sum(), features, retain_graph=True)
        reached = grad.abs().sum(1) > 0
        allowed = torch.isin(small, small[large == large[voxel]])
        assert not bool((reached & ~allowed).any())
        assert bool(reached[small != small[voxel]].any())


def test_the_order_of_voxels_does_not_matter():
    voxels, model = scene(), make(CONFIG)
    order = torch.randperm(200)
    shuffled = replace(voxels, features=voxels.features[order], coords=voxels.coords[order])
    torch.testing.assert_close(model(shuffled).features, model(voxels).features[order])


def test_scenes_of_a_batch_do_not_meet():
    voxels, model = scene(), make(CONFIG)
    first = voxels.coords[:, 0] == 0
    alone = Voxels(voxels.features[first], voxels.coords[first], SHAPE, 1)
    torch.testing.assert_close(model(alone).features, model(voxels).features[first])


def test_positions_are_of_the_blocks_own_windows():
    """The released code's pairing is another function, from the first block on."""
    voxels, model = scene(), make(CONFIG)
    plan = model.plan(voxels)
    block = model.stages[0][1]
    features = torch.randn(200, 16)
    (stage,) = plan
    own = block(features, stage.sets[1], (stage.offsets[1],) * 2)
    crossed = block(features, stage.sets[1], stage.offsets)
    assert not torch.allclose(own, crossed)
    seen: list[torch.Tensor] = []
    for layer in (*model.stages[0][0].positions, *block.positions):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(voxels)
    expected = [0, 0, 1, 1]
    assert all(torch.equal(a, stage.offsets[b]) for a, b in zip(seen, expected, strict=True))
    seen.clear()
    upstream = make(replace(CONFIG, upstream_pos=True))
    for each in upstream.stages[0]:
        for layer in each.positions:
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    upstream(voxels)
    assert all(torch.equal(a, stage.offsets[b]) for a, b in zip(seen, [0, 1, 0, 1], strict=True))


def test_stages_shrink_the_grid():
    """DSVT-Voxel's four heights, on a small grid."""
    stages = tuple(replace(each, set_size=6) for each in DSVTConfig.voxel().stages)
    shape = (40, 36, 32)
    config = DSVTConfig(shape, channels=16, heads=2, hidden=16, stages=stages)
    model = make(config)
    voxels = scene(500, shape=shape)
    found = model(voxels)
    assert found.shape == (40, 36, 1)
    pillars = voxels.coords[:, [0, 2, 3]].unique(dim=0)
    assert torch.equal(found.coords[:, [0, 2, 3]], pillars)
    assert bool(found.features.isfinite().all())


def test_it_trains():
    model = make(CONFIG).train()
    voxels = scene()
    target = torch.randn(200, 16)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = (model(voxels).features - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_precision_and_state_survive():
    model, voxels = make(CONFIG), scene()
    twin = DSVT(CONFIG).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(voxels).features, model(voxels).features)
    exact = model.double()(replace(voxels, features=voxels.features.double())).features
    torch.testing.assert_close(twin(voxels).features.double(), exact, rtol=1e-4, atol=1e-4)


BAD_CONFIG: list[tuple[dict[str, Any], str]] = [
    ({"shape": (8, 8, 32)}, r"fewer voxels along z, got \(8, 8, 32\); try the reverse"),
    ({"stages": ()}, "stages, all but the last with a pool"),
    ({"stages": (STAGE, STAGE)}, "stages, all but the last with a pool"),
    ({"stages": (replace(STAGE, pool=(1, 1, 1)),)}, r"no pool after the last stage, got \(1"),
    ({"orders": ("y", "z")}, "a pair of orders out of"),
    ({"orders": ("y",)}, "a pair of orders out of"),
    ({"shift": (-1, 0, 0)}, "shift to be three integers >= 0"),
]


@pytest.mark.parametrize("row", BAD_CONFIG, ids=lambda row: str(row[0]))
def test_bad_configurations_are_named(row):
    with pytest.raises(ValueError, match=row[1]):
        replace(CONFIG, **row[0])


def test_bad_stages_are_named():
    with pytest.raises(ValueError, match="blocks and set_size >= 1, got 0 and 36"):
        Stage(blocks=0)
    with pytest.raises(ValueError, match="window to be three integers >= 1"):
        Stage((0, 1, 1))


def test_bad_voxels_are_named():
    model, voxels = make(CONFIG), scene()
    with pytest.raises(ValueError, match=r"shape \(30, 24, 1\), got \(24, 30, 1\)"):
        model(Voxels(voxels.features, voxels.coords, (24, 30, 1), 2))
    with pytest.raises(ValueError, match="16 channels, got 8"):
        model(replace(voxels, features=voxels.features[:, :8]))
    one = Voxels(voxels.features[:1], voxels.coords[:1], SHAPE, 2)
    assert model(one).features.shape == (1, 16)
    with pytest.raises(ValueError, match="at least 2 voxels, got 1"):
        model.train()(one)
