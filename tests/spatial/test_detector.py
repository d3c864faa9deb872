"""The detector reads points through pillars alone, and learns."""

from dataclasses import replace

import pytest
import torch

from gossamer.data.lidar import RANGE, lidar_scene
from gossamer.spatial import DSVTConfig, Stage
from gossamer.spatial.boxes import Boxes
from gossamer.spatial.detector import DetectorConfig, PillarDetector

PLAIN = DetectorConfig(RANGE, pillar=1.0, classes=3, channels=16, width=8)
BACKBONE = DSVTConfig(
    (40, 40, 1), channels=16, heads=2, hidden=16, stages=(Stage((12, 12, 1), 1, 24),)
)


def detector(config: DetectorConfig) -> PillarDetector:
    torch.manual_seed(0)
    return PillarDetector(config)


@pytest.mark.parametrize("backbone", [None, BACKBONE])
def test_scenes_and_the_order_of_points_do_not_matter(backbone):
    model = detector(replace(PLAIN, backbone=backbone)).eval()
    clouds = [lidar_scene(seed, azimuths=90).points for seed in range(2)]
    together = model(clouds).heat
    shuffled = [cloud[torch.randperm(len(cloud))] for cloud in clouds]
    torch.testing.assert_close(model(shuffled).heat, together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(clouds[1:]).heat[0], together[1], rtol=1e-4, atol=1e-4)


def test_pillars_without_points_are_zero_and_those_with_some_the_maximum():
    model = detector(PLAIN).eval()
    cloud = lidar_scene(0, azimuths=90).points
    voxels = model.pillars([cloud])
    assert voxels.shape == (40, 40, 1) and voxels.density() < 0.6
    assert bool((voxels.features >= 0).all())
    beyond = torch.cat([cloud, torch.tensor([[99.0, 0.0, 0.0], [torch.nan] * 3])])
    assert torch.equal(model.pillars([beyond]).features, voxels.features)


@pytest.mark.parametrize("backbone", [None, BACKBONE])
def test_it_overfits_one_scene(backbone):
    model = detector(replace(PLAIN, backbone=backbone)).train()
    scene = lidar_scene(3, azimuths=180)
    truth = [Boxes(scene.boxes, scene.labels)]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        loss = model.head.loss(model([scene.points]), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_channels_must_agree():
    with pytest.raises(ValueError, match="a backbone of 8 channels, got 16"):
        replace(PLAIN, channels=8, backbone=BACKBONE)
