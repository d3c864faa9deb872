"""What the reproductions' tests share: HiP and AnchorAttention read the same texts."""

from collections.abc import Callable

import pytest

from gossamer.bench.attention_capture import Captured, capture


@pytest.fixture(scope="session")
def capture_once() -> Callable[..., dict[int, Captured]]:
    """`capture`, remembering every prompt that the one model of these tests has read."""
    known: dict[tuple[bytes, tuple[int, ...]], dict[int, Captured]] = {}

    def captured(model, input_ids, layers):
        prompt = input_ids.numpy().tobytes(), tuple(layers)
        if prompt not in known:
            known[prompt] = capture(model, input_ids, layers)
        return known[prompt]

    return captured
