import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.allocations import erdos_renyi, erk, shuffled, uniform

cases = settings(max_examples=200, deadline=None)
rules = st.sampled_from([uniform, erdos_renyi, erk])
kernels = st.sampled_from([(), (3,), (1, 1), (3, 3), (7, 7)])
layers = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.tuples(st.integers(1, 300), st.integers(1, 300), kernels).map(lambda s: (*s[:2], *s[2])),
    min_size=1,
    max_size=8,
)
densities = st.floats(0.001, 1)

FORMULAS = {
    uniform: lambda shape: Fraction(1),
    erdos_renyi: lambda shape: Fraction(shape[0] + shape[1], shape[0] * shape[1]),
    erk: lambda shape: Fraction(sum(shape), math.prod(shape)),
}


@cases
@given(rules, layers, densities)
def test_densities_follow_the_formula_and_meet_the_budget(rule, shapes, density):
    found = rule(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert list(found) == list(shapes)
    assert all(0 < d <= 1 for d in found.values())
    kept = sum(round(d * sizes[name]) for name, d in found.items())
    assert abs(kept - density * sum(sizes.values())) <= len(shapes)

    # The scale that meets the budget is found here by bisection, not by saturating in turn.
    proportions = {name: FORMULAS[rule](shape) for name, shape in shapes.items()}

    def spent(scale):
        return math.fsum(sizes[name] * min(1, scale * float(p)) for name, p in proportions.items())

    low, high = 0.0, 1 / float(min(proportions.values()))
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if spent(middle) < density * sum(sizes.values()) else (low, middle)
        )
    for name, d in found.items():
        assert d == pytest.approx(min(1, high * float(proportions[name])), rel=1e-9)


@cases
@given(rules, layers, densities, densities)
def test_a_larger_budget_gives_no_layer_less(rule, shapes, one, other):
    small, large = (rule(shapes, density) for density in sorted((one, other)))
    assert all(small[name] <= large[name] * (1 + 1e-12) for name in shapes)


@pytest.mark.parametrize("rule", [uniform, erdos_renyi, erk])
def test_density_one_makes_every_layer_dense_exactly(rule):
    shapes = {f"{n}": (n, 191, 3) for n in range(1, 50)}
    assert set(rule(shapes, 1.0).values()) == {1.0}
    assert all(rule({name: shape}, 1.0) == {name: 1.0} for name, shape in shapes.items())


def test_saturated_layers_are_solved_again():
    shapes = {"stem": (2, 2), "body": (100, 100)}
    found = erk(shapes, 0.1)
    assert found["stem"] == 1.0
    assert found["body"] == pytest.approx((0.1 * 10_004 - 4) / 10_000)


def test_erk_counts_the_kernel_and_erdos_renyi_does_not():
    shapes = {"wide": (64, 64, 3, 3), "narrow": (64, 64)}
    assert erk(shapes, 0.05)["wide"] == pytest.approx(erk(shapes, 0.05)["narrow"] * 134 / 9 / 128)
    found = erdos_renyi(shapes, 0.05)
    assert found["wide"] == pytest.approx(found["narrow"])


def test_nothing_is_allocated_to_no_layers():
    assert uniform({}, 0.5) == {}


@pytest.mark.parametrize("rule", [uniform, erdos_renyi, erk])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_densities_out_of_range_are_refused(rule, density):
    with pytest.raises(ValueError, match=rf"density in \(0, 1\], got {density}"):
        rule({"a": (4, 4)}, density)


@pytest.mark.parametrize(
    ("rule", "shape"),
    [(uniform, ()), (uniform, (4, 0)), (erdos_renyi, (4,)), (erk, (4,)), (erk, (4, 4, 0))],
)
def test_shapes_that_hold_no_matrix_are_refused(rule, shape):
    shapes = {"good": (4, 4), "bad": shape}
    with pytest.raises(ValueError, match="positive sizes for 'bad'"):
        rule(shapes, 0.5)
    assert shapes == {"good": (4, 4), "bad": shape}


def test_shuffling_keeps_the_number_and_moves_the_places():
    mask = torch.arange(600).view(20, 30) < 60
    generator = torch.Generator().manual_seed(0)
    found = shuffled(mask, generator=generator)
    assert found.shape == mask.shape and found.sum() == 60
    assert 0 < (found & mask).sum() < 20, "about a tenth stays by chance"
    assert not torch.equal(found, shuffled(mask, generator=generator))
    with pytest.raises(TypeError, match="expected mask to be bool, got torch"):
        shuffled(mask.float())
