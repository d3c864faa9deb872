import pytest
import torch

from gossamer.testing import (
    LAYOUTS,
    SHAPES,
    VALUES,
    AttentionShape,
    attention_inputs,
    random_mask,
    rotary_tables,
)

SMALL = AttentionShape(2, 6, 2, 5, 9, 4)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_has_the_asked_shape_dtype_and_seed(values, dtype):
    drawn = attention_inputs(SMALL, dtype=dtype, values=values, seed=3)
    assert [tuple(x.shape) for x in drawn] == [(2, 6, 5, 4), (2, 2, 9, 4), (2, 2, 9, 4)]
    assert all(x.dtype == dtype and x.isfinite().all() for x in drawn)
    again = attention_inputs(SMALL, dtype=dtype, values=values, seed=3)
    assert all(torch.equal(x, y) for x, y in zip(drawn, again, strict=True))


def test_the_kinds_are_what_they_say():
    query, key, _ = attention_inputs(SMALL, values="huge logit")
    scores = query @ key.repeat_interleave(3, 1).mT / 2.0
    assert torch.equal(scores[..., 4], torch.full_like(scores[..., 4], 1e4))
    drawn = attention_inputs(SMALL, values="denormal")
    tiny = torch.finfo(torch.float32).tiny
    assert all(((x != 0) & (x.abs() < tiny)).all() for x in drawn)
    assert all(x.signbit().all() for x in attention_inputs(SMALL, values="negative zero"))
    assert attention_inputs(SMALL, values="large value")[2].abs().max() > 1e30
    integers = torch.cat([x.flatten() for x in attention_inputs(SMALL, values="integers")])
    assert integers.unique().tolist() == [-2, -1, 0, 1, 2]


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match=r"expected values to be one of normal, .*got 'odd'"):
        attention_inputs(SMALL, values="odd")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values_and_change_the_strides(layout):
    tensor = attention_inputs(SMALL)[0]
    view = LAYOUTS[layout](tensor)
    assert torch.equal(view, tensor) and view.stride() != tensor.stride()


def test_the_table_covers_the_lengths_dims_and_ratios_that_break_kernels():
    assert {shape.k_len for shape in SHAPES} >= {0, 1, 2, 63, 64, 65, 127, 1000, 1025}
    assert {shape.dim for shape in SHAPES} >= {1, 8, 33, 64, 80, 128}
    assert {shape.heads // shape.kv_heads for shape in SHAPES} >= {1, 3, 8}
    assert {shape.batch for shape in SHAPES} >= {0, 1, 2, 3}
    assert any(shape.q_len < shape.k_len for shape in SHAPES)


def test_random_masks_have_their_density():
    assert not random_mask((9, 9), density=0.0).any()
    assert random_mask((9, 9), density=1.0).all()
    assert 0.2 < random_mask((100, 100), density=0.25).float().mean() < 0.3


def test_rotary_tables_rotate_by_rank_times_frequency():
    cosine, sine = rotary_tables(7, 8, base=100.0)
    angle = torch.atan2(sine, cosine)
    expected = torch.tensor([6.0 * 100.0 ** (-i / 4) for i in range(4)])
    turns = 2 * torch.pi
    torch.testing.assert_close(angle[6].remainder(turns), expected.remainder(turns))
