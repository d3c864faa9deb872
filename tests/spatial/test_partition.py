"""Windows and sets: nothing crosses a window, every voxel appears, orders are what they say."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.spatial import set_partition, window_partition

SHAPE = (20, 17, 5)


def coords_of(count: int, seed: int, scenes: int = 2) -> Tensor:
    x, y, z = SHAPE
    cells = torch.randperm(scenes * x * y * z, generator=torch.Generator().manual_seed(seed))
    cells = cells[:count]
    parts = cells // (x * y * z), cells // (x * y) % z, cells // x % y, cells % x
    return torch.stack(parts, 1)


partitions = st.tuples(
    st.sampled_from([(6, 6, 5), (4, 3, 2), (24, 24, 1), (1, 1, 1)]),
    st.sampled_from([(0, 0, 0), (1, 1, 1), (1, 0, 0)]),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), partitions, st.sampled_from([1, 5, 24, 36]), st.integers(0, 99))
def test_sets_are_windows_dealt_out(count, partition, size, seed):
    (window, shift), coords = partition, coords_of(count, seed)
    windows = window_partition(coords, SHAPE, window, shift)
    members: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
    for number, (scene, *place) in enumerate(coords.tolist()):
        moved = [at + by for at, by in zip(place, shift[::-1], strict=True)]
        own = tuple(at // wide for at, wide in zip(moved, window[::-1], strict=True))
        inner = [at % wide for at, wide in zip(moved, window[::-1], strict=True)]
        assert windows.inner[number].tolist() == inner
        members[scene, *own].add(number)
    by_id: defaultdict[int, set[int]] = defaultdict(set)
    for number, own in enumerate(windows.ids.tolist()):
        by_id[own].add(number)
    assert sorted(map(sorted, by_id.values())) == sorted(map(sorted, members.values()))

    rotated = set_partition(windows, size)
    for sets, order in ((rotated.y_major, (1, 2, 0)), (rotated.x_major, (2, 1, 0))):
        sets.validate()
        dealt: defaultdict[int, list[list[int]]] = defaultdict(list)
        for row, hidden in zip(sets.indices, sets.repeated, strict=True):
            assert len(windows.ids[row].unique()) == 1  # never across windows
            dealt[int(windows.ids[row[0]])].append(row[~hidden].tolist())
        assert dealt.keys() == by_id.keys()
        for own, lists in dealt.items():
            ranked = [token for tokens in lists for token in tokens]
            keys = windows.inner[ranked][:, list(order)].tolist()
            assert keys == sorted(keys) and set(ranked) == by_id[own]
            lengths = [len(tokens) for tokens in lists]
            assert len(lists) == -(-len(ranked) // size)
            assert max(lengths) - min(lengths) <= 1 and max(lengths) <= size


def test_the_order_of_voxels_does_not_matter():
    coords = coords_of(300, 0)
    order = torch.randperm(300)
    first = set_partition(window_partition(coords, SHAPE, (6, 6, 5)), 7)
    second = set_partition(window_partition(coords[order], SHAPE, (6, 6, 5)), 7)
    for name in ("y_major", "x_major"):
        a, b = getattr(first, name), getattr(second, name)
        assert torch.equal(coords[a.indices], coords[order][b.indices])
        assert torch.equal(a.repeated, b.repeated)


def test_offsets_are_measured_from_the_centre():
    coords = torch.tensor([[0, 0, 0, 0], [0, 4, 5, 5]])
    flat = window_partition(coords, SHAPE, (6, 4, 1)).offsets()
    assert flat.tolist() == [[-3.0, -2.0], [2.0, -1.0]]
    high = window_partition(coords, SHAPE, (6, 4, 5), (1, 1, 0)).offsets()
    assert high.tolist() == [[-2.0, -1.0, -2.5], [-3.0, 0.0, 1.5]]


def test_scenes_do_not_share_windows():
    coords = torch.tensor([[0, 0, 3, 3], [1, 0, 3, 3], [2, 0, 3, 3]])
    assert len(window_partition(coords, SHAPE, (24, 24, 5)).ids.unique()) == 3


GOOD: dict[str, Any] = {"coords": coords_of(9, 0), "shape": SHAPE, "window": (6, 6, 1)}
BAD_INPUT: list[tuple[dict[str, Any], str]] = [
    ({"coords": GOOD["coords"].int()}, r"coords int64 \[N, 4\], got torch.int32"),
    ({"coords": GOOD["coords"][:, :3]}, r"got torch.int64 \[9, 3\]"),
    ({"window": (6, 6)}, "window to be three integers >= 1"),
    ({"window": (6, 0, 1)}, "window to be three integers >= 1"),
    ({"shift": (-1, 0, 0)}, "shift to be three integers >= 0"),
    ({"shift": (7, 0, 0)}, r"shift <= window, got \(7, 0, 0\)"),
    ({"shape": (4, 17, 5)}, r"inside \(x, y, z\) = \(4, 17, 5\), got up to"),
    ({"coords": torch.tensor([[-1, 0, 0, 0]])}, "down to"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, message = row
    window_partition(**GOOD)
    with pytest.raises(ValueError, match=message):
        window_partition(**(GOOD | changes))
