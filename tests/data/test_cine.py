"""The generated cine: a beat that comes back, a band-limited image, seeds that matter."""

import pytest
import torch

from gossamer.data.cine import cine


def test_it_beats_once_and_little_else_moves():
    image = cine(48, 12)
    assert image.dtype == torch.complex64 and image.shape == (12, 48, 48)
    assert float(image.abs().max()) == pytest.approx(1)
    moved = (image - image[0]).abs()
    heart = (slice(None), slice(16, 36), slice(14, 34))
    assert float(moved[heart].amax()) > 0.3
    assert float(moved[:, :8].amax()) < 0.1
    size = [float((frame[heart[1:]].abs() > 0.6).sum()) for frame in image]
    assert size.index(min(size)) == 6  # the squeeze is half way through


def test_the_phase_is_smooth_and_there():
    image = cine(48, 1)[0]
    inside = image[16:32, 20:28]
    turn = (inside[:, 1:] * inside[:, :-1].conj()).angle()
    assert 0.005 < float(turn.abs().mean()) < 0.1


def test_texture_follows_the_seed():
    assert torch.equal(cine(32, 3, seed=1), cine(32, 3, seed=1))
    assert float((cine(32, 3, seed=1) - cine(32, 3, seed=2)).abs().max()) > 0.01


@pytest.mark.parametrize(("size", "frames"), [(8, 4), (32, 0)])
def test_refuses(size, frames):
    with pytest.raises(ValueError, match=rf"size >= 16 and frames >= 1, got {size} and {frames}"):
        cine(size, frames)
