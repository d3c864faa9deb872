from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gossamer.patterns import NM, Block, Channel, Unstructured

cases = settings(max_examples=200, deadline=None)


def bits(shape: tuple[int, ...]):
    return arrays(np.bool_, shape).map(torch.from_numpy)


@st.composite
def weight_cases(draw):
    """A pattern, a shape it divides and a mask over its units."""
    a, b, r, c = (draw(st.integers(1, 4)) for _ in range(4))
    lead = draw(st.sampled_from([(), (2,)]))
    kind = draw(st.sampled_from(["unstructured", "nm", "block", "channel"]))
    if kind == "unstructured":
        shape = (*lead, a, b)
        return Unstructured(), shape, draw(bits(shape))
    if kind == "nm":
        n = draw(st.integers(1, c))
        scores = draw(arrays(np.int64, (*lead, a, b, c), elements=st.integers(0, 9)))
        ranks = np.argsort(np.argsort(scores, axis=-1), axis=-1)
        return NM(n, c), (*lead, a, b * c), torch.from_numpy(ranks < n)
    if kind == "block":
        return Block(r, c), (*lead, a * r, b * c), draw(bits((*lead, a, b)))
    shape = (*lead, a, b)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    return Channel(dim), shape, draw(bits((shape[dim],)))


@cases
@given(weight_cases())
def test_weight_masks_round_trip_and_units_sum_what_they_keep(case):
    pattern, shape, units = case
    mask = pattern.to_mask(units, shape)
    assert tuple(mask.shape) == shape
    assert mask.is_contiguous()
    assert torch.equal(pattern.from_mask(mask), units)
    assert torch.equal(pattern.to_mask(pattern.from_mask(mask), shape), mask)
    assert pattern.density(mask) == pytest.approx(mask.double().mean().item())

    scores = (torch.arange(prod(shape)) ** 2 % 19).reshape(shape)
    found = pattern.units(scores)
    assert found.shape == units.shape
    for unit in range(units.numel()):
        alone = torch.zeros_like(units).reshape(-1)
        alone[unit] = True
        if isinstance(pattern, NM):
            covered = alone.reshape(shape)  # units are the weights, in order
        else:
            covered = pattern.to_mask(alone.reshape(units.shape), shape)
        assert found.reshape(-1)[unit] == scores[covered].sum()


@pytest.mark.parametrize("pattern", [Unstructured(), NM(1, 2), Block(2, 2), Channel(), Channel(1)])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_weights_without_elements_have_every_pattern(pattern, shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    units = pattern.from_mask(mask)
    assert units.shape == pattern.units(mask).shape
    assert torch.equal(pattern.to_mask(units, shape), mask)
    assert pattern.density(mask) == 0.0


def test_weight_patterns_of_a_matrix_by_hand():
    weight = torch.arange(16.0).reshape(4, 4)
    assert Block(2, 2).units(weight).tolist() == [[10.0, 18.0], [42.0, 50.0]]
    assert Channel(1).units(weight).tolist() == [24.0, 28.0, 32.0, 36.0]
    mask = Block(2, 2).to_mask(torch.tensor([[True, False], [False, True]]), (4, 4))
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert Channel(1).to_mask(torch.tensor([True, False]), (2, 2)).tolist() == [[True, False]] * 2
    assert NM(1, 2).from_mask(torch.tensor([True, False, False, True])).tolist() == [
        [True, False],
        [False, True],
    ]


def mask(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


BAD_CALLS = {
    "N > M": (lambda: NM(5, 4), ValueError, "n=5, m=4"),
    "N of 0": (lambda: NM(0, 4), ValueError, "n=0, m=4"),
    "M does not divide": (lambda: NM(2, 4).units(torch.ones(2, 6)), ValueError, r"\(2, 6\)"),
    "N:M of a number": (lambda: NM(2, 4).units(torch.tensor(1.0)), ValueError, r"\(\)"),
    "not N:M": (lambda: NM(2, 4).from_mask(mask(1, 1, 1, 0)), ValueError, "2 kept of every 4"),
    "block of 0": (lambda: Block(0, 4), ValueError, "at least 1, got .*rows=0"),
    "block and shape": (lambda: Block(2, 4).units(torch.ones(4, 6)), ValueError, r"\(4, 6\)"),
    "block of a vector": (lambda: Block(1, 1).units(torch.ones(4)), ValueError, r"\(4,\)"),
    "part of a block": (
        lambda: Block(1, 2).from_mask(mask(1, 0)[None]),
        ValueError,
        "keeps a unit in part",
    ),
    "part of a channel": (
        lambda: Channel().from_mask(mask(1, 0)[None]),
        ValueError,
        "keeps a unit in part",
    ),
    "channel dim": (lambda: Channel(2).units(torch.ones(2, 2)), ValueError, r"Channel\(dim=2\)"),
    "channel units": (
        lambda: Channel().to_mask(mask(1, 0), (3, 2)),
        ValueError,
        r"3 units, got shape \(2,\)",
    ),
    "unit shape": (
        lambda: Unstructured().to_mask(mask(1, 0), (3,)),
        ValueError,
        r"\(3,\), got \(2,\)",
    ),
    "block units": (lambda: Block(2, 2).to_mask(mask(1)[None], (4, 2)), ValueError, r"\(4, 2\)"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()
