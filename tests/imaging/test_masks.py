"""Sampling patterns: how much, where, and never the same twice."""

import pytest
import torch

from gossamer.imaging import masks


def test_lines_are_whole_dense_at_the_centre_and_drawn_for_each_frame():
    mask = masks.cartesian(400, 48, 5, acceleration=6, centre=4, seed=0)
    lines = mask[:, :, 0]
    assert bool((mask == mask[:, :, :1]).all())
    assert bool((lines.sum(1) == 8).all())
    assert bool(lines[:, [0, 1, -1, -2]].all()) or bool(lines[:, [0, 1, -1, 2]].all())
    share = torch.fft.fftshift(lines.float().mean(0))
    assert share[24] == 1 and 0 < share[0] < share[12] < share[20]
    assert len(lines.unique(dim=0)) > 390


def test_the_chance_of_a_line_is_the_stated_density():
    """One line of each frame: its share is proportional to (1 - r)^2 + 0.02."""
    frames, height = 20_000, 8
    mask = masks.cartesian(frames, height, 1, acceleration=height, centre=0, seed=3)
    chance = (1 - 2 * torch.fft.fftfreq(height).abs()) ** 2 + 0.02
    found = mask[:, :, 0].float().mean(0)
    assert torch.allclose(found, chance / chance.sum(), atol=0.015)


def test_single_samples_follow_the_same_rule():
    mask = masks.random(300, 16, 12, acceleration=5, centre=9, seed=1)
    assert bool((mask.flatten(1).sum(1) == 38).all())
    share = mask.float().mean(0)
    assert share[0, 0] == 1 and share[8, 6] < share[3, 2] < share[1, 1]


def test_spokes_pass_through_the_centre_and_turn():
    mask = masks.radial(30, 33, 33, spokes=4)
    assert bool(mask[:, 0, 0].all())
    assert len(mask.flatten(1).unique(dim=0)) == 30
    one = masks.radial(1, 33, 33, spokes=1)[0]  # at angle 0: a row
    assert bool(one[0].all()) and int(one.sum()) == 33
    assert bool(masks.radial(60, 33, 33, spokes=4).float().mean(0).min() >= 0)


def test_seeds_decide():
    def draw(seed):
        return masks.cartesian(4, 32, 8, acceleration=4, seed=seed)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (masks.cartesian, {"acceleration": 0.5}, "acceleration: expected at least 1, got 0.5"),
        (masks.cartesian, {"acceleration": float("nan")}, "acceleration: .* got nan"),
        (masks.cartesian, {"acceleration": 8}, "centre: expected 0 to 4 of the 4 lines"),
        (masks.cartesian, {"acceleration": 4, "centre": -1}, "centre: .* got -1"),
        (masks.random, {"acceleration": 40}, "centre: expected 0 to 26 of the 26"),
        (masks.random, {"acceleration": 0.0}, "acceleration"),
    ],
)
def test_refuses(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(3, 32, 32, seed=0, **options)


def test_refuses_sizes_and_spokes():
    with pytest.raises(ValueError, match=r"sizes of at least 1, got \[0, 32, 32\]"):
        masks.radial(0, 32, 32, spokes=3)
    with pytest.raises(ValueError, match="spokes: expected at least 1, got 0"):
        masks.radial(3, 32, 32, spokes=0)
