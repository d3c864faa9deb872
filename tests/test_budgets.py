import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.budgets import Density, Threshold, TopK, TopP
from gossamer.patterns import NM, Block, Channel, Unstructured

cases = settings(max_examples=200, deadline=None)


@st.composite
def scores_of(draw, low: int = -4, high: int = 4, min_side: int = 1):
    """Small integers, so that ties abound and sums are exact."""
    shape = draw(st.lists(st.integers(min_side, 6), min_size=1, max_size=3))
    size = math.prod(shape)
    values = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]))
    return torch.tensor(values, dtype=dtype).reshape(shape)


def by_row(scores: torch.Tensor, dim: int | None, choose) -> torch.Tensor:
    """Apply `choose(list of floats) -> kept positions` to every row in plain Python."""
    kept = np.zeros(tuple(scores.shape), dtype=bool)
    values = scores.double().numpy()
    if dim is None:
        flat = kept.reshape(-1)
        flat[choose(values.reshape(-1).tolist())] = True
        return torch.from_numpy(flat.reshape(kept.shape))
    rows, kept_rows = np.moveaxis(values, dim, -1), np.moveaxis(kept, dim, -1)
    for place in np.ndindex(rows.shape[:-1]):
        kept_rows[place][choose(rows[place].tolist())] = True
    return torch.from_numpy(kept)


def ranked(row: list[float]) -> list[int]:
    """Positions from the highest score down, ties by lowest index."""
    return sorted(range(len(row)), key=lambda place: (-row[place], place))


def draw_dim(data, scores: torch.Tensor) -> int | None:
    return data.draw(st.none() | st.integers(-scores.ndim, scores.ndim - 1))


@cases
@given(scores_of(), st.data())
def test_top_k_keeps_the_first_of_the_ranking(scores, data):
    dim = draw_dim(data, scores)
    k = data.draw(st.integers(1, scores.numel() if dim is None else scores.shape[dim]))
    mask = TopK(k, dim=dim).select(scores)
    assert torch.equal(mask, by_row(scores, dim, lambda row: ranked(row)[:k]))


@cases
@given(scores_of(), st.floats(0, 1, exclude_min=True), st.data())
def test_density_keeps_the_rounded_share_and_at_least_one(scores, density, data):
    dim = draw_dim(data, scores)
    mask = Density(density, dim=dim).select(scores)

    def choose(row):
        return ranked(row)[: max(1, round(density * len(row)))]

    assert torch.equal(mask, by_row(scores, dim, choose))


@cases
@given(scores_of(low=0), st.integers(1, 64), st.data())
def test_top_p_keeps_the_fewest_that_reach_the_share(scores, share, data):
    dim = draw_dim(data, scores)
    p = share / 64  # exact in binary, as the sums of integers are

    def choose(row):
        kept, mass = [], 0.0
        for place in ranked(row):
            if mass >= p * sum(row):
                break
            kept.append(place)
            mass += row[place]
        return kept

    assert torch.equal(TopP(p, dim=dim).select(scores), by_row(scores, dim, choose))


@cases
@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40),
    st.floats(2**-20, 1),
)
def test_top_p_mass_bounds_hold_for_real_numbers(values, p):
    scores = torch.tensor(values, dtype=torch.float64)
    kept = scores[TopP(p).select(scores)]
    total = math.fsum(values)
    assert math.fsum(kept.tolist()) >= p * total * (1 - 1e-12)
    if len(kept):
        without_smallest = math.fsum(sorted(kept.tolist())[1:])
        assert without_smallest < p * total * (1 + 1e-12)
        assert kept.min() > 0


@cases
@given(scores_of(low=0), st.data())
def test_a_larger_budget_keeps_a_superset(scores, data):
    dim = draw_dim(data, scores)
    size = scores.numel() if dim is None else scores.shape[dim]
    share = st.floats(0, 1, exclude_min=True)
    pairs = [
        (lambda k: TopK(k, dim=dim).select(scores), st.integers(1, size)),
        (lambda d: Density(d, dim=dim).select(scores), share),
        (lambda p: TopP(p, dim=dim).select(scores), share),
        (lambda t: Threshold(t).select(scores, 2.0), st.floats(-9, 9)),
    ]
    for select, values in pairs:
        small, large = sorted((data.draw(values), data.draw(values)))
        assert not (select(small) & ~select(large)).any()


@cases
@given(scores_of(low=0), st.integers(-3, 5), st.randoms())
def test_choices_follow_permuted_rows_and_ignore_the_scale(scores, power, random):
    rows = scores.double().reshape(-1, scores.shape[-1])
    order = list(range(len(rows)))
    random.shuffle(order)
    for budget in (TopK(1), Density(0.5), TopP(0.75)):
        assert torch.equal(budget.select(rows[order] * 2.0**power), budget.select(rows)[order])


@cases
@given(scores_of(), st.floats(-5, 5), st.integers(-4, 4))
def test_threshold_keeps_what_is_close_to_the_anchor(scores, difference, anchor):
    mask = Threshold(difference).select(scores.double(), anchor)
    expected = [value >= anchor - difference for value in scores.double().flatten().tolist()]
    assert mask.flatten().tolist() == expected


def test_threshold_takes_an_anchor_a_row_and_infinite_differences():
    scores = torch.tensor([[1.0, 5.0], [1.0, -torch.inf]])
    anchor = scores.amax(-1, keepdim=True)
    assert Threshold(4.0).select(scores, anchor).tolist() == [[True, True], [True, False]]
    assert Threshold(3.0).select(scores, anchor).tolist() == [[False, True], [True, False]]
    assert Threshold(math.inf).select(scores, anchor).all()
    assert not Threshold(-math.inf).select(scores, anchor).any()


