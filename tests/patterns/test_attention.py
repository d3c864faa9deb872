import copy
import dataclasses
import pickle
from math import ceil, prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from gossamer.patterns import BlockPattern, Diagonal, StripePattern, TokenPattern, Window

cases = settings(max_examples=200, deadline=None)
small = st.integers(0, 50)
shapes = array_shapes(min_dims=4, max_dims=4, min_side=0, max_side=5)
kinds = st.sampled_from([(BlockPattern, "block", 32), (TokenPattern, "group", 3)]) | st.just(
    (StripePattern, "group", 1)
)


def bits(shape: tuple[int, ...]):
    """Bool masks of a shape, drawn as bytes: quicker than one element at a time."""
    size = prod(shape)
    packed = st.binary(min_size=ceil(size / 8), max_size=ceil(size / 8))
    return packed.map(
        lambda drawn: torch.from_numpy(
            np.unpackbits(np.frombuffer(drawn, np.uint8), count=size).astype(bool).reshape(shape)
        )
    )


masks = shapes.flatmap(bits)


def visible(
    q_len: int, k_len: int, window: Window | None = None, causal: bool = True
) -> np.ndarray:
    """Element by element, from the definition."""
    kept = np.zeros((q_len, k_len), dtype=bool)
    for i in range(q_len):
        position = i + k_len - q_len
        for j in range(k_len):
            in_window = window is None or j < window.sink or position - j < window.local
            kept[i, j] = in_window and (j <= position or not causal)
    return kept


