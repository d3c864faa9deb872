from collections.abc import Iterator

import pytest

from gossamer.kernels import instruction_set, instruction_sets


@pytest.fixture(params=["reference", *instruction_sets()])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every implementation that runs here: the reference, and the native kernels on each ISA."""
    if request.param == "reference":
        yield "reference"
    else:
        with instruction_set(request.param):
            yield "cpu"
