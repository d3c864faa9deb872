"""DSVT's evidence: its claims notice what they should, and the quick ones hold."""

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("skimage")
from gossamer.bench.timing import Samples
from gossamer.data.lidar import CLASSES
from gossamer.patterns import TokenSets
from gossamer.reproduce import dsvt, run
from gossamer.reproduce._dsvt_training import Arm, Size, _numbers, train_arms
from gossamer.spatial import RotatedSets, Voxels

SIZE = Size(seeds=2, scenes=3, steps=2, batch=2, test=2)


def few(count: int = 300) -> dict[str, Voxels]:
    cells = torch.randperm(40 * 40, generator=torch.Generator().manual_seed(0))[:count]
    coords = torch.stack([0 * cells, 0 * cells, cells // 40, cells % 40], 1)
    return {"few": Voxels(torch.zeros(count, 1), coords, (40, 40, 1))}


def broken(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Make `set_partition` return other sets along x."""
    right = dsvt.set_partition

    def wrong(windows, size):
        sets = right(windows, size)
        return RotatedSets(sets.y_major, change(sets.x_major))

    monkeypatch.setattr(dsvt, "set_partition", wrong)


def moved(sets: TokenSets) -> TokenSets:
    """A voxel in a set of another window."""
    indices = sets.indices.clone()
    indices[0, 0], indices[-1, 0] = sets.indices[-1, 0], sets.indices[0, 0]
    return replace(sets, indices=indices)


def unmasked(sets: TokenSets) -> TokenSets:
    return replace(sets, repeated=torch.zeros_like(sets.repeated))


@pytest.mark.parametrize("change", [moved, unmasked])
def test_wrong_sets_are_noticed(monkeypatch, change):
    assert dsvt._covered(few()).holds
    broken(monkeypatch, change)
    claim = dsvt._covered(few())
    assert not claim.holds and claim.ours > 0


def test_other_sets_than_the_loops_are_noticed(monkeypatch):
    good = dsvt._per_window(few(), 0)
    assert good.holds and good.ours < 1e-5
    broken(monkeypatch, moved)
    assert not dsvt._per_window(few(), 0).holds


def test_an_output_that_follows_the_order_is_noticed(monkeypatch):
    assert dsvt._order(few(), 0).holds
    forward = dsvt.DSVT.forward

    def ordered(self, voxels):
        found = forward(self, voxels)
        return replace(found, features=found.features + torch.arange(len(found.coords))[:, None])

    monkeypatch.setattr(dsvt.DSVT, "forward", ordered)
    assert not dsvt._order(few(), 0).holds


def test_attention_that_masks_all_voxels_is_noticed(monkeypatch):
    assert dsvt._apart(few(), 0).holds

    def masked(query, key, value, sets):
        owner = torch.empty(query.shape[1], dtype=torch.int64)
        owner[sets.indices] = torch.arange(len(sets.indices))[:, None].expand_as(sets.indices)
        scores = query @ key.mT
        return scores.masked_fill(owner[:, None] != owner, -torch.inf).softmax(-1) @ value

    monkeypatch.setattr(dsvt, "set_attention", masked)
    assert not dsvt._apart(few(), 0).holds


@pytest.mark.parametrize(
    ("times", "holds"),
    [
        ({"sets": 1.0, "padded": 2.0, "bucketed": 1.2}, [True, True]),
        ({"sets": 1.0, "padded": 1.9, "bucketed": 1.2}, [False, True]),
        ({"sets": 1.0, "padded": 2.0, "bucketed": 1.0}, [True, False]),
    ],
)
def test_times_are_compared(monkeypatch, times, holds):
    def timed(functions, **options):
        for function in functions.values():
            function()
        return {name: Samples((times.get(name, 9.0),)) for name in functions}

    monkeypatch.setattr(dsvt, "interleaved", timed)
    padded, bucketed, slots = dsvt._speed(few()["few"])
    assert [padded.holds, bucketed.holds] == holds
    assert 0 < float(slots.baseline) <= 1 and 0 < float(slots.ours) <= 1
    assert slots.holds == (float(slots.ours) >= 0.85)


def test_the_rivals_compute_what_they_stand_for():
    """Padded and bucketed windows are dense attention inside windows; plain is set attention."""
    voxels = few()["few"]
    query, key, value = torch.randn(3, 2, 300, 4)
    for windows, (sets, _) in dsvt._sets(voxels):
        whole = windows.ids[:, None] == windows.ids
        scores = (query @ key.mT / 2).masked_fill(~whole, -torch.inf)
        dense = scores.softmax(-1) @ value
        for buckets in (False, True):
            tables = dsvt._padded(windows.ids, buckets=buckets)
            torch.testing.assert_close(dsvt._windowed(query, key, value, tables), dense)
        torch.testing.assert_close(
            dsvt._plain(query, key, value, sets), dsvt.set_attention(query, key, value, sets)
        )
    bucketed, padded = (dsvt._padded(windows.ids, buckets=on) for on in (True, False))
    assert sum(table.numel() for table in bucketed) < padded[0].numel()


def arms(**means: float) -> dict[str, list[Arm]]:
    return {
        name.replace("_", " "): [Arm((mean - each,) * 3) for each in (-1.0, 1.0)]
        for name, mean in means.items()
    }


@pytest.mark.parametrize(
    ("means", "holds"),
    [
        ({"dsvt": 42.1, "not_rotated": 42.5, "convolutions": 40.0}, [True, True]),
        ({"dsvt": 41.9, "not_rotated": 41.0, "convolutions": 40.0}, [False, True]),
        ({"dsvt": 42.1, "not_rotated": 42.7, "convolutions": 40.0}, [True, False]),
    ],
)
def test_detectors_are_compared_by_their_means(means, holds):
    claims = list(dsvt._detection(arms(**means), SIZE))
    assert [claim.holds for claim in claims] == holds
    assert claims[0].ours == pytest.approx(means["dsvt"])


def test_arms_are_trained_alike_and_repeat():
    """One thread a run: how many run side by side changes nothing."""
    small = replace(SIZE, seeds=1)
    first = train_arms(small, 0)
    torch.set_num_threads(2)
    again = train_arms(small, 0)
    assert torch.get_num_threads() == 2
    assert list(first) == ["dsvt", "not rotated", "convolutions"]
    assert {name: str(runs) for name, runs in first.items()} == {
        name: str(runs) for name, runs in again.items()
    }
    assert all(len(runs[0].classes) == len(CLASSES) for runs in first.values())


def test_seeds_do_not_share_scenes():
    seen = [set(_numbers(dsvt.FULL.scenes, seed)) for seed in range(3)]
    assert not seen[0] & seen[1] and not seen[1] & seen[2]


@pytest.mark.slow
def test_quick_figures_are_those_claimed():
    evidence = run("dsvt", scale="quick", seed=0)
    assert evidence.holds
    covered, loop, order, apart = evidence.claims
    assert covered.ours == apart.ours == 0
    assert float(loop.ours) < 1e-5 and float(order.ours) < 1e-5
