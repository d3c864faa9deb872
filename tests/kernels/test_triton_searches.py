"""Triton's walks and searches against the references, interpreted where there is no GPU."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.kernels import WalkGraph, random_walks, stripe_search, tree_search
from gossamer.testing import AttentionShape, attention_inputs

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("interpreter", "nan_memory")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("report", ["best", "first"])
@pytest.mark.parametrize("walkers", [1, 7, 300])
@pytest.mark.parametrize("limit", [torch.inf, 4.0])
def test_random_walks_report_what_the_reference_reports(report, walkers, limit):
    """A ring with chords, a dead end and an edge apart; every figure bit by bit."""
    pairs = [(v, (v + 1) % 20) for v in range(20)] + [(0, 7), (3, 15), (9, 12), (2, 20), (21, 22)]
    rows: list[list[tuple[int, float]]] = [[] for _ in range(23)]
    for i, (u, v) in enumerate(pairs):
        rows[u].append((v, 0.3 + 0.1 * i))
        rows[v].append((u, 0.3 + 0.1 * i))
    degree = torch.tensor([len(row) for row in rows])
    graph = WalkGraph(
        torch.stack([degree.cumsum(0) - degree, degree], 1),
        torch.tensor([v for row in rows for v, _ in row], dtype=torch.int32),
        torch.tensor([r for row in rows for _, r in row]),
    )
    source, target = torch.tensor([[0, 4, 20, 21, 0, 11], [5, 3, 0, 22, 21, 1]])
    options: dict[str, Any] = {
        "walkers": walkers, "max_steps": 30, "report": report, "seed": 2**62 + 1
    }  # fmt: skip
    bound = torch.full((6,), limit)
    plain = random_walks(graph, source, target, limit=bound, impl="reference", **options)
    moved = WalkGraph(*(part.to(DEVICE) for part in vars(graph).values()))
    found = random_walks(
        moved,
        source.to(DEVICE),
        target.to(DEVICE),
        limit=bound.to(DEVICE),
        impl="triton",
        **options,
    )
    for name in ("resistance", "walker", "steps"):
        assert torch.equal(getattr(found, name).cpu(), getattr(plain, name))
    assert int((plain.walker >= 0).sum()) >= 1


def search_problem(
    shape: AttentionShape, step: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Arguments whose products are exact: integers; some ranges are empty or end first."""
    pooled, key, _ = attention_inputs(shape, dtype=dtype, values="integers")
    groups = -(-shape.q_len // step)
    bounds = torch.randint(0, shape.k_len + 1, (2, shape.batch, groups))
    bounds[:, 0, 0] = torch.tensor([0, shape.k_len])
    return {
        "pooled": pooled.to(DEVICE),
        "key": key.to(DEVICE),
        "threshold": torch.randint(0, 16, pooled.shape[:3]).float().to(DEVICE),
        "step": step,
        "group": 16,
        "begin": bounds[0].to(DEVICE),
        "end": bounds[1].to(DEVICE),
    }


def check_search(arguments: dict[str, Any], lists: int | None = None) -> int:
    """Hold the kernel to the reference; return how many keys they find."""
    expected = stripe_search(**arguments, list_heads=lists, impl="reference")
    found = stripe_search(**arguments, list_heads=lists, impl="triton")
    assert found.shape == expected.shape
    assert torch.equal(found.offsets, expected.offsets)
    assert torch.equal(found.indices, expected.indices)
    return len(found.indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "step", "lists"),
    [
        (AttentionShape(1, 1, 1, 1, 40, 64), 1, None),
        (AttentionShape(2, 6, 2, 5, 75, 33), 2, None),  # the last group is short
        (AttentionShape(2, 6, 2, 5, 40, 8), 3, 2),
        (AttentionShape(1, 8, 4, 7, 150, 16), 2, 2),  # two key heads a list
        (AttentionShape(1, 4, 2, 70, 50, 80), 33, 1),  # several tiles of rows
    ],
    ids=str,
)
def test_stripe_search_finds_what_the_reference_finds(shape, step, lists, dtype):
    assert check_search(search_problem(shape, step, dtype), lists) > 5


def test_stripe_search_searches_its_ranges_only():
    arguments = search_problem(AttentionShape(2, 4, 2, 6, 90, 24), 2)
    begin = torch.tensor([[10, 50, 90], [33, 80, 0]], device=DEVICE)
    end = torch.tensor([[64, 50, 999], [75, 20, 0]], device=DEVICE)
    place = torch.arange(90, device=DEVICE)
    outside = (place < torch.tensor([[10], [33]], device=DEVICE)) | (
        place >= torch.tensor([[64], [75]], device=DEVICE)
    )
    arguments |= {"begin": begin, "end": end}
    arguments["key"] = arguments["key"].masked_fill(outside[:, None, :, None], torch.nan)
    assert check_search(arguments) > 5
    arguments["threshold"] = torch.full_like(arguments["threshold"], torch.inf)
    assert check_search(arguments) == 0


def test_stripe_search_takes_any_strides():
    arguments = search_problem(AttentionShape(2, 4, 2, 5, 40, 8), 2)
    before = check_search(arguments)
    for name in ("pooled", "key"):
        arguments[name] = arguments[name].transpose(1, 3).contiguous().transpose(1, 3)
    for name in ("threshold", "begin", "end"):
        arguments[name] = torch.stack([arguments[name]] * 2, -1)[..., 0]
    assert check_search(arguments) == before > 5


