from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test and every docstring's example draws the same numbers, in any order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
