from typing import Any

import pytest

from gossamer.testing.attention import tiny_llama


@pytest.fixture
def llama() -> Any:
    return tiny_llama()
