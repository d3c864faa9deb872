from collections.abc import Iterator

import pytest
import torch

from gossamer.kernels import instruction_set, instruction_sets


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """torch.empty returns NaN or the largest integer, so that what stays unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=["reference", *instruction_sets()])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every implementation that runs here: the reference, and the native kernels on each ISA."""
    if request.param == "reference":
        yield "reference"
    else:
        with instruction_set(request.param):
            yield "cpu"


@pytest.fixture(params=instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of the native kernels."""
    with instruction_set(request.param):
        yield request.param
