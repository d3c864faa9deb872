import pytest
import torch

from gossamer.attention import DenseAttention, LayerState, Meter
from gossamer.kernels import rotate
from gossamer.testing import (
    AttentionShape,
    attention_inputs,
    check_close,
    dense_attention,
    rotary_tables,
    visible_keys,
)
from gossamer.testing.attention import run_layer


@pytest.mark.parametrize("q_len", [1, 5, 60, 130])
@pytest.mark.parametrize("starts", [None, [0, 64, 130]], ids=["full", "padded"])
def test_is_exact_attention(q_len: int, starts: list[int] | None) -> None:
    query, key, value = attention_inputs(AttentionShape(3, 6, 2, q_len, 130, 32))
    state = LayerState(key_start=None if starts is None else torch.tensor(starts), meter=Meter())
    found = run_layer(DenseAttention(), query, key, value, state)
    cosine, sine = (table.double() for table in rotary_tables(130, 32))
    near = rotate(query, cosine[-q_len:].float(), sine[-q_len:].float())
    mask = visible_keys(None, query, key, key_start=state.key_start)
    exact = dense_attention(near, rotate(key, cosine.float(), sine.float()), value, mask).output
    check_close(found, exact, 5e-6 * float(value.abs().max()))
    assert state.meter is not None
    assert state.meter.density == 1.0


def test_decode_reads_every_key_once() -> None:
    query, key, value = attention_inputs(AttentionShape(2, 6, 2, 1, 130, 32))
    state = LayerState(meter=Meter())
    run_layer(DenseAttention(), query, key, value, state)
    assert state.meter is not None
    assert state.meter.bytes_read == 2 * 2 * 2 * 130 * 32 * 4  # sides, batch, key heads
    assert state.meter.selection_share == 0.0
