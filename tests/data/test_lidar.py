"""Scenes: points lie on what they hit, nothing shines through, and the noise is what is said."""

import pytest
import torch

from gossamer.data import lidar
from gossamer.data.lidar import RANGE, SENSOR, lidar_scene


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lidar, "NOISE", 0.0)
    monkeypatch.setattr(lidar, "DROP_OUT", 0.0)


def frame(points: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Points from the box's centre, along its axes."""
    offset = points - box[:3]
    cosine, sine = box[6].cos(), box[6].sin()
    along = offset[:, 0] * cosine + offset[:, 1] * sine
    across = offset[:, 1] * cosine - offset[:, 0] * sine
    return torch.stack([along, across, offset[:, 2]], 1)


def test_points_lie_on_the_ground_or_on_objects_and_the_hits_are_counted(clean, monkeypatch):
    monkeypatch.setattr(lidar, "LEAST_POINTS", 0)
    for seed in range(6):
        scene = lidar_scene(seed)
        low = (scene.points[:, 2] + SENSOR).abs() < 1e-4
        free = ~low
        for box, label, hits in zip(scene.boxes, scene.labels, scene.hits, strict=True):
            place = frame(scene.points, box).abs()
            near = ~low & (place <= box[3:6] / 2 + 1e-3).all(1)
            if label == 1:  # upright, and its hull the cylinder
                radius = place[near, :2].norm(dim=1)
                torch.testing.assert_close(radius, box[4].expand_as(radius) / 2, rtol=0, atol=1e-3)
            if label == 0:  # on one of its faces
                gap = (place[near] - box[3:6] / 2).abs().amin(1)
                assert bool((gap < 1e-3).all())
            assert abs(int(near.sum()) - int(hits)) <= 2  # a ray may touch the ground beneath
            free &= ~near
        assert not bool(free.any())


def test_nothing_is_seen_through_an_object(clean):
    """Each ray returns once: directions are all different, and blocked ground is not there."""
    scene = next(each for each in map(lidar_scene, range(9)) if 0 in each.labels)
    angles = torch.stack(
        [
            torch.atan2(scene.points[:, 1], scene.points[:, 0]),
            torch.atan2(scene.points[:, 2], scene.points[:, :2].norm(dim=1)),
        ],
        1,
    )
    assert len((angles * 1e4).round().unique(dim=0)) == len(scene.points)
    car = scene.boxes[(scene.labels == 0).nonzero()[0, 0]]
    ground = scene.points[(scene.points[:, 2] + SENSOR).abs() < 1e-4]
    behind = car[3:5].norm() / 2 + 0.3  # the sensor is little higher than a car: long shadows
    shadow = car[:2] * (1 + behind / car[:2].norm())
    assert float((ground[:, :2] - shadow).norm(dim=1).min()) > 0.2


def test_objects_do_not_touch_and_labels_are_visible():
    kinds = set()
    for seed in range(20):
        scene = lidar_scene(seed)
        assert len(scene.boxes) <= 15 and bool((scene.hits >= 5).all())
        centre, radius = scene.boxes[:, :2], scene.boxes[:, 3:5].norm(dim=1) / 2
        gaps = torch.cdist(centre, centre) - radius - radius[:, None]
        gaps.fill_diagonal_(1.0)
        assert float(gaps.min()) >= 0.29
        torch.testing.assert_close(
            scene.boxes[:, 2] - scene.boxes[:, 5] / 2, torch.full((len(centre),), -SENSOR)
        )
        assert bool((scene.points[:, :2].abs() <= RANGE[3]).all())
        kinds |= set(scene.labels.tolist())
    assert kinds == {0, 1, 2}


def test_noise_and_drop_out_are_as_stated(monkeypatch):
    noisy = lidar_scene(2)
    monkeypatch.setattr(lidar, "DROP_OUT", 0.0)
    whole = lidar_scene(2)
    monkeypatch.setattr(lidar, "NOISE", 0.0)
    exact = lidar_scene(2)
    assert len(noisy.points) / len(whole.points) == pytest.approx(0.9, abs=0.01)
    common = min(len(whole.points), len(exact.points)) // 4  # the border may drop other points
    error = whole.points[:common].norm(dim=1) - exact.points[:common].norm(dim=1)
    assert float(error.std()) == pytest.approx(0.02, abs=0.002)


def test_a_scene_is_its_seed():
    first, again, other = lidar_scene(7), lidar_scene(7), lidar_scene(8)
    assert torch.equal(first.points, again.points) and torch.equal(first.boxes, again.boxes)
    assert first.points.shape != other.points.shape or not torch.equal(first.points, other.points)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="beams and azimuths >= 1, got 0 and 720"):
        lidar_scene(0, beams=0)
