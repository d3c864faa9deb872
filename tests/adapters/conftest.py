from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gossamer.testing.attention import tiny_llama


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def llama() -> Any:
    return tiny_llama()
