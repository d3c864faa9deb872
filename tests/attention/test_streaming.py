import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.attention import LayerState, Meter, StreamingAttention
from gossamer.testing import AttentionShape, attention_inputs, check_close, dense_attention


def kept(method: StreamingAttention, q_len: int, k_len: int, start: int) -> torch.Tensor:
    """Pair by pair, from the definition: sinks are a sequence's own first tokens."""
    mask = torch.zeros(q_len, k_len, dtype=torch.bool)
    for row in range(q_len):
        position = row + k_len - q_len
        for j in range(start, position + 1):
            mask[row, j] = j - start < method.sink or position - j < method.local
    return mask


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20),
    st.integers(1, 70),
    st.integers(1, 90),
    st.integers(0, 40),
    st.lists(st.integers(0, 90), min_size=2, max_size=2) | st.none(),
)
def test_keeps_sinks_and_window(
    sink: int, local: int, q_len: int, cached: int, starts: list[int] | None
) -> None:
    method, k_len = StreamingAttention(sink, local), q_len + cached
    query, key, value = attention_inputs(AttentionShape(2, 4, 2, q_len, k_len, 8), seed=sink)
    begins = [min(start, k_len) for start in starts or (0, 0)]
    state = LayerState(
        scale=0.5, key_start=None if starts is None else torch.tensor(begins), meter=Meter()
    )
    found = method(query, key, value, state)
    mask = torch.stack([kept(method, q_len, k_len, begin) for begin in begins])[:, None]
    exact = dense_attention(query, key, value, mask, scale=0.5).output
    check_close(found, exact, 5e-6 * float(value.abs().max()))
    if starts is None:
        causal = torch.ones(q_len, k_len).tril(k_len - q_len).sum()
        assert state.meter is not None
        assert state.meter.density == pytest.approx(float(mask[0, 0].sum() / causal))


@pytest.mark.parametrize(("q_len", "k_len"), [(120, 120), (40, 120), (1, 120)])
def test_a_padded_sequence_attends_as_it_does_alone(q_len: int, k_len: int) -> None:
    query, key, value = attention_inputs(AttentionShape(3, 4, 2, q_len, k_len, 8))
    method, pads = StreamingAttention(sink=3, local=20), [0, 17, 64]
    for b, pad in enumerate(pads):
        key[b, :, :pad], value[b, :, :pad] = 9.0, 1e4  # must not matter
    found = method(query, key, value, LayerState(scale=0.5, key_start=torch.tensor(pads)))
    for b, pad in enumerate(pads):
        row, first = slice(b, b + 1), max(0, pad - k_len + q_len)
        real = query[row, :, first:], key[row, :, pad:], value[row, :, pad:]
        check_close(found[row, :, first:], method(*real, LayerState(scale=0.5)).double(), 1e-6)


def test_decode_reads_its_keys_only() -> None:
    query, key, value = attention_inputs(AttentionShape(1, 4, 2, 1, 200, 8))
    method = StreamingAttention(sink=3, local=20)
    state = LayerState(scale=0.5, meter=Meter())
    before = method(query, key, value, state)
    assert state.meter is not None
    assert state.meter.density == 23 / 200
    assert state.meter.bytes_read == 2 * 2 * 23 * 8 * 4
    key[:, :, 3:180], value[:, :, 3:180] = torch.nan, torch.nan
    assert torch.equal(method(query, key, value, LayerState(scale=0.5)), before)
