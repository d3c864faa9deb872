import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.patterns import TokenSets


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(6, 9), st.randoms())
def test_sets_are_their_mask(counts, size, random):
    tokens = list(range(sum(counts)))
    random.shuffle(tokens)
    lists = [[tokens.pop() for _ in range(count)] for count in counts]
    sets = TokenSets.from_lists(lists, size=size)
    mask = sets.to_mask()
    for own in lists:
        for query in range(sets.tokens):
            assert (query in own) == bool(mask[query, own].all()) == bool(mask[query, own].any())
    assert sets.pairs() == int(mask.sum()) == sum(count**2 for count in counts)
    assert sets.density() == pytest.approx(float(mask.double().mean()))
    assert sets.slot_efficiency() == pytest.approx(sum(counts) / (len(counts) * size))


TRUE, FALSE = True, False


@pytest.mark.parametrize(
    ("indices", "repeated", "message"),
    [
        ([[0, 3]], [[FALSE, FALSE]], r"tokens in 0\.\.1, got 0\.\.3"),
        ([[0, 0]], [[FALSE, FALSE]], "one slot, got token 0 in 2"),
        ([[0, 0]], [[FALSE, TRUE]], "one slot, got token 1 in 0"),
        ([[0, 1, 0]], [[FALSE, FALSE, TRUE]], "the token of the slot before"),
        ([[0, 1], [1, 1]], [[FALSE, FALSE], [TRUE, TRUE]], "the token of the slot before"),
    ],
)
def test_wrong_content_is_named(indices, repeated, message):
    sets = TokenSets(torch.tensor(indices), torch.tensor(repeated), 2)
    with pytest.raises(ValueError, match=message):
        sets.validate()


def test_wrong_tensors_are_named():
    with pytest.raises((TypeError, ValueError), match="indices"):
        TokenSets(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool), 1)
    with pytest.raises(ValueError, match=r"indices' shape \[1, 2\], got \[1, 3\]"):
        TokenSets(torch.zeros(1, 2).long(), torch.zeros(1, 3, dtype=torch.bool), 1)
