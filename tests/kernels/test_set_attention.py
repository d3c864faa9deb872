"""Set attention against a float64 loop over sets: values, gradients, and what is left unread."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import BackendError
from gossamer.kernels import backend, balanced_sets, instruction_sets, set_attention
from gossamer.patterns import TokenSets
from gossamer.testing import check_close

pytestmark = pytest.mark.usefixtures("nan_memory")
IMPLS = ["reference", "cpu"] if instruction_sets() else ["reference"]
cases = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_sets(tokens: int, groups: int, size: int, seed: int = 0) -> TokenSets:
    generator = torch.Generator().manual_seed(seed)
    owners = torch.randint(groups, (tokens,), generator=generator)
    keys = torch.randperm(tokens, generator=generator)[None]
    return balanced_sets(owners, keys, size=size, impl="reference")[0]


def members(sets: TokenSets) -> list[Tensor]:
    return [row.unique() for row in sets.indices]


def oracle(query: Tensor, key: Tensor, value: Tensor, sets: TokenSets, scale: float) -> Tensor:
    """Each set by itself, in float64."""
    q, k, v = query.double(), key.double(), value.double()
    output = torch.full_like(q, torch.nan)
    for own in members(sets):
        shares = (q[:, own] @ k[:, own].mT * scale).softmax(-1)
        output[:, own] = shares @ v[:, own]
    return output


def by_token(*shape: int, seed: int = 0) -> Tensor:
    """[heads, tokens, dim], in memory one row of a projection after the other."""
    heads, tokens, dim = shape
    return draw(tokens, heads, dim + 3, seed=seed)[..., :dim].transpose(0, 1)


@cases
@given(
    st.integers(1, 90),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3, 8, 16, 24, 33, 64]),
    st.sampled_from([1, 2, 7, 24, 36, 48, 70]),
    st.integers(0, 9),
)
def test_any_sets(impl, tokens, heads, dim, size, seed):
    sets = random_sets(tokens, 3, size, seed)
    q, k, v = (by_token(heads, tokens, dim, seed=10 * seed + each) for each in range(3))
    exact = oracle(q, k, v, sets, dim**-0.5)
    found = set_attention(q, k, v, sets, impl=impl)
    check_close(found, exact, 5e-6 * float(v.abs().max()))
    assert found.transpose(0, 1).is_contiguous()


@cases
@given(
    st.integers(1, 90),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 8, 24, 33]),
    st.sampled_from([1, 7, 24, 36, 70]),
    st.integers(0, 9),
)
def test_any_gradients(impl, tokens, heads, dim, size, seed):
    sets = random_sets(tokens, 2, size, seed)
    parts = [by_token(heads, tokens, dim, seed=10 * seed + each) for each in range(3)]
    weight = draw(heads, tokens, dim, seed=seed + 77)
    wide = [part.double().requires_grad_() for part in parts]
    (oracle(*wide, sets, 0.5) * weight.double()).sum().backward()
    narrow = [part.clone().requires_grad_() for part in parts]
    (set_attention(*narrow, sets, scale=0.5, impl=impl) * weight).sum().backward()
    for name, mine, exact in zip(("query", "key", "value"), narrow, wide, strict=True):
        size_of = max(1.0, float(exact.grad.abs().max()))
        check_close(mine.grad, exact.grad, 2e-5 * size_of, f"{name} gradient")


def test_gradients_equal_numerical_ones():
    sets = TokenSets.from_lists([[0, 3, 5], [1], [2, 4, 6]], size=4)
    arguments = [draw(2, 7, 5, seed=each).double().requires_grad_() for each in range(3)]
    assert torch.autograd.gradcheck(lambda *parts: set_attention(*parts, sets), arguments)


def test_other_sets_are_not_read(impl):
    """NaN in every token of the other sets changes nothing, and nothing of it is written."""
    sets = random_sets(60, 4, 7)
    q, k, v = (draw(2, 60, 8, seed=each) for each in range(3))
    clean = set_attention(q, k, v, sets, impl=impl)
    for own in members(sets)[::2]:
        others = torch.ones(60, dtype=torch.bool)
        others[own] = False
        poisoned = [part.masked_fill(others[:, None], torch.nan) for part in (q, k, v)]
        found = set_attention(*poisoned, sets, impl=impl)
        assert torch.equal(found[:, own], clean[:, own])
        assert bool(found[:, others].isnan().all())


def test_pairs_are_those_of_the_mask_and_repeats_do_not_count(impl):
    """A token that stands in a set's slots three times weighs as much as one that stands once."""
    sets = TokenSets.from_lists([[0, 1], [2, 3, 4]], size=5)
    mask = sets.to_mask()
    assert sets.pairs() == int(mask.sum()) == 13
    q, k, v = (draw(1, 5, 4, seed=each) for each in range(3))
    dense = (q @ k.mT / 2).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(set_attention(q, k, v, sets, impl=impl), dense)