def touched(kept: np.ndarray) -> np.ndarray:
    """16 x 16 blocks that hold a kept pair."""
    padded = np.pad(kept, [(0, -length % 16) for length in kept.shape])
    rows, columns = padded.shape
    return np.any(padded.reshape(rows // 16, 16, columns // 16, 16), axis=(1, 3))


def elements(mask: torch.Tensor, q_len: int, k_len: int, tile: int, width: int) -> np.ndarray:
    rows, columns = np.arange(q_len) // tile, np.arange(k_len) // width
    return mask.numpy()[:, :, rows][:, :, :, columns]


@st.composite
def tiled_masks(draw, tile: int, width: int):
    q_len, k_len = draw(small), draw(small)
    shape = (draw(st.integers(0, 2)), draw(st.integers(0, 2)), ceil(q_len / tile))
    return draw(bits((*shape, ceil(k_len / width)))), q_len, k_len


@cases
@given(masks, kinds)
def test_masks_round_trip_and_rows_list_the_kept_keys(mask, kind):
    cls, argument, value = kind
    pattern = cls.from_mask(mask, **{argument: value}).validate()
    assert torch.equal(pattern.to_mask(), mask)
    assert torch.equal(pattern.counts, mask.sum(-1))
    assert pattern.shape == tuple(mask.shape)
    if mask.numel():
        assert pattern.density() == pytest.approx(mask.double().mean().item())

    starts, counts, flat = pattern.rows
    assert pattern.rows[0] is starts  # found once
    assert (starts.dtype, counts.dtype, flat.dtype) == (torch.int64, torch.int64, torch.int32)
    expected = [
        [key for key, kept in enumerate(row) if kept]
        for row in mask.reshape(starts.numel(), mask.shape[3]).tolist()
    ]
    lists = zip(starts.tolist(), counts.tolist(), strict=True)
    assert [flat[start : start + count].tolist() for start, count in lists] == expected


windows = st.builds(Window, st.integers(0, 30), st.integers(1, 30))


@cases
@given(tiled_masks(16, 16), st.booleans(), st.none() | windows)
def test_block_pairs_are_exact(case, causal, window):
    mask, q_len, k_len = case
    kept = elements(mask, q_len, k_len, 16, 16) & visible(q_len, k_len, window, causal)
    pattern = BlockPattern.from_mask(mask, block=16)
    assert pattern.pairs(q_len, k_len, causal=causal, window=window) == kept.sum()


@cases
@given(st.data(), st.integers(1, 7), st.booleans())
def test_token_and_stripe_pairs_are_exact(data, group, causal):
    mask, q_len, k_len = data.draw(tiled_masks(group, 1))
    kept = elements(mask, q_len, k_len, group, 1) & visible(q_len, k_len, causal=causal)
    for cls in (TokenPattern, StripePattern):
        assert cls.from_mask(mask, group=group).pairs(q_len, causal=causal) == kept.sum()


@cases
@given(st.data())
def test_union_and_intersection_follow_set_laws(data):
    shape = data.draw(shapes)
    a, b = data.draw(bits(shape)), data.draw(bits(shape))
    p, q = BlockPattern.from_mask(a), BlockPattern.from_mask(b)
    assert torch.equal((p | q).validate().to_mask(), a | b)
    assert torch.equal((p & q).validate().to_mask(), a & b)
    complement = BlockPattern.from_mask(~a)
    assert torch.equal((p | complement).to_mask(), torch.ones_like(a))
    assert not (p & complement).to_mask().any()
    both = (p | q).counts.sum() + (p & q).counts.sum()
    assert both == p.counts.sum() + q.counts.sum()


@cases
@given(small, small, st.integers(0, 2), st.integers(0, 2))
def test_full_holds_exactly_the_blocks_with_a_causal_pair(q_len, k_len, batch, heads):
    pattern = BlockPattern.full(q_len, k_len, batch=batch, heads=heads, block=16).validate()
    kept = visible(q_len, k_len)
    expected = np.broadcast_to(touched(kept), (batch, heads, ceil(q_len / 16), ceil(k_len / 16)))
    assert np.array_equal(pattern.to_mask().numpy(), expected)
    assert pattern.pairs(q_len, k_len) == batch * heads * kept.sum()


def test_pairs_of_long_sequences_need_no_map_of_all_pairs():
    length = 2**20
    offsets = torch.arange(2)
    last_row = BlockPattern(offsets, torch.zeros(1, dtype=torch.int32), (1, 1, 1, 2**16), 16)
    assert last_row.pairs(16, length) == 256
    diagonal = torch.arange(2**16 + 1)
    pattern = BlockPattern(diagonal, diagonal[:-1].int(), (1, 1, 2**16, 2**16), 16)
    assert pattern.pairs(length, length) == 2**16 * (16 * 17 // 2)
    assert Window(0, length).pairs(length, length) == length * (length + 1) // 2


@pytest.mark.parametrize("kind", [(BlockPattern, "block", 64), (TokenPattern, "group", 2)])
def test_patterns_are_frozen_and_survive_copies(kind):
    cls, argument, value = kind
    mask = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    kept = mask.clone()
    pattern = cls.from_mask(mask, **{argument: value})
    for twin in (copy.deepcopy(pattern), pickle.loads(pickle.dumps(pattern)), pattern.to("cpu")):
        assert torch.equal(twin.to_mask(), mask)
        assert repr(twin) == repr(pattern)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.shape = (1, 1, 1, 1)
    assert torch.equal(mask, kept)
    assert pattern.to("meta").indices.device.type == "meta"
    assert pattern.indices.device.type == "cpu"


def test_masks_may_be_strided():
    mask = (torch.arange(2 * 3 * 4 * 5) % 3 == 0).reshape(2, 3, 4, 5)
    for view in (mask.transpose(1, 2), mask[:, ::2, :, 1:], mask[:, :, :1].expand(-1, -1, 6, -1)):
        assert torch.equal(BlockPattern.from_mask(view).to_mask(), view)
        assert torch.equal(TokenPattern.from_mask(view, group=1).to_mask(), view)


def ids(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


ROW = ids(0, 2, dtype=torch.int64)
BAD_INDICES = {
    "duplicate": (BlockPattern(ROW, ids(1, 1), (1, 1, 1, 4), 16), "strictly ascending"),
    "unsorted": (StripePattern(ROW, ids(2, 1), (1, 1, 1, 4), 1), "strictly ascending"),
    "too large": (BlockPattern(ROW, ids(1, 4), (1, 1, 1, 4), 16), r"\[0, 4\), got 1\.\.4"),
    "negative": (StripePattern(ROW, ids(-1, 1), (1, 1, 1, 4), 1), r"\[0, 4\), got -1\.\.1"),
    "offsets short": (BlockPattern(ROW, ids(0, 1, 2), (1, 1, 1, 4), 16), "from 0 to 3, got 0 to 2"),
    "offsets start": (BlockPattern(ROW + 1, ids(0, 1, 2), (1, 1, 1, 4), 16), "got 1 to 3"),
    "offsets fall": (
        StripePattern(ids(0, 3, 1, 3, dtype=torch.int64), ids(0, 1, 2), (1, 1, 3, 4), 1),
        "rising from 0 to 3",
    ),
    "padding inside": (TokenPattern(ids(0, -1, 2).reshape(1, 1, 1, 3), 1, 4), "at the tail"),
    "padding of -2": (TokenPattern(ids(0, 1, -2).reshape(1, 1, 1, 3), 1, 4), "padded with -1"),
    "token duplicate": (TokenPattern(ids(1, 1).reshape(1, 1, 1, 2), 1, 4), "strictly ascending"),
    "token too large": (TokenPattern(ids(1, 9).reshape(1, 1, 1, 2), 1, 4), r"got 1\.\.9"),
}


@pytest.mark.parametrize("name", BAD_INDICES)
def test_validate_refuses(name):
    pattern, message = BAD_INDICES[name]
    with pytest.raises(ValueError, match=message):
        pattern.validate()


def test_validate_returns_the_pattern_and_lets_rows_restart():
    pattern = BlockPattern(ids(0, 2, 4, dtype=torch.int64), ids(2, 3, 0, 1), (1, 1, 2, 4), 16)
    assert pattern.validate() is pattern


MASK = torch.ones(1, 1, 2, 2, dtype=torch.bool)
BAD_CALLS = {
    "block 24": (lambda: BlockPattern.from_mask(MASK, block=24), ValueError, "16, got 24"),
    "block 0": (lambda: BlockPattern.full(4, 4, block=0), ValueError, "16, got 0"),
    "window block": (lambda: Window(0, 1).blocks(4, 4, block=8), ValueError, "16, got 8"),
    "group 0": (lambda: TokenPattern.from_mask(MASK, group=0), ValueError, "group .* got 0"),
    "stripe group": (lambda: StripePattern.from_mask(MASK, group=-1), ValueError, "got -1"),
    "k_len": (lambda: TokenPattern(ids(0).reshape(1, 1, 1, 1), 1, -1), ValueError, "k_len"),
    "float mask": (lambda: BlockPattern.from_mask(MASK.float()), TypeError, "mask .*float32"),
    "list mask": (lambda: BlockPattern.from_mask([[True]]), TypeError, "mask .*list"),  # pyright: ignore[reportArgumentType]
    "3-D mask": (lambda: StripePattern.from_mask(MASK[0], group=1), ValueError, "4 dimensions"),
    "offsets dtype": (
        lambda: BlockPattern(ROW.int(), ids(0, 1), (1, 1, 1, 2), 16),
        TypeError,
        "offsets .*int32",
    ),
    "indices dtype": (
        lambda: BlockPattern(ROW, ROW, (1, 1, 1, 2), 16),
        TypeError,
        "indices .*int64",
    ),
    "token dtype": (lambda: TokenPattern(ROW, 1, 4), TypeError, "indices .*int64"),
    "token rank": (lambda: TokenPattern(ids(0), 1, 4), ValueError, "4 dimensions"),
    "offsets length": (
        lambda: BlockPattern(ROW, ids(0, 1), (1, 2, 1, 2), 16),
        ValueError,
        r"1 \+ 2 offsets",
    ),
    "devices": (
        lambda: BlockPattern(ROW, ids(0, 1).to("meta"), (1, 1, 1, 2), 16),
        ValueError,
        "one device, got cpu and meta",
    ),
    "shape of three": (
        lambda: StripePattern(ROW, ids(0, 1), (1, 1, 2), 1),  # pyright: ignore[reportArgumentType]
        ValueError,
        "four sizes",
    ),
    "negative shape": (
        lambda: StripePattern(ROW, ids(0, 1), (1, 1, 1, -2), 1),
        ValueError,
        "four sizes",
    ),
    "other lengths": (
        lambda: BlockPattern.full(64, 64).pairs(65, 64),
        ValueError,
        "fit .*q_len=65 and k_len=64",
    ),
    "other q_len": (lambda: TokenPattern.from_mask(MASK, group=2).pairs(5), ValueError, "q_len=5"),
    "union of others": (
        lambda: BlockPattern.from_mask(MASK) | BlockPattern.from_mask(MASK, block=32),
        ValueError,
        "one shape and block",
    ),
    "sink": (lambda: Window(-1, 4), ValueError, "sink .* got -1"),
    "local": (lambda: Window(4, 0), ValueError, "local .* got 0"),
    "not a window": (
        lambda: Window.from_mask(torch.eye(3, dtype=torch.bool).flip(0)),
        ValueError,
        "window",
    ),
    "not diagonals": (
        lambda: Diagonal.from_mask(torch.ones(2, 2).triu().bool() & MASK.new_tensor([False, True])),
        ValueError,
        "in part",
    ),
    "diagonal order": (lambda: Diagonal((2, 1)), ValueError, r"\(2, 1\)"),
    "diagonal twice": (lambda: Diagonal((1, 1)), ValueError, r"\(1, 1\)"),
    "window mask rank": (lambda: Window.from_mask(MASK), ValueError, "2 dimensions"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


@cases
@given(windows, small, small)
def test_window_mask_pairs_density_and_round_trip(window, q_len, k_len):
    mask, expected = window.to_mask(q_len, k_len), visible(q_len, k_len, window)
    assert np.array_equal(mask.numpy(), expected)
    assert window.pairs(q_len, k_len) == expected.sum()
    every = visible(q_len, k_len).sum()
    assert window.density(q_len, k_len) == (expected.sum() / every if every else 0)
    assert torch.equal(Window.from_mask(mask).to_mask(q_len, k_len), mask)


def test_window_is_recovered_when_the_mask_tells():
    assert Window.from_mask(Window(3, 5).to_mask(20, 20)) == Window(3, 5)


@cases
@given(windows, small, small)
def test_window_blocks_are_the_fewest_that_cover_it(window, q_len, k_len):
    pattern = window.blocks(q_len, k_len, block=16, batch=2, heads=1).validate()
    kept = visible(q_len, k_len, window)
    assert np.array_equal(pattern.to_mask().numpy(), np.stack([touched(kept)[None]] * 2))
    assert pattern.pairs(q_len, k_len, window=window) == 2 * window.pairs(q_len, k_len)


@cases
@given(st.sets(st.integers(-60, 60)), small, small)
def test_diagonal_mask_density_and_round_trip(offsets, q_len, k_len):
    diagonal = Diagonal(tuple(sorted(offsets)))
    mask = diagonal.to_mask(q_len, k_len)
    assert mask.tolist() == [
        [i + k_len - q_len - j in offsets for j in range(k_len)] for i in range(q_len)
    ]
    assert torch.equal(Diagonal.from_mask(mask).to_mask(q_len, k_len), mask)
    if mask.numel():
        assert diagonal.density(q_len, k_len) == pytest.approx(mask.double().mean().item())
