"""PopArt's statistics are the returns', and moving them moves no value."""

import pytest
import torch

from gossamer.decisions import PopArt


def test_values_survive_any_returns_and_targets_are_normalised():
    torch.manual_seed(0)
    head, x = PopArt(6), torch.randn(50, 6)
    before = head.value(x).detach()
    seen = []
    for size in (1.0, 1e3, 10.0):
        returns = size * torch.randn(200) + 5 * size
        seen.append(returns)
        head.track(returns)
        assert torch.allclose(head.value(x), before, atol=1e-3)
    every = torch.cat(seen)
    normal = head.normalize(every)
    assert normal.mean().item() == pytest.approx(0, abs=1e-2)
    assert normal.std(correction=0).item() == pytest.approx(1, abs=1e-2)


def test_forward_is_the_value_normalised():
    head, x = PopArt(3), torch.randn(7, 3)
    head.track(torch.tensor([-300.0, 500.0]))
    assert torch.allclose(head(x), head.normalize(head.value(x)), atol=1e-5)


def test_equal_returns_do_not_divide_by_zero():
    head = PopArt(2)
    head.track(torch.full((9,), 4.0))
    assert head.normalize(torch.tensor(4.0)).item() == pytest.approx(0, abs=1e-4)
