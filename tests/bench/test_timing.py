"""Interleaving, medians and paired ratios, against plain arithmetic."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.bench import timing
from gossamer.bench.timing import Samples, interleaved, peak_rss, ratio

positive = st.floats(1e-6, 1e6)


class Clock:
    """A clock that only the timed functions move."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_functions_run_round_by_round_and_warmup_is_not_timed(monkeypatch):
    clock, order = Clock(), []
    monkeypatch.setattr(timing.time, "perf_counter", clock.perf_counter)

    def advance(name, step):
        order.append(name)
        clock.now += step * len(order)

    times = interleaved(
        {"a": lambda: advance("a", 1.0), "b": lambda: advance("b", 10.0)}, repeats=3, warmup=2
    )

    assert order == ["a", "b"] * 5
    assert times == {"a": Samples((5.0, 7.0, 9.0)), "b": Samples((60.0, 80.0, 100.0))}


def test_cuda_is_waited_for_before_and_after_each_call(monkeypatch):
    events = []
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda device: events.append("wait"))
    interleaved({"a": lambda: events.append("call")}, repeats=2, warmup=0, device="cuda:0")
    assert events == ["wait", "call", "wait"] * 2


@given(st.lists(positive, min_size=1, max_size=30))
def test_summaries_match_their_definitions(values):
    samples = Samples(tuple(values))
    ordered = sorted(values)
    assert samples.minimum == ordered[0]
    assert samples.maximum == ordered[-1]
    assert samples.median == statistics.median(values)
    assert 0 <= samples.spread <= ordered[-1] - ordered[0] + 1e-9


def test_spread_is_the_interquartile_range():
    assert Samples((1.0, 2.0, 3.0, 4.0, 5.0)).spread == 2.0
    assert Samples((7.0,)).spread == 0.0


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=20))
def test_ratio_pairs_rounds_and_inverts(pairs):
    top, bottom = (Samples(tuple(column)) for column in zip(*pairs, strict=True))
    assert ratio(top, bottom).values == tuple(a / b for a, b in pairs)
    inverse = ratio(bottom, top).values
    assert all(
        value * back == pytest.approx(1)
        for value, back in zip(ratio(top, bottom).values, inverse, strict=True)
    )


def test_ratio_ignores_a_machine_that_slows_down():
    ours = Samples((1.0, 2.0, 4.0))
    stock = Samples((3.0, 6.0, 12.0))
    assert ratio(stock, ours).median == 3.0
    assert ratio(stock, ours).spread == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interleaved({}), "functions: expected at least one"),
        (lambda: interleaved({"a": int}, repeats=0), "repeats: expected at least 1, got 0"),
        (lambda: interleaved({"a": int}, warmup=-1), "warmup: expected at least 0, got -1"),
        (lambda: Samples(()), "values: expected at least one"),
        (lambda: ratio(Samples((1.0,)), Samples((1.0, 2.0))), "as many rounds .* got 2"),
        (lambda: ratio(Samples((1.0,)), Samples((0.0,))), "positive values, got 0.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_peak_rss_counts_bytes_and_never_falls():
    before = peak_rss()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    after = peak_rss()
    del block
    assert 2**24 < before <= after == peak_rss()
