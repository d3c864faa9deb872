"""Overlap of rotated boxes against a fine raster and exact cases; average precision by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.spatial.boxes import Boxes, average_precision, bev_iou, corners


def box(x: float = 0, y: float = 0, length: float = 4, width: float = 2, yaw: float = 0) -> Tensor:
    return torch.tensor([[x, y, 0.0, length, width, 1.0, yaw]])


def inside(points: Tensor, one: Tensor) -> Tensor:
    """By half planes, from the corners."""
    ring = corners(one)[0].double()
    result = torch.ones(points.shape[:-1], dtype=torch.bool)
    for start, end in zip(ring, ring.roll(-1, 0), strict=True):
        edge, off = end - start, points - start
        result &= edge[0] * off[..., 1] - edge[1] * off[..., 0] >= 0
    return result


sizes = st.floats(1.5, 5)
places = st.floats(-2, 2)
yaws = st.floats(-4, 4)
boxes = st.builds(box, places, places, sizes, sizes, yaws)


@settings(max_examples=40, deadline=None)
@given(boxes, boxes)
def test_overlap_is_that_of_a_raster(first, second):
    side = torch.linspace(-6, 6, 240, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    a, b = inside(points, first), inside(points, second)
    raster = float((a & b).sum() / (a | b).sum())
    found = bev_iou(first, second)
    assert float(found) == pytest.approx(raster, abs=0.06)
    assert float(bev_iou(second, first)) == pytest.approx(float(found), abs=1e-6)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (box(), 1.0),
        (box(yaw=torch.pi), 1.0),
        (box(yaw=torch.pi / 2), 4 / 12),
        (box(x=2), 4 / 12),
        (box(x=4), 0.0),
        (box(x=9, yaw=1), 0.0),
        (box(length=2, width=1), 2 / 8),
    ],
)
def test_exact_overlaps(second, expected):
    assert float(bev_iou(box(), second)) == pytest.approx(expected, abs=1e-6)


def test_all_pairs_and_none():
    many = torch.cat([box(x=x) for x in range(3)])
    assert bev_iou(many, many[:2]).shape == (3, 2)
    assert bev_iou(many[:0], many).shape == (0, 3) and bev_iou(many, many[:0]).shape == (3, 0)


def scene(xs: list[float], scores: list[float] | None = None, label: int = 0) -> Boxes:
    rows = torch.cat([box(x=x) for x in xs]) if xs else torch.zeros(0, 7)
    labels = torch.full((len(xs),), label)
    return Boxes(rows, labels, None if scores is None else torch.tensor(scores))


def test_average_precision_by_hand():
    """Hits and misses by score: 1 0 1 1 0, of 4 objects: (1 + 3/4 + 3/4) / 4."""
    truth = [scene([0, 10]), scene([0, 30])]
    found = [scene([0, 50, 10], [0.9, 0.8, 0.6]), scene([0, 90], [0.7, 0.1])]
    assert average_precision(found, truth, label=0) == pytest.approx((1 + 0.75 + 0.75) / 4)


def test_an_object_is_found_once_and_in_its_own_scene_and_class():
    truth = [scene([0]), scene([])]
    twice = [scene([0, 0.1], [0.9, 0.8]), scene([])]
    assert average_precision([twice[0], scene([], [])], truth, label=0) == 1.0
    elsewhere = [scene([], []), scene([0], [0.9])]
    assert average_precision(elsewhere, truth, label=0) == 0.0
    other = [scene([0], [0.9], label=1), scene([], [])]
    assert average_precision(other, truth, label=0) == 0.0
    assert average_precision(other, truth, label=1) != average_precision(other, truth, label=1)


def test_the_threshold_counts():
    truth, found = [scene([0])], [scene([2], [0.9])]  # overlap 1/3
    assert average_precision(found, truth, label=0) == 0.0
    assert average_precision(found, truth, label=0, threshold=0.3) == 1.0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"boxes \[M, 7\], got \[2, 5\]"):
        Boxes(torch.zeros(2, 5), torch.zeros(2))
    with pytest.raises(ValueError, match=r"labels \[2\], got \[1\]"):
        Boxes(torch.zeros(2, 7), torch.zeros(1))
    with pytest.raises(ValueError, match="as many scenes found as true, got 0, 1"):
        average_precision([], [scene([0])], label=0)
    with pytest.raises(ValueError, match="detections with scores"):
        average_precision([scene([0])], [scene([0])], label=0)
