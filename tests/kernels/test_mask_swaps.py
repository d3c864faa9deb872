"""DSnoT's swap loop against the paper's rule in plain loops over rows and weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossamer.compression import DSnoT, InputStatistics, Layer, Wanda
from gossamer.kernels import backend, dsnot_refine
from gossamer.patterns import NM


def plain_row(weight, mask, total, norm, variance, *, cycles, threshold, power, guard, scores, m):
    """One row, one swap after the other; nothing ranked ahead."""
    effect, kept = weight * total, mask.copy()
    first, entered, left = mask.copy(), np.zeros_like(mask), np.zeros_like(mask)
    error = start = effect[~mask].sum()
    swaps = 0
    while swaps < cycles and abs(error) > threshold:
        sign = np.sign(error)
        enter = [c for c in np.flatnonzero(~first & ~entered) if sign * effect[c] > 0]
        if not enter:
            break
        grown = max(enter, key=lambda c: sign * effect[c] / max(variance[c], 1e-12) ** power)
        stay = np.flatnonzero(first & ~left)
        if m:
            leave = [c for c in stay if c // m == grown // m]
            order = scores
        else:
            leave = [c for c in stay if sign * effect[c] < 0]
            order = np.abs(weight) * norm
        if not leave:
            break
        pruned = min(leave, key=lambda c: order[c])
        after = error + effect[pruned] - effect[grown]
        if (guard or m) and after * start < 0:
            break
        kept[grown], kept[pruned], entered[grown], left[pruned] = True, False, True, True
        error, swaps = after, swaps + 1
    return kept, swaps, start, error


def case(rows: int, width: int, density: float, seed: int, pattern: NM | None = None):
    torch.manual_seed(seed)
    weight = torch.randn(rows, width)
    total, norm = torch.randn(width) * 3, torch.rand(width) + 0.1
    variance = torch.rand(width) + 0.01
    total[torch.rand(width) < 0.1] = 0.0  # dead inputs have no effect
    scores = weight.abs() * norm
    if pattern is None:
        mask = torch.rand(rows, width) < density
    else:
        kept = scores.unflatten(1, (-1, pattern.m)).topk(pattern.n).indices
        mask = torch.zeros(rows, width // pattern.m, pattern.m, dtype=torch.bool)
        mask = mask.scatter(2, kept, True).flatten(1)
    return weight, mask, {"total": total, "norm": norm, "variance": variance}, scores


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 8),
    st.integers(1, 24),
    st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]),
    st.sampled_from([None, NM(2, 4), NM(1, 4), NM(3, 4)]),
    st.booleans(),
    st.sampled_from([0, 1, 3, 50]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 1.0, 0.5]),
    st.integers(0, 10_000),
)
def test_masks_are_those_of_plain_loops(
    impl, rows, width, density, pattern, guard, cycles, threshold, power, seed
):
    width = width if pattern is None else 4 * math.ceil(width / 4)
    weight, mask, moments, scores = case(rows, width, density, seed, pattern)
    found = dsnot_refine(
        weight,
        mask,
        **moments,
        max_cycles=cycles,
        threshold=threshold,
        var_power=power,
        same_sign=guard,
        pattern=pattern,
        scores=scores,
        impl=impl,
    )
    arrays = [moments[name].double().numpy() for name in ("total", "norm", "variance")]
    for r in range(rows):
        kept, swaps, start, error = plain_row(
            weight[r].double().numpy(),
            mask[r].numpy(),
            *arrays,
            cycles=min(cycles, width),
            threshold=threshold,
            power=power,
            guard=guard,
            scores=scores[r].double().numpy(),
            m=pattern.m if pattern else 0,
        )
        assert found.before[r] == pytest.approx(start, abs=1e-4)
        if abs(abs(error) - threshold) < 1e-4 or abs(error) < 1e-5:
            continue  # rounding may decide whether such a row swaps once more
        assert found.mask[r].tolist() == kept.tolist()
        assert int(found.swaps[r]) == swaps
        assert found.after[r] == pytest.approx(error, abs=1e-4)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 40), st.integers(2, 60), st.integers(0, 1000))
def test_guarded_errors_never_grow_and_counts_stay(impl, rows, width, seed):
    weight, mask, moments, _ = case(rows, width, 0.5, seed)
    before = mask.clone()
    found = dsnot_refine(weight, mask, **moments, max_cycles=50, impl=impl)
    assert torch.equal(mask, before)
    assert torch.equal(found.mask.sum(1), mask.sum(1))
    assert bool((found.after.abs() <= found.before.abs()).all())
    effect = (weight * moments["total"]).double()
    torch.testing.assert_close((effect * ~found.mask).sum(1), found.after, atol=1e-3, rtol=1e-4)
    assert bool(((found.swaps > 0) == (found.after != found.before)).all())


def test_n_m_groups_keep_their_count_after_every_number_of_swaps(impl):
    weight, mask, moments, scores = case(30, 64, 0.5, 5, NM(2, 4))
    for cycles in range(12):
        found = dsnot_refine(
            weight,
            mask,
            **moments,
            max_cycles=cycles,
            pattern=NM(2, 4),
            scores=scores,
            impl=impl,
        )
        assert bool((found.mask.unflatten(1, (-1, 4)).sum(2) == 2).all())
    assert float(found.after.abs().mean()) < 0.5 * float(found.before.abs().mean())


def test_the_threshold_is_in_units_of_a_sequence():
    """With a mean per token instead, 0.1 would stop nearly every row at once."""
    torch.manual_seed(0)
    inputs = InputStatistics()
    for _ in range(4):
        inputs.update(torch.randn(512, 64) * 0.1 + 0.05)
    layer = Layer("fc", torch.randn(48, 64) * 0.05, inputs)
    first = Wanda(0.5).decide(layer)
    found = DSnoT().refine(layer, first)
    assert float((found.swaps > 0).double().mean()) > 0.5
    assert float((found.before / 512).abs().max()) < 0.1
    assert float(found.before.abs().mean()) > 2 * float(found.after.abs().mean())


def test_narrow_layers_get_fewer_cycles_than_the_paper():
    assert [DSnoT().cycles(width) for width in (64, 576, 4096, 11008)] == [4, 7, 50, 134]
    assert DSnoT(3).cycles(4096) == 3


def test_all_paths_agree_on_a_wide_layer(impl):
    weight, mask, moments, _ = case(50, 700, 0.4, 11)
    options = {**moments, "max_cycles": 40, "same_sign": False}
    found = dsnot_refine(weight, mask, **options, impl=impl)
    expected = dsnot_refine(weight, mask, **options, impl="reference")
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.swaps, expected.swaps) and int(found.swaps.sum()) > 50
    torch.testing.assert_close(found.after, expected.after, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("group", [0, 4])
def test_the_kernel_stays_inside_its_tensors(guarded, group):
    weight, mask, moments, scores = case(6, 20, 0.5, 3, NM(2, 4) if group else None)
    pattern = NM(2, 4) if group else None
    expected = dsnot_refine(
        weight, mask, **moments, max_cycles=9, pattern=pattern, scores=scores, impl="cpu"
    )
    steady = moments["variance"].reciprocal()
    inputs = [weight, mask.view(torch.uint8), moments["total"], moments["norm"], steady, scores]
    rows = torch.zeros(6, dtype=torch.float64)
    outputs = [torch.zeros(6, 20, dtype=torch.uint8), rows.long(), rows, rows.clone()]
    inputs, outputs = [guarded(t) for t in inputs], [guarded(t) for t in outputs]
    backend.launch("mask_swaps", *inputs, *outputs, 9, 0.1, True, group, 1)
    assert torch.equal(outputs[0].bool(), expected.mask)
    assert torch.equal(outputs[1], expected.swaps) and torch.equal(outputs[3], expected.after)


@pytest.mark.parametrize("cycles", [0, 5])
def test_the_operator_traces(cycles):
    weight, mask, moments, scores = case(4, 12, 0.5, 8)
    steady = moments["variance"].reciprocal()
    arguments = (weight, mask, moments["total"], moments["norm"], steady, scores, cycles)
    torch.library.opcheck(
        torch.ops.gossamer.mask_swaps,
        (*arguments, 0.1, True, 0, "reference"),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(2, 8).double()}, TypeError, "float32 weight"),
        ({"mask": torch.ones(2, 8)}, TypeError, "bool mask"),
        ({"mask": torch.ones(2, 7).bool()}, ValueError, r"expected mask \[out, in\]"),
        ({"scores": torch.ones(8)}, ValueError, "expected scores"),
        ({"norm": torch.ones(7)}, ValueError, r"expected norm of \[8\]"),
        ({"pattern": NM(1, 3)}, ValueError, "groups of 3, got 8"),
        ({"max_cycles": -1}, ValueError, "max_cycles of at least 0"),
        ({"impl": "triton"}, ValueError, "expected impl"),
    ],
)
def test_bad_input_is_refused(changes, error, message):
    one = torch.ones(8)
    arguments = {
        **{"weight": torch.ones(2, 8), "mask": torch.ones(2, 8).bool(), "max_cycles": 3},
        **{"total": one, "norm": one, "variance": one, **changes},
    }
    with pytest.raises(error, match=message):
        dsnot_refine(**arguments)
