"""Random walks: the same draws, paths and sums as one walker at a time in plain Python."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from gossamer.kernels import WalkGraph, instruction_sets, random_walks, trace_walks

WORD = 2**64 - 1
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
pytestmark = pytest.mark.usefixtures("nan_memory")
cases = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def walk_graph(edges: dict[tuple[int, int], float], vertices: int, spare: int = 0) -> WalkGraph:
    """Rows in the order of `edges`, each followed by `spare` slots that nobody may read."""
    rows: list[list[tuple[int, float]]] = [[] for _ in range(vertices)]
    for (u, v), weight in edges.items():
        rows[u].append((v, 1 / weight))
        rows[v].append((u, 1 / weight))
    table, neighbour, resistance = [], [], []
    for row in rows:
        table.append([len(neighbour), len(row)])
        neighbour += [v for v, _ in row] + [-7] * spare
        resistance += [r for _, r in row] + [np.nan] * spare
    return WalkGraph(
        torch.tensor(table, dtype=torch.int64).reshape(-1, 2),
        torch.tensor(neighbour, dtype=torch.int32),
        torch.tensor(resistance, dtype=torch.float32),
    )


def random_graph(vertices: int, count: int, seed: int, spare: int = 2) -> WalkGraph:
    draw = np.random.default_rng(seed)
    pairs = draw.integers(vertices, size=(count, 2))
    edges = {
        (int(min(u, v)), int(max(u, v))): float(draw.choice([0.25, 0.5, 1.0, 1.7, 3.1]))
        for u, v in pairs
        if u != v
    }
    return walk_graph(edges, vertices, spare)


def questions(vertices: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed + 1)
    source = draw.integers(vertices, size=count)
    target = (source + draw.integers(1, vertices, size=count)) % vertices
    return torch.from_numpy(source), torch.from_numpy(target)


def splitmix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def one_walker(
    graph: WalkGraph, source: int, target: int, walker: int, limit: float, steps: int, seed: int
) -> tuple[float, list[int]] | None:
    """The walk as the paper tells it; None unless it arrives."""
    key = splitmix((splitmix((splitmix(source << 32 | target) + seed) & WORD) + walker) & WORD)
    total, path = np.float32(0), [source]
    for step in range(steps):
        first, degree = graph.rows[path[-1]].tolist()
        neighbours = graph.neighbour[first : first + degree].tolist()
        others = degree - (step > 0)
        if others <= 0:
            return None
        draw = splitmix((key + step * 0x9E3779B97F4A7C15) & WORD) >> 32
        chosen = draw * others >> 32
        if step and neighbours[chosen] == path[-2]:
            chosen = degree - 1
        total = total + graph.resistance[first + chosen].numpy()
        if total >= limit:
            return None
        path.append(neighbours[chosen])
        if path[-1] == target:
            return float(total), path
    return None


def expected(
    graph: WalkGraph, source: int, target: int, limit: float, report: str, **options: int
) -> tuple[float, int, list[int]]:
    """(resistance, walker, path) of the walker to report."""
    found = [
        (*arrived, w)
        for w in range(options["walkers"])
        if (arrived := one_walker(graph, source, target, w, limit, options["max_steps"],
                                  options["seed"]))
    ]  # fmt: skip
    if not found:
        return float("inf"), -1, []
    best = min(found, key=lambda one: (one[0] if report == "best" else 0, one[2]))
    return best[0], best[2], best[1]


@cases
@given(
    st.integers(2, 30),
    st.integers(0, 60),
    st.sampled_from(["best", "first"]),
    st.sampled_from([1, 7, 8, 33, 70]),
    st.sampled_from([1, 2, 5, 40]),
    st.sampled_from([0, 1, 2**63 - 1]),
)
def test_any_graph(impl, vertices, count, report, walkers, max_steps, seed):
    graph = random_graph(vertices, count, seed % 97 + count)
    source, target = questions(vertices, 6, count)
    limit = torch.tensor([torch.inf, 4.0, 1.0, 0.3, 2.5, 9.0])
    options = {"walkers": walkers, "max_steps": max_steps, "seed": seed}
    found = random_walks(graph, source, target, limit=limit, report=report, impl=impl, **options)
    for e in range(6):
        resistance, walker, path = expected(
            graph, int(source[e]), int(target[e]), float(limit[e]), report, **options
        )
        assert float(found.resistance[e]) == resistance
        assert int(found.walker[e]) == walker
        assert int(found.steps[e]) == max(0, len(path) - 1)
        if path:
            one = slice(e, e + 1)
            trace = trace_walks(
                graph, source[one], target[one], found.walker[one], steps=len(path) - 1, seed=seed
            )
            assert trace[0].tolist() == path


@pytest.mark.parametrize("report", ["best", "first"])
@pytest.mark.parametrize("limit", [6.0, 14.0, 40.0])
def test_native_reports_what_the_reference_reports(isa, report, limit):
    """A grid with holes, where some targets are within the limit and some are not."""
    side = 48
    edges = {}
    draw = np.random.default_rng(0)
    for x in range(side):
        for y in range(side):
            here = x * side + y
            for there in [here + 1] * (y + 1 < side) + [here + side] * (x + 1 < side):
                if draw.random() < 0.85:
                    edges[here, there] = float(draw.choice([1.0, 0.7, 2.0]))
    graph = walk_graph(edges, side * side, 1)
    source = torch.from_numpy(draw.integers(side * side, size=60))
    target = (source + torch.from_numpy(draw.choice([1, 2, side + 1, 5, 3 * side], 60))) % side**2
    options: dict[str, Any] = {
        "limit": torch.full((60,), limit),
        "walkers": 128,
        "report": report,
        "seed": 3,
    }
    native = random_walks(graph, source, target, impl="cpu", **options)
    plain = random_walks(graph, source, target, impl="reference", **options)
    for name in ("resistance", "walker", "steps"):
        assert torch.equal(getattr(native, name), getattr(plain, name))
    assert 5 < int((plain.walker >= 0).sum()) < 60


def test_threads_other_edges_and_order_change_nothing(isa):
    graph = random_graph(200, 500, 5)
    source, target = questions(200, 90, 5)
    together = random_walks(graph, source, target, walkers=40, impl="cpu")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        order = torch.randperm(90)[:50]
        some = random_walks(graph, source[order], target[order], walkers=40, impl="cpu")
        assert torch.equal(some.resistance, together.resistance[order])
        assert torch.equal(some.walker, together.walker[order])


def test_each_step_is_uniform_over_the_other_neighbours():
    """Chi-square over the pairs of first two steps in K6: 5 x 4 equally likely."""
    complete = walk_graph({(u, v): float(1 + u) for u in range(6) for v in range(u + 1, 6)}, 6)
    count = 20_000
    ends = torch.zeros(count, dtype=torch.int64)
    path = trace_walks(complete, ends, ends + 1, torch.arange(count), steps=2, seed=9)
    assert bool((path[:, 0] != path[:, 2]).all())
    pairs = torch.bincount(path[:, 1] * 6 + path[:, 2], minlength=36).numpy()
    seen = pairs[pairs > 0]
    assert len(seen) == 20
    assert stats.chisquare(seen).pvalue > 1e-6


def test_the_limit_is_tested_before_arrival(impl):
    path = walk_graph({(0, 1): 1.0, (1, 2): 1.0}, 3)
    ends = torch.tensor([0]), torch.tensor([2])
    at = random_walks(path, *ends, limit=torch.tensor([2.0]), impl=impl)
    above = random_walks(path, *ends, limit=torch.tensor([2.001]), impl=impl)
    assert at.walker.tolist() == [-1] and at.resistance.tolist() == [torch.inf]
    assert above.walker.tolist() == [0] and above.steps.tolist() == [2]


def test_a_walker_dies_in_a_dead_end_and_off_the_graph(impl):
    star = walk_graph({(0, 1): 1.0, (2, 3): 1.0}, 5)
    found = random_walks(star, torch.tensor([0, 4, 0]), torch.tensor([2, 0, 1]), impl=impl)
    assert found.walker.tolist() == [-1, -1, 0]
    empty = walk_graph({}, 2)
    assert random_walks(empty, torch.tensor([0]), torch.tensor([1]), impl=impl).walker == -1
    nothing = torch.zeros(0, dtype=torch.int64)
    assert random_walks(star, nothing, nothing, impl=impl).walker.shape == (0,)


def test_seeds_walk_differently(impl):
    graph = random_graph(60, 150, 2)
    source, target = questions(60, 50, 2)
    runs = [
        random_walks(graph, source, target, walkers=3, seed=seed, impl=impl).resistance
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_hubs_beyond_the_native_search_are_walked(isa):
    """A vertex of more neighbours than the search holds ends it; the walks go on."""
    hub = walk_graph({(0, v): 1.0 for v in range(1, 9000)} | {(1, 9000): 1.0}, 9001)
    ends = torch.tensor([2, 9000]), torch.tensor([9000, 2])
    limit = torch.full((2,), 3.5)
    native = random_walks(hub, *ends, limit=limit, walkers=20_000, impl="cpu")
    plain = random_walks(hub, *ends, limit=limit, walkers=20_000, impl="reference")
    assert torch.equal(native.walker, plain.walker) and int(plain.walker[1]) >= 0


@pytest.mark.parametrize("name", IMPLS)
def test_operator_is_registered_for_tracing(name):
    graph = random_graph(20, 40, 0, spare=0)
    source, target = questions(20, 5, 0)
    torch.library.opcheck(
        torch.ops.gossamer.random_walks.default,
        (graph.rows, graph.neighbour, graph.resistance, source, target, torch.ones(5), 9, 9, True,
         0, name),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


GRAPH = walk_graph({(0, 1): 1.0}, 2)
ZERO = torch.tensor([0])
GOOD: dict[str, Any] = {"graph": GRAPH, "source": ZERO, "target": ZERO + 1}
BAD_INPUT: list[tuple[dict[str, Any], str]] = [
    ({"source": ZERO.int()}, r"source to be int64 \[1\], got torch.int32"),
    ({"source": ZERO[None]}, r"source to be int64"),
    ({"target": torch.tensor([1, 1])}, r"target to be int64 \[1\], got torch.int64 \[2\]"),
    ({"target": ZERO + 2}, "two different vertices below 2"),
    ({"source": ZERO - 1}, "two different vertices below 2"),
    ({"target": ZERO}, "two different vertices"),
    ({"limit": torch.ones(2)}, r"limit to be float32 \[1\], got torch.float32 \[2\]"),
    ({"limit": torch.ones(1).double()}, r"limit to be float32 .* torch.float64"),
    ({"walkers": 0}, "walkers >= 1 and .* got 0 and 100"),
    ({"max_steps": 0}, r"max_steps in 1..1048576, got 512 and 0"),
    ({"report": "all"}, "one of first, best, got 'all'"),
    ({"seed": -1}, "seed in .* got -1"),
    ({"impl": "gpu"}, "one of auto, reference, cpu, triton, got 'gpu'"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, message = row
    random_walks(**GOOD)
    with pytest.raises(ValueError, match=message):
        random_walks(**(GOOD | changes))


def test_bad_graphs_and_traces_are_named():
    with pytest.raises(ValueError, match=r"rows to be torch.int64 \[2, 2\], got torch.int32"):
        WalkGraph(GRAPH.rows.int(), GRAPH.neighbour, GRAPH.resistance)
    with pytest.raises(ValueError, match=r"resistance to be torch.float32 \[2\], got .* \[1\]"):
        WalkGraph(GRAPH.rows, GRAPH.neighbour, GRAPH.resistance[:1])
    with pytest.raises(ValueError, match=r"walker of shape \[1\] and steps >= 0, got \[1\] and -1"):
        trace_walks(GRAPH, ZERO, ZERO + 1, ZERO, steps=-1)
