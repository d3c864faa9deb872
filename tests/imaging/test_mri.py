"""The measurement operator: its adjoint, its norm, the order of k-space, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.imaging import CartesianMRI, masks

cases = settings(max_examples=30, deadline=None)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mask(frames: int, height: int, width: int) -> Tensor:
    chosen = torch.rand(frames, height, width, generator=torch.Generator().manual_seed(1)) < 0.4
    chosen[:, 0, 0] = True
    return chosen


@cases
@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2)
)
def test_adjoint(frames, height, width, coils, batch):
    maps = draw(coils, height, width, seed=2) if coils else None
    physics = CartesianMRI(mask(frames, height, width), maps)
    lead = (2,) * batch
    x = draw(*lead, frames, height, width)
    y = draw(*lead, *((coils,) if coils else ()), frames, height, width, seed=3)
    forward, back = physics.A(x), physics.A_adjoint(y)
    assert forward.shape == y.shape and back.shape == x.shape
    left, right = (
        torch.vdot(forward.flatten(), y.flatten()),
        torch.vdot(x.flatten(), back.flatten()),
    )
    assert abs(left - right) <= 1e-10 * (1 + abs(left))
    assert float(forward.norm()) <= physics.norm() * float(x.norm()) * (1 + 1e-12)


def test_the_norm_is_attained_when_all_is_sampled():
    physics = CartesianMRI(torch.ones(2, 6, 7, dtype=torch.bool), draw(3, 6, 7))
    brightest = torch.zeros(2, 6, 7, dtype=torch.complex128)
    brightest.view(2, -1)[:, physics.coil_maps.abs().square().sum(0).argmax()] = 1
    ratio = float(physics.forward(brightest).norm() / brightest.norm())
    assert ratio == pytest.approx(physics.norm())
    assert CartesianMRI(mask(2, 6, 7)).norm() == 1.0


def test_kspace_is_the_transform_by_its_definition():
    """Sums of waves, with the centre of k-space at [0, 0]; real parts alone would not do."""
    physics = CartesianMRI(torch.ones(2, 4, 5, dtype=torch.bool))
    x = draw(2, 4, 5)
    found = physics.forward(x).numpy()
    u, v = np.arange(4), np.arange(5)
    rows, columns = (
        np.exp(-2j * np.pi * np.outer(u, u) / 4),
        np.exp(-2j * np.pi * np.outer(v, v) / 5),
    )
    wanted = np.einsum("uh,vw,thw->tuv", rows, columns, x.numpy()) / math.sqrt(20)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_a_mask_with_the_centre_in_the_middle_gives_another_image():
    """What a shifted mask would do to an image whose energy is at low frequencies."""
    smooth = torch.ones(1, 32, 32, dtype=torch.complex128)
    right = masks.cartesian(1, 32, 32, acceleration=4, seed=0)
    wrong = torch.fft.fftshift(right, dim=(-2, -1))
    kept = [float(CartesianMRI(m).forward(smooth).norm() / smooth.norm()) for m in (right, wrong)]
    assert kept[0] == pytest.approx(1) and kept[1] < 0.5


def test_what_was_not_sampled_is_not_read():
    physics = CartesianMRI(mask(3, 5, 6))
    y = draw(3, 5, 6)
    expected = physics.adjoint(physics.measured(y))
    y[~physics.mask] = torch.nan
    assert torch.equal(physics.adjoint(physics.measured(y)), expected)


MASK = mask(3, 5, 6)
MAPS = draw(2, 5, 6)
EMPTY = MASK.clone()
EMPTY[1] = False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((MASK.float(),), TypeError, r"mask: expected bool, got torch.float32, try mask != 0"),
        ((MASK[0],), ValueError, r"mask: expected \[T, H, W\], got \[5, 6\]"),
        ((MASK[:0],), ValueError, r"got \[0, 5, 6\]"),
        ((EMPTY,), ValueError, r"samples in every frame, got none in frame 1"),
        ((MASK, MAPS.real), TypeError, r"coil_maps: expected complex, got torch.float64"),
        ((MASK, MAPS[0]), ValueError, r"coil_maps: expected \[C, 5, 6\] on cpu, got \[5, 6\]"),
        ((MASK, MAPS.mT), ValueError, r"got \[2, 6, 5\]"),
        ((MASK, MAPS.to("meta")), ValueError, r"on cpu, got .* on meta"),
        ((MASK, MAPS * torch.nan), ValueError, r"coil_maps: expected finite"),
    ],
)
def test_a_bad_operator_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        CartesianMRI(*arguments)


KSPACE = draw(3, 5, 6)


@pytest.mark.parametrize(
    ("maps", "kspace", "error", "message"),
    [
        (None, KSPACE.real, TypeError, r"kspace: expected complex, got torch.float64"),
        (None, KSPACE[:2], ValueError, r"kspace: expected \[3, 5, 6\] on cpu, got \[2, 5, 6\]"),
        (None, KSPACE[None], ValueError, r"got \[1, 3, 5, 6\] .*try one sequence at a time"),
        (None, KSPACE.to("meta"), ValueError, r"on cpu, got .* on meta"),
        (MAPS, KSPACE, ValueError, r"kspace: expected \[2, 3, 5, 6\]"),
        (MAPS, draw(2, 3, 5, 6).to(torch.complex64), TypeError, r"complex128 like coil_maps"),
        (None, KSPACE * torch.inf, ValueError, r"kspace: expected finite samples"),
    ],
)
def test_bad_data_are_refused(maps, kspace, error, message):
    with pytest.raises(error, match=message):
        CartesianMRI(MASK, maps).measured(kspace)
