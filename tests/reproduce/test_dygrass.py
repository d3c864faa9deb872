"""dyGRASS's evidence: its claims notice what they should, and the quick ones hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gossamer.data.graphs import delaunay
from gossamer.graphs import UpdateReport
from gossamer.reproduce import dygrass, run

SIZE = dygrass._Size(700, 1)


@pytest.fixture(scope="module")
def small():
    return dygrass._run(delaunay(700, seed=0), 0)


def test_the_exactness_claim_notices_another_walker(small, monkeypatch):
    assert dygrass._exactness(small, 0).holds
    walks = dygrass.random_walks

    def shifted(*args, impl="auto", **options):
        found = walks(*args, impl=impl, **options)
        return found if impl == "auto" else replace(found, walker=found.walker + 1)

    monkeypatch.setattr(dygrass, "random_walks", shifted)
    claim = dygrass._exactness(small, 0)
    assert not claim.holds and claim.ours == "2 of 3 results equal"


def test_the_quality_claims_notice_a_sparsifier_that_was_not_updated(small):
    rivals = dygrass.NO_UPDATE, dygrass.AT_RANDOM
    update, chance = dygrass._quality([small], SIZE, "", *rivals)
    assert update.holds and float(update.ours) < float(update.baseline)
    assert float(chance.ours) == float(update.ours)
    idle = replace(small, updated=small.sparse)
    assert not any(claim.holds for claim in dygrass._quality([idle], SIZE, "", *rivals))


def test_a_promise_below_the_effective_resistance_is_noticed(small, monkeypatch):
    assert dygrass._bound(small, 0).holds
    walks = dygrass.random_walks

    def daring(*args, **options):
        found = walks(*args, **options)
        return replace(found, resistance=0.1 * found.resistance)

    monkeypatch.setattr(dygrass, "random_walks", daring)
    assert not dygrass._bound(small, 0).holds


def test_adding_everything_is_noticed(small, monkeypatch):
    count = UpdateReport(added=64)
    monkeypatch.setattr(dygrass.DynamicSparsifier, "insert", lambda *_: count)
    claim = dygrass._bound(small, 0)
    assert not claim.holds and "64 of 64 added" in claim.ours


def test_the_others_are_measured_beside_it(small):
    old, ours, ingrass, grass, local, uniform = dygrass._beside(small)
    assert f"ours at density {small.live.density:.3f}" in ours
    figures = [float(note.split(" has ")[1].split()[0]) for note in (old, ours, ingrass, grass)]
    steps = [int(note.split()[-2]) for note in (old, ours, ingrass, grass)]
    assert max(figures) == figures[0] and max(steps) == steps[0] > 10
    assert ours.split()[3] == grass.split()[5]  # at one density
    assert local.startswith("6-step walks: no update") and "random" in uniform


def test_random_edges_are_as_many_and_of_the_stream(small):
    picked = small.at_random()
    assert picked.nnz == small.updated.nnz
    extra = np.stack((picked - small.sparse).nonzero(), 1)
    assert {tuple(sorted(pair)) for pair in extra.tolist()} <= set(
        map(tuple, small.stream.tolist())
    )


def test_the_economy_claim_counts_edges_for_one_goal(small):
    goal = small.condition(small.sparse, small.start)
    added, distortion = dygrass._bisected(small, goal)
    live = dygrass.DynamicSparsifier(small.start, small.sparse, distortion=distortion)
    dygrass._feed(live.insert, small.stream, small.weights)
    assert small.condition(live.sparsifier) <= goal
    assert (live.sparsifier.nnz - small.sparse.nnz) // 2 == added < len(small.stream)
    assert dygrass._bisected(small, 0.5)[0] == len(small.stream)  # out of reach
    assert dygrass._ingrass_edges(small, 0.5) == (len(small.stream), None)
    fewest, target = dygrass._ingrass_edges(small, 1e9)
    assert target == dygrass.TARGETS[0] and fewest < len(small.stream)


def test_the_deletion_claim_notices_what_was_not_mended(monkeypatch):
    def fresh():
        return dygrass._run(delaunay(700, seed=0), 0)

    assert dygrass._deletions([fresh()], SIZE).holds
    live = fresh()

    def careless(edges):
        pairs = np.sort(edges, axis=1)
        live.live._graph.remove(pairs)
        live.live._sparsifier.remove(pairs)
        return UpdateReport(removed=len(edges))

    monkeypatch.setattr(live.live, "delete", careless)
    assert not dygrass._deletions([live], SIZE).holds


def test_the_speed_claims_follow_the_seconds(small, monkeypatch):
    monkeypatch.setattr(
        dygrass,
        "_timed_apart",
        lambda vertices, seeds: [[1.0, 3.0, 2.0, 9.0], [1.0, 8.0, 4.0, 7.0]],
    )
    half, tenth = dygrass._speed([small], SIZE)
    assert half.holds and not tenth.holds
    assert "ratios 5.0, 12.0" in half.setting and "9.0, 7.0 times ours" in half.setting


def test_times_are_taken_in_a_process_of_one_thread():
    (seconds,) = dygrass._timed_apart(300, [1])
    assert len(seconds) == 4 and min(seconds) > 0
    assert json.dumps(seconds)


@pytest.mark.slow
def test_quick_claims_hold():
    threads = torch.get_num_threads()
    evidence = run("dygrass", scale="quick", seed=0)
    assert evidence.holds
    _, _, update, _ = evidence.claims
    assert "before the stream 5" in update.setting
    assert torch.get_num_threads() == threads