@cases
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.data())
def test_nm_selects_exactly_n_of_every_m(m, groups, rows, data):
    n = data.draw(st.integers(1, m))
    size = rows * groups * m
    values = data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    scores = torch.tensor(values).reshape(rows, groups * m)
    expected = by_row(scores.reshape(rows, groups, m), -1, lambda row: ranked(row)[:n])
    for budget in (TopK(n), Density(n / m)):
        assert torch.equal(budget.select(scores, NM(n, m)), expected.reshape(scores.shape))


@cases
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.data())
def test_blocks_are_chosen_whole_by_their_sum(r, c, rows, columns, data):
    size = rows * r * columns * c
    values = data.draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    scores = torch.tensor(values).reshape(rows * r, columns * c)
    pattern = Block(r, c)
    k = data.draw(st.integers(1, rows * columns))
    mask = TopK(k, dim=None).select(scores, pattern)
    sums = [
        [int(scores[i * r : (i + 1) * r, j * c : (j + 1) * c].sum()) for j in range(columns)]
        for i in range(rows)
    ]
    expected = by_row(torch.tensor(sums), None, lambda row: ranked(row)[:k])
    assert torch.equal(pattern.from_mask(mask), expected)


def test_channels_are_chosen_whole():
    scores = torch.tensor([[1.0, 1.0], [0.0, 5.0], [2.0, 1.0]])
    expected = [[False, False], [True, True], [True, True]]
    assert TopK(2).select(scores, Channel()).tolist() == expected
    assert TopP(0.8).select(scores, Channel()).tolist() == expected
    assert Threshold(2.0).select(scores, 5.0, Channel()).tolist() == expected


def test_negative_infinity_stays_last_and_signed_zeros_tie():
    scores = torch.tensor([-torch.inf, 0.0, -0.0, -torch.inf])
    assert TopK(1).select(scores).tolist() == [False, True, False, False]
    assert TopK(3).select(scores).tolist() == [True, True, True, False]
    assert TopK(1).select(-scores.clamp(min=-1)).tolist() == [True, False, False, False]


def test_scores_may_be_strided_and_need_gradients_and_stay_as_they_were():
    base = torch.rand(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for view in (base.t(), base[::2, 1:], base[:, :1].expand(6, 4)):
        before = view.detach().clone()
        for budget in (TopK(1), Density(0.5), TopP(0.5)):
            assert torch.equal(budget.select(view), budget.select(before.contiguous()))
        assert torch.equal(view.detach(), before)


def test_empty_rows_and_zero_mass_keep_nothing():
    assert Density(0.5).select(torch.empty(3, 0)).shape == (3, 0)
    assert Density(0.5).select(torch.empty(0, 3)).shape == (0, 3)
    assert TopP(0.5).select(torch.empty(3, 0)).shape == (3, 0)
    assert not TopP(1.0).select(torch.zeros(2, 3)).any()


def test_density_counts():
    assert [Density(0.1).count(size) for size in (0, 1, 4, 15, 100)] == [0, 1, 1, 2, 10]
    assert Density(1.0).count(7) == 7


ONES = torch.ones(2, 4)
BAD_CALLS = {
    "k of 0": (lambda: TopK(0), ValueError, "k .* got 0"),
    "k > n": (lambda: TopK(5).select(ONES), ValueError, "at most 4 .* got 5"),
    "k > all": (lambda: TopK(9, dim=None).select(ONES), ValueError, "at most 8 .* got 9"),
    "density 0": (lambda: Density(0.0), ValueError, r"\(0, 1\], got 0"),
    "density < 0": (lambda: Density(-0.5), ValueError, "got -0.5"),
    "density > 1": (lambda: Density(1.5), ValueError, "got 1.5"),
    "density NaN": (lambda: Density(math.nan), ValueError, "density .* got nan"),
    "p of 0": (lambda: TopP(0.0), ValueError, r"p in \(0, 1\], got 0"),
    "p > 1": (lambda: TopP(1.1), ValueError, "got 1.1"),
    "p NaN": (lambda: TopP(math.nan), ValueError, "got nan"),
    "difference NaN": (lambda: Threshold(math.nan), ValueError, "difference .* nan"),
    "bool scores": (lambda: TopK(1).select(ONES > 0), TypeError, "real scores, got torch.bool"),
    "complex scores": (lambda: TopK(1).select(ONES + 0j), TypeError, "real .*complex64"),
    "list scores": (lambda: TopK(1).select([1.0]), TypeError, "tensor of real scores, got .*list"),  # pyright: ignore[reportArgumentType]
    "NaN scores": (lambda: TopK(1).select(ONES / 0 * 0), ValueError, "without NaN"),
    "NaN for p": (lambda: TopP(0.5).select(ONES / 0 * 0), ValueError, "without NaN"),
    "NaN for a threshold": (
        lambda: Threshold(1.0).select(ONES / 0 * 0, 1.0),
        ValueError,
        "without NaN",
    ),
    "negative mass": (lambda: TopP(0.5).select(-ONES), ValueError, r"got -1\.0\.\.-1\.0"),
    "infinite mass": (lambda: TopP(0.5).select(ONES / 0), ValueError, "finite scores"),
    "dim": (lambda: TopK(1, dim=2).select(ONES), ValueError, "2 dimensions, got 2"),
    "dim of p": (lambda: TopP(0.5, dim=-3).select(ONES), ValueError, "2 dimensions, got -3"),
    "N:M broken": (lambda: TopK(1).select(ONES, NM(2, 4)), ValueError, r"try TopK\(2\)"),
    "M does not divide": (lambda: TopK(2).select(ONES, NM(2, 3)), ValueError, r"m=3\) divides"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_unstructured_is_the_default_pattern():
    scores = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(TopK(2).select(scores), TopK(2).select(scores, Unstructured()))
