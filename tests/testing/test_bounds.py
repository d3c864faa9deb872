import pytest
import torch

from gossamer.kernels import AttentionOutput
from gossamer.patterns import StripePattern, TokenPattern
from gossamer.testing import budget, check_attention, check_close, check_key_lists

EXACT = torch.tensor([1.0, -torch.inf, 3.0], dtype=torch.float64)


def test_budget_is_twice_the_plain_error_and_one_rounding():
    plain = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    exact = torch.tensor([1.5, -4.0], dtype=torch.float64)
    assert budget(plain, exact) == 2 * (6.0 + 2**-7 * 4.0)
    assert budget(plain[:0], exact[:0]) == 0.0


def test_check_close_returns_the_share_of_the_bound():
    assert check_close(torch.tensor([1.0, -torch.inf, 3.25]), EXACT, 0.5) == 0.5
    assert check_close(torch.tensor([1.0, -torch.inf, 3.0]), EXACT, 0.0) == 0.0
    assert check_close(torch.empty(0), EXACT[:0], 0.0) == 0.0


@pytest.mark.parametrize(
    "actual, message",
    [
        ([1.0, -torch.inf, 3.6], r"0.5 of the oracle, got an error of 0.6 at \[2\]: 3.59.*of 3.0"),
        ([torch.nan, -torch.inf, 3.0], r"error of inf at \[0\]: nan instead of 1.0"),
        ([1.0, torch.nan, 3.0], r"at \[1\]: nan"),
        ([1.0, torch.inf, 3.0], r"at \[1\]: inf instead of -inf"),
        ([1.0, -1e30, 3.0], r"at \[1\]"),
        ([1.0, -torch.inf, torch.inf], r"at \[2\]: inf instead of 3.0"),
        ([1.0, -torch.inf], "shape"),
    ],
)
def test_check_close_names_the_worst_element(actual, message):
    with pytest.raises(AssertionError, match=message):
        check_close(torch.tensor(actual), EXACT, 0.5)


def attention(output: float, lse: float, dtype=torch.float64) -> AttentionOutput:
    return AttentionOutput(torch.full((1, 1, 1, 2), output, dtype=dtype), torch.tensor([[[lse]]]))


def test_check_attention_applies_the_bounds_of_the_dtype():
    exact, value = attention(1.0, 0.0), torch.tensor([-2.0, 1.0])
    share = check_attention(attention(1.0 + 5e-6, 0.0, torch.float32), exact, value)
    assert share == pytest.approx(0.5, rel=0.05)
    with pytest.raises(AssertionError, match="output within 1e-05"):
        check_attention(attention(1.0 + 2e-5, 0.0, torch.float32), exact, value)
    with pytest.raises(AssertionError, match="log-sum-exp within 1e-05"):
        check_attention(attention(1.0, 2e-5, torch.float32), exact, value)
    rough, plain = attention(1.03125, 0.0, torch.bfloat16), attention(1.015625, 0.0, torch.bfloat16)
    assert check_attention(rough, exact, value, plain) == pytest.approx(2 / 3)
    with pytest.raises(AssertionError, match="output within"):
        check_attention(rough, exact, value, attention(1.0, 0.0, torch.bfloat16))
    with pytest.raises(ValueError, match=r"expected plain to judge .*bfloat16 by"):
        check_attention(rough, exact, value)


def test_check_attention_lets_a_large_log_sum_exp_round():
    exact, value = attention(1.0, 1e4), torch.ones(1)
    check_attention(attention(1.0, 1e4 + 0.004, torch.float32), exact, value)
    with pytest.raises(AssertionError, match="log-sum-exp"):
        check_attention(attention(1.0, 1e4 + 0.008, torch.float32), exact, value)


def lists(*rows: list[int]) -> TokenPattern:
    return TokenPattern(torch.tensor([[rows]], dtype=torch.int32), group=2, k_len=6)


def test_key_lists_that_keep_the_rules_pass():
    check_key_lists(lists([0, 4, -1, -1], [0, 3, 4, 5]), 3, window=1, sink=1)
    check_key_lists(lists([2, 3, -1], [2, 4, 5]), 4, window=2, sink=1, key_start=torch.tensor([2]))
    check_key_lists(lists([-1, -1], [-1, -1]), 4, window=2, key_start=torch.tensor([6]))
    mask = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    check_key_lists(StripePattern.from_mask(mask, group=4), 4, window=4, sink=4)


@pytest.mark.parametrize(
    "pattern, options, message",
    [
        (lists([0, 0, -1], [0, 1, 2]), {}, "ascending"),
        (lists([0, 6, -1], [0, 1, 2]), {}, r"\[0, 6\)"),
        (lists([0, 4, -1], [0, 1, 2]), {}, r"\(batch 0, head 0, group 0\) holds key 4"),
        (lists([0, 3, -1], [0, 3, 4]), {"window": 2}, "group 0.* lacks key 2"),
        (lists([2, 3, -1], [1, 4, 5]), {"sink": 2}, "group 0.* lacks key 0"),
        (lists([2, 3, -1], [1, 4, 5]), {"key_start": torch.tensor([2])}, "group 1.* holds key 1"),
    ],
)
def test_key_lists_that_break_a_rule_are_named(pattern, options, message):
    with pytest.raises(AssertionError, match=message):
        check_key_lists(pattern, 4, **options)
