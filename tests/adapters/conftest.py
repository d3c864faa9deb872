import pytest
import torch
from hypothesis import strategies as st

from gossamer.kernels import PackedWeight, pack
from gossamer.patterns import NM, Block, Channel, Unstructured

PATTERNS = [Unstructured(), NM(2, 4), NM(1, 8), Block(2, 4), Block(1, 8), Channel(0), Channel(-1)]


def packed_weights() -> st.SearchStrategy[PackedWeight]:
    """Packed weights of any bits: NaNs, infinities, denormals, and -0.0 inside kept units."""

    @st.composite
    def draw(draw: st.DrawFn) -> PackedWeight:
        rows, columns = 2 * draw(st.integers(0, 6)), 8 * draw(st.integers(0, 4))
        pattern = draw(st.sampled_from(PATTERNS if rows * columns else PATTERNS[:1]))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        bits = torch.randint(-(2**31), 2**31 - 1, (rows, columns), generator=generator)
        special = torch.tensor([0, -(2**31), 1, 0x7F800000, 0x7FC00001, -1])
        which = torch.randint(0, 12, (rows, columns), generator=generator)
        bits = torch.where(which < 6, special[which.clamp(max=5)], bits).int()
        weight = bits.view(torch.float32)
        scores = torch.rand(rows, columns, generator=generator)
        if isinstance(pattern, NM):
            groups = scores.reshape(rows, columns // pattern.m, pattern.m)
            kept = (groups.argsort(-1).argsort(-1) < pattern.n).reshape(rows, columns)
        else:
            units = pattern.units(scores)
            kept = pattern.to_mask(units < units.mean(), (rows, columns))
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
        return pack(torch.where(kept, weight, 0.0), pattern, dtype)

    return draw()


@pytest.fixture
def any_packed() -> st.SearchStrategy[PackedWeight]:
    """A strategy for packed weights."""
    return packed_weights()


@pytest.fixture
def assert_same_packed():
    def check(found: PackedWeight, expected: PackedWeight) -> None:
        assert (found.shape, found.dtype, found.pattern) == (
            expected.shape,
            expected.dtype,
            expected.pattern,
        )
        bits = torch.int32 if expected.dtype == torch.float32 else torch.int16
        assert torch.equal(found.values.view(bits), expected.values.view(bits))
        assert found.support.columns.dtype == expected.support.columns.dtype
        assert torch.equal(found.support.columns, expected.support.columns)
        assert torch.equal(found.support.offsets, expected.support.offsets)

    return check
