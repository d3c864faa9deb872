"""Small models whose every layer kind a method meets, and loops that train them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05),
    "momentum": lambda parameters: torch.optim.SGD(
        parameters, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True
    ),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1),
    "adam-amsgrad": lambda parameters: torch.optim.Adam(
        parameters, 1e-2, weight_decay=1e-2, amsgrad=True
    ),
}


def build(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A convolution with a norm, two hidden layers and a classifier, for [N, 4, 6, 6]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 32),
            nn.ReLU(),
            nn.Linear(32, 16, bias=False),
            nn.ReLU(),
            nn.Linear(16, 5),
        ).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(12, 4, 6, 6, generator=generator, dtype=dtype)
    return x, torch.randint(5, (12,), generator=generator)


def train(model: nn.Module, optimizer, steps: range, dtype: torch.dtype = torch.float64) -> None:
    for step in steps:
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.fixture(params=OPTIMIZERS)
def make_optimizer(request: pytest.FixtureRequest) -> Callable:
    return OPTIMIZERS[request.param]
