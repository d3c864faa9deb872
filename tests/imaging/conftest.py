from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gossamer.imaging import CartesianMRI, masks


@dataclass(frozen=True)
class Scan:
    image: Tensor  # the truth
    physics: CartesianMRI
    kspace: Tensor


@pytest.fixture
def small() -> Scan:
    """A smooth object that moves, 5 x 12 x 10, complex128, half sampled, a little noise."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(5)[:, None, None]
    row, column = torch.arange(12)[:, None], torch.arange(10)
    image = ((row - 5 - 0.4 * time) ** 2 + (column - 4) ** 2 < 12).to(torch.complex128)
    image = image * torch.polar(torch.ones(()), torch.tensor(0.4)).to(torch.complex128) + 0.2j
    physics = CartesianMRI(masks.cartesian(5, 12, 10, acceleration=2, centre=2, seed=0))
    noise = 0.02 * torch.randn(image.shape, dtype=image.dtype, generator=generator)
    return Scan(image, physics, physics.measured(physics.forward(image) + noise))
