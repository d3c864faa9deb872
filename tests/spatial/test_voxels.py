"""Voxels against a dictionary of cells."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.spatial import Voxels, voxelize

RANGE = (-1.0, -2.0, 0.0, 1.0, 2.0, 1.0)
SIZE = (0.5, 1.0, 0.5)


def cloud(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.rand(count, 4, generator=generator) - 2.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=3), st.integers(0, 99))
def test_every_point_is_in_its_cell_or_dropped(counts, seed):
    clouds = [cloud(count, seed + number) for number, count in enumerate(counts)]
    clouds[0] = torch.cat([clouds[0], torch.tensor([[0.1, 0.1, 0.1, 7.0]])])
    found = voxelize(clouds, voxel_size=SIZE, range=RANGE)
    cells: dict[tuple[int, ...], list[torch.Tensor]] = {}
    number = dropped = 0
    for scene, points in enumerate(clouds):
        for point in points:
            low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
            inside = bool(((point[:3] >= low) & (point[:3] < high)).all())
            place = ((point[:3] - low) / torch.tensor(SIZE)).floor().long().tolist()
            voxel = int(found.voxel_of[number])
            if inside:
                cells.setdefault((scene, *place[::-1]), []).append(point)
                assert found.voxels.coords[voxel].tolist() == [scene, *place[::-1]]
            else:
                assert voxel == -1
            dropped += not inside
            number += 1
    assert found.dropped == dropped and found.voxels.shape == (4, 4, 2)
    assert [tuple(row) for row in found.voxels.coords.tolist()] == sorted(cells)
    for row, cell in enumerate(sorted(cells)):
        assert int(found.counts[row]) == len(cells[cell])
        torch.testing.assert_close(found.voxels.features[row], torch.stack(cells[cell]).mean(0))


@pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
def test_the_order_of_points_does_not_matter(reduce):
    points = cloud(300, 0)
    first = voxelize(points, voxel_size=SIZE, range=RANGE, reduce=reduce)
    second = voxelize(points[torch.randperm(300)], voxel_size=SIZE, range=RANGE, reduce=reduce)
    assert torch.equal(first.voxels.coords, second.voxels.coords)
    torch.testing.assert_close(first.voxels.features, second.voxels.features)


def test_points_that_are_not_finite_are_dropped_and_counted():
    points = torch.tensor([[0.1, 0.1, 0.1], [torch.nan, 0, 0], [0, torch.inf, 0], [9, 9, 9]])
    found = voxelize(points, voxel_size=SIZE, range=RANGE)
    assert found.dropped == 3 and found.voxel_of.tolist() == [0, -1, -1, -1]
    assert bool(found.voxels.features.isfinite().all())


def test_a_point_just_below_the_upper_face_is_in_the_last_cell_or_outside():
    """0.1 does not divide 0.3 in binary: what rounds up to a cell that is not there is dropped."""
    edge = torch.nextafter(torch.tensor(0.3), torch.tensor(0.0))
    points = torch.tensor([[float(edge), 0.05, 0.05], [0.0, 0.0, 0.0]])
    found = voxelize(points, voxel_size=(0.1, 0.1, 0.1), range=(0, 0, 0, 0.3, 0.3, 0.1))
    assert int(found.voxels.coords[:, 3].max()) < found.voxels.shape[0]


def test_dense_puts_features_at_their_cells():
    coords = torch.tensor([[0, 0, 1, 2], [1, 0, 3, 0]])
    voxels = Voxels(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), coords, (4, 5, 1), 2)
    dense = voxels.dense()
    assert dense.shape == (2, 2, 1, 5, 4) and float(dense.sum()) == 10.0
    assert dense[0, :, 0, 1, 2].tolist() == [1.0, 2.0]
    assert dense[1, :, 0, 3, 0].tolist() == [3.0, 4.0]


POINTS = torch.zeros(2, 3) + 0.1
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"points": []}, ValueError, "an empty sequence"),
    ({"points": POINTS[0]}, ValueError, r"points \[P, 3 or more\].* got \[3\]"),
    ({"points": [POINTS, cloud(2, 0)]}, ValueError, r"equally wide, got \[2, 4\]"),
    ({"points": POINTS.int()}, TypeError, "floating-point points, got torch.int32"),
    ({"points": POINTS + 10}, ValueError, "a point inside .* got none of 2"),
    ({"points": POINTS[:0]}, ValueError, "got none of 0"),
    ({"range": (0, 0, 0, 1, 1)}, ValueError, "lower and an upper corner"),
    ({"range": (0, 0, 1, 1, 1, 1)}, ValueError, "lower and an upper corner"),
    ({"voxel_size": (0.5, 0, 1)}, ValueError, "three positive sizes"),
    (
        {"voxel_size": (0.3, 1.0, 0.5)},
        ValueError,
        r"divide the range, got 2 / 0.3 = 6.66667",
    ),
    ({"reduce": "median"}, ValueError, "one of mean, max, sum, got 'median'"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, error, message = row
    good: dict[str, Any] = {"points": POINTS, "voxel_size": SIZE, "range": RANGE}
    voxelize(**good)
    with pytest.raises(error, match=message):
        voxelize(**(good | changes))


def test_wrong_voxels_are_named():
    with pytest.raises(ValueError, match=r"coords \[N, 4\], got \[2, 3\] and \[1, 4\]"):
        Voxels(torch.zeros(2, 3), torch.zeros(1, 4).long(), (1, 1, 1))
    with pytest.raises(TypeError, match=r"coords to be int64, got torch.float32"):
        Voxels(torch.zeros(1, 3), torch.zeros(1, 4), (1, 1, 1))
    with pytest.raises(ValueError, match="shape to be three integers >= 1"):
        Voxels(torch.zeros(1, 3), torch.zeros(1, 4).long(), (1, 0, 1))