def test_order_of_tokens_and_threads_change_nothing(isa):
    sets = random_sets(200, 5, 24)
    q, k, v = (draw(4, 200, 16, seed=each).requires_grad_() for each in range(3))

    def step(order: Tensor) -> list[Tensor]:
        place = order.argsort()
        moved = TokenSets(place[sets.indices], sets.repeated, 200)
        parts = [part[:, order].detach().requires_grad_() for part in (q, k, v)]
        output = set_attention(*parts, moved, impl="cpu")
        return [each[:, place] for each in (output, *torch.autograd.grad(output.sum(), parts))]

    expected = step(torch.arange(200))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, step(torch.randperm(200)), expected))


def test_nothing_around_the_tensors_is_touched(isa, guarded):
    sets = random_sets(37, 3, 9)
    parts = [guarded(by_token(2, 37, 11, seed=each)) for each in range(3)]
    where = guarded(sets.indices), guarded(sets.repeated)
    out = guarded(torch.full((37, 2, 11), torch.nan)).transpose(0, 1)
    backend.launch("set_attention", *parts, *where, 0.3, out, 1)
    torch.testing.assert_close(out, oracle(*parts, sets, 0.3).float())
    grad = guarded(draw(2, 37, 11, seed=9))
    grads = [guarded(torch.full((37, 2, 11), torch.nan)).transpose(0, 1) for _ in range(3)]
    backend.launch("set_attention_backward", grad, *parts, *where, 0.3, *grads, 1)
    wide = [part.double().requires_grad_() for part in parts]
    (oracle(*wide, sets, 0.3) * grad.double()).sum().backward()
    for mine, exact in zip(grads, wide, strict=True):
        torch.testing.assert_close(mine, exact.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("huge", [1e4, 1e37])
def test_large_scores_do_not_overflow(impl, huge):
    sets = TokenSets.from_lists([[0, 1, 2]], size=4)
    q = torch.tensor([[[1.0], [1.0], [0.0]]])
    k = torch.tensor([[[huge], [0.0], [-huge]]])
    v = torch.tensor([[[1.0], [2.0], [3.0]]])
    found = set_attention(q, k, v, sets, scale=1.0, impl=impl)
    torch.testing.assert_close(found, torch.tensor([[[1.0], [1.0], [2.0]]]))


def test_no_tokens(impl):
    sets = TokenSets.from_lists([], size=4)
    nothing = torch.zeros(2, 0, 8)
    assert set_attention(nothing, nothing, nothing, sets, impl=impl).shape == (2, 0, 8)


@pytest.mark.parametrize("name", IMPLS)
def test_operators_are_registered_for_tracing(name):
    sets = random_sets(20, 2, 6)
    parts = [by_token(2, 20, 4, seed=each).requires_grad_() for each in range(3)]
    where = sets.indices, sets.repeated
    torch.library.opcheck(torch.ops.gossamer.set_attention.default, (*parts, *where, 0.5, name))
    torch.library.opcheck(
        torch.ops.gossamer.set_attention_backward.default,
        (draw(2, 20, 4), *(part.detach() for part in parts), *where, 0.5, name),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


GOOD_SETS = TokenSets.from_lists([[0, 1, 2]], size=3)
ONES = torch.ones(2, 3, 4)
GOOD: dict[str, Any] = {"query": ONES, "key": ONES, "value": ONES, "sets": GOOD_SETS}
BAD_INPUT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": ONES[0]}, ValueError, r"query to be \[heads, 3 tokens, dim\], got \[3, 4\]"),
    ({"key": ONES[:, :2]}, ValueError, r"key to be \[heads, 3 tokens, dim\], got \[2, 2, 4\]"),
    ({"value": ONES[:1]}, ValueError, r"one shape and dtype, got query .*value .*\[1, 3, 4\]"),
    ({"key": ONES.double()}, ValueError, r"one shape and dtype.*float64"),
    ({"value": ONES.to("meta")}, ValueError, r"one device, got value on meta"),
    (dict.fromkeys(("query", "key", "value"), ONES.int()), TypeError, "floating-point query"),
    (
        dict.fromkeys(("query", "key", "value"), ONES.double()) | {"impl": "cpu"},
        TypeError,
        "float32 for impl='cpu', got torch.float64",
    ),
    ({"scale": -1.0}, ValueError, "scale to be positive and finite, got -1"),
    ({"impl": "gpu"}, ValueError, "one of auto, reference, cpu, triton, got 'gpu'"),
]


@pytest.mark.parametrize("row", BAD_INPUT, ids=lambda row: "-".join(row[0]))
def test_bad_input_is_named(row):
    changes, error, message = row
    set_attention(**GOOD)
    with pytest.raises(error, match=message):
        set_attention(**(GOOD | changes))


def test_a_missing_native_module_is_named(monkeypatch):
    monkeypatch.setattr(backend, "native", lambda: None)
    with pytest.raises(BackendError, match="impl='cpu' was not built"):
        set_attention(**GOOD, impl="cpu")