@pytest.mark.parametrize("sizes", [(1, 0, 7), (1, 3, 0), (0, 3, 5)], ids=str)
def test_stripe_search_of_nothing(sizes):
    batch, rows, k_len = sizes
    arguments = search_problem(AttentionShape(1, 4, 2, max(1, rows), k_len, 8), 1)
    for name in ("pooled", "key", "threshold", "begin", "end"):
        arguments[name] = arguments[name][:batch]
    if not rows:
        for name, dim in (("pooled", 2), ("threshold", 2), ("begin", 1), ("end", 1)):
            arguments[name] = arguments[name].narrow(dim, 0, 0)
    assert check_search(arguments) == 0


@dataclass(frozen=True)
class Search:
    """Sizes and options of one tree search; heads are (query, key) heads."""

    heads: tuple[int, int]
    q_len: int
    k_len: int
    dim: int
    options: dict[str, Any]
    batch: int = 1
    padded: bool = False  # every sequence starts elsewhere, the last behind most keys
    dtype: torch.dtype = torch.float32

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Integers, so that every product is exact, and many scores equal."""
        generator = torch.Generator().manual_seed(0)
        query = torch.empty(self.batch, self.q_len, self.heads[0], self.dim, dtype=self.dtype)
        key = torch.empty(self.batch, self.heads[1], self.k_len, self.dim, dtype=self.dtype)
        for part in (query, key):
            part.random_(-3, 4, generator=generator)
        return query.transpose(1, 2), key

    def key_start(self) -> Tensor | None:
        return torch.linspace(3, self.k_len - 2, self.batch).long() if self.padded else None


@pytest.mark.parametrize(
    "case",
    [
        # Several levels, spans that are no power of two, two blocks of queries.
        Search((2, 2), 20, 77, 8, {"tokens": 8, "block_q": 16, "window": 9, "sink": 3}),
        Search((2, 1), 9, 90, 5, {"tokens": 6, "representative": "first", "block_q": 8}, 2, True),
        Search((4, 2), 3, 99, 8, {"tokens": 12, "block_k": 4, "shared_by_group": True}, 2, True),
        Search((2, 1), 9, 90, 5, {"tokens": 6, "representative": "random"}, 2, True),
        Search((4, 1), 40, 64, 8, {"tokens": 5, "block_k": 1, "shared_by_group": True, "sink": 0}),
        # One query, a decode step; and fewer rows than query_stride skips.
        Search((2, 1), 1, 130, 20, {"tokens": 16, "block_q": 1, "block_k": 8, "channels": 7}),
        Search((2, 1), 3, 70, 8, {"tokens": 4, "query_stride": 9, "shared_by_group": True}),
        # Fewer blocks than nodes; a window longer than the keys; one node.
        Search((1, 1), 5, 30, 8, {"tokens": 64, "block_q": 4, "window": 3}),
        Search((1, 1), 5, 30, 8, {"tokens": 4, "window": 2**40, "sink": 2**40}),
        Search((1, 1), 2, 40, 8, {"tokens": 2, "sink": 7, "representative": "random"}),
        Search((2, 1), 20, 50, 16, {"tokens": 4, "channels": 3}, dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_tree_search_finds_what_the_reference_finds(case: Search) -> None:
    query, key = case.inputs()
    options = {"window": 6, "seed": 2**63 - 1, "key_start": case.key_start()} | case.options
    expected = tree_search(query, key, **options, impl="reference")
    found = tree_search(query.to(DEVICE), key.to(DEVICE), **options, impl="triton")
    assert torch.equal(found.pattern.indices.cpu(), expected.pattern.indices)
    assert torch.equal(found.scored.cpu(), expected.scored)


def test_tree_search_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """More lists than programs, more nodes than lanes, more rows than a tile."""
    from gossamer.kernels.tree_search import triton

    monkeypatch.setattr(triton, "PROGRAMS", 2)
    monkeypatch.setattr(triton, "LANES", 8)
    query, key = Search((2, 2), 40, 90, 4, {}).inputs()
    options: dict[str, Any] = {
        "tokens": 11,
        "block_q": 40,
        "block_k": 1,
        "window": 3,
        "query_stride": 1,
    }
    expected = tree_search(query, key, **options, impl="reference")
    found = tree_search(query.to(DEVICE), key.to(DEVICE), **options, impl="triton")
    assert torch.equal(found.pattern.indices.cpu(), expected.pattern.indices)
    assert torch.equal(found.scored.cpu(), expected.scored)


def test_tree_search_reads_no_key_outside_its_range() -> None:
    """NaN in padding, in the window and in the channels that are not scored."""
    query, key = Search((2, 1), 12, 80, 6, {}).inputs()
    query[..., 4:] = 0
    options: dict[str, Any] = {
        "tokens": 8,
        "block_q": 12,
        "window": 10,
        "channels": 4,
        "key_start": torch.tensor([13]),
    }
    expected = tree_search(query, key, **options, impl="reference")
    key[:, :, :13] = torch.nan
    key[:, :, 70:] = torch.nan
    key[..., 4:] = torch.nan
    found = tree_search(query.to(DEVICE), key.to(DEVICE), **options, impl="triton")
    assert torch.equal(found.pattern.indices.cpu(), expected.pattern.indices)
    assert torch.equal(found.scored.cpu(), expected.scored)
