import copy
import dataclasses
import math
import pickle
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.schedules import Constant, Cosine, Cubic, EverySteps, InverseTime, Linear, Once

cases = settings(max_examples=200, deadline=None)
values = st.floats(-10, 10)
steps = st.integers(1, 500)
begins = st.integers(0, 100)
ramps = st.builds(
    lambda kind, *arguments: kind(*arguments),
    st.sampled_from([Linear, Cubic, Cosine]),
    values,
    values,
    steps,
    begins,
)
SHARES = {
    Linear: lambda t: 1 - t,
    Cubic: lambda t: (1 - t) ** 3,
    Cosine: lambda t: (1 + math.cos(math.pi * t)) / 2,
}


@cases
@given(ramps)
def test_endpoints_are_exact_and_the_way_between_monotone(ramp):
    assert {ramp(step) for step in range(ramp.begin + 1)} == {ramp.initial}
    assert {ramp(ramp.begin + ramp.steps + more) for more in (0, 1, 1000)} == {ramp.final}
    path = [ramp(step) for step in range(ramp.begin + ramp.steps + 2)]
    down = ramp.final < ramp.initial
    slack = 1e-12
    for earlier, later in pairwise(path):
        assert later <= earlier + slack if down else later >= earlier - slack


@cases
@given(ramps, st.integers(0, 700))
def test_values_match_the_formula_and_stay_between_the_endpoints(ramp, step):
    progress = min(1, max(0, (step - ramp.begin) / ramp.steps))
    share = SHARES[type(ramp)](progress)
    assert ramp(step) == pytest.approx(ramp.final + (ramp.initial - ramp.final) * share, abs=1e-12)
    assert min(ramp.initial, ramp.final) <= ramp(step) <= max(ramp.initial, ramp.final)


@cases
@given(ramps, st.integers(0, 600))
def test_a_resumed_schedule_continues_where_it_was(ramp, stop):
    whole = [ramp(step) for step in range(stop + 20)]
    for resumed in (pickle.loads(pickle.dumps(ramp)), copy.deepcopy(ramp)):
        assert resumed == ramp
        assert [resumed(step) for step in range(stop, stop + 20)] == whole[stop:]


def test_constant_never_moves():
    assert {Constant(0.25)(step) for step in (0, 1, 10**9)} == {0.25}


@cases
@given(st.integers(1, 9), st.none() | st.integers(20, 40), st.integers(0, 20))
def test_every_steps_is_due_at_begin_and_each_n_until(n, until, begin):
    schedule = EverySteps(n, until=until, begin=begin)
    due, step = [], begin
    while step < (60 if until is None else until):
        due.append(step)
        step += n
    assert [step for step in range(60) if schedule.due(step)] == due


def test_once_is_due_once():
    assert [step for step in range(10) if Once(3).due(step)] == [3]
    assert Once().due(0)


def test_schedules_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Linear(1.0, 0.0, 10).steps = 5  # pyright: ignore[reportAttributeAccessIssue]


BAD_CALLS = {
    "steps of 0": (lambda: Linear(1, 0, 0), "steps .* got 0"),
    "begin < 0": (lambda: Cosine(1, 0, 5, begin=-1), "begin .* got -1"),
    "n of 0": (lambda: EverySteps(0), "n .* got 0"),
    "begin of every": (lambda: EverySteps(2, begin=-2), "begin .* got -2"),
    "until": (lambda: EverySteps(2, until=3, begin=4), "begin=4, got 3"),
    "once < 0": (lambda: Once(-1), "step .* got -1"),
    "step of a constant": (lambda: Constant(1.0)(-1), "step .* got -1"),
    "step of a ramp": (lambda: Cubic(1, 0, 5)(-3), "step .* got -3"),
    "step of once": (lambda: Once().due(-1), "step .* got -1"),
    "step of every": (lambda: EverySteps(2).due(-1), "step .* got -1"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()


@cases
@given(st.floats(1e-3, 10), st.floats(0, 1), st.integers(0, 1000))
def test_inverse_time_adds_up_its_decay(initial, decay, step):
    found = InverseTime(initial, decay)
    assert found(0) == initial
    assert 1 / found(step + 1) - 1 / found(step) == pytest.approx(decay / initial, abs=1e-7)


def test_inverse_time_refuses_growth():
    for decay in (-1.0, math.nan):
        with pytest.raises(ValueError, match="decay of at least 0, got"):
            InverseTime(1.0, decay)
    with pytest.raises(ValueError, match="step of at least 0, got -1"):
        InverseTime(1.0, 0.1)(-1)
