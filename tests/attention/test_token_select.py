"""TokenSelect against its algorithm written out in float64, chunk by chunk."""

from dataclasses import replace
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.attention import LayerState, Meter, Selection, TokenSelect, use
from gossamer.measure import causal_pairs
from gossamer.patterns import TokenPattern
from gossamer.testing import AttentionShape, attention_inputs, check_close, rotary_tables
from gossamer.testing.attention import prompt, run_layer, tiny_llama

METHOD = TokenSelect(n_init=4, n_local=16, top_k=12, chunk=16)
LONG = AttentionShape(2, 6, 2, 150, 150, 8)
CHUNK = AttentionShape(2, 6, 2, 37, 150, 8)
DECODE = AttentionShape(2, 6, 2, 1, 150, 8)


def turned(vectors: Tensor, positions: Tensor) -> Tensor:
    """Vectors [..., n, D] rotated to their positions [n], in float64 by complex products."""
    angle = positions[:, None] * 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    first, second = vectors.double().chunk(2, -1)
    product = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([product.real, product.imag], -1)


def ballot(method: TokenSelect, query: Tensor, key: Tensor, begin: int, end: int) -> list[int]:
    """The voted tokens of one sequence: query [H, D], key [H_kv, n, D], both float64."""
    heads, kv_heads = len(query), len(key)
    products = [query[h] @ key[h * kv_heads // heads, begin:end].T for h in range(heads)]
    if method.scale == "rsqrt":
        products = [product / 8**0.5 for product in products]
    if method.vote == "soft":
        votes = sum(product.softmax(0) for product in products)
    elif method.vote == "sum":
        votes = sum(products)
    else:
        votes = sum(product >= product.topk(method.top_k).values[-1] for product in products)
    assert isinstance(votes, Tensor)
    votes = votes.double()
    if method.smooth_kernel:
        reach = method.smooth_kernel // 2
        votes = torch.stack(
            [votes[max(0, i - reach) : i + reach + 1].max() for i in range(len(votes))]
        )
    ranked = votes.sort(descending=True, stable=True)
    if method.vote != "head" and not method.smooth_kernel:  # those tie, and go by position
        gap = ranked.values[method.top_k - 1] - ranked.values[method.top_k]
        assert gap > 1e-6  # no vote so close that rounding decides
    return sorted(begin + int(i) for i in ranked.indices[: method.top_k])


def expected(
    method: TokenSelect, query: Tensor, key: Tensor, value: Tensor, starts: list[int] | None
) -> tuple[list[list[list[int]]], Tensor]:
    """The lists of each sequence and chunk, and the attention over them, explicitly."""
    (batch, heads, q_len, dim), (kv_heads, k_len) = query.shape, key.shape[1:3]
    chunk = 1 if q_len == 1 else method.chunk
    lists: list[list[list[int]]] = []
    output = torch.zeros(query.shape, dtype=torch.float64)
    truth = turned(key, torch.arange(k_len))
    for b in range(batch):
        lists.append([])
        start = 0 if starts is None else starts[b]
        for first in range(0, q_len, chunk):
            rows = torch.arange(first, min(q_len, first + chunk))
            end = k_len - q_len + int(rows[-1]) + 1
            tokens = list(range(start, end))
            if len(tokens) > method.budget:
                place = method.n_local + torch.arange(len(rows))
                if not method.reindex_positions:
                    place = rows + k_len - q_len
                mean = turned(query[b][:, rows], place).mean(1)
                keys = key[b].double() if method.reindex_positions else truth[b]
                begin, last = start + method.n_init, end - method.n_local
                voted = ballot(method, mean, keys, begin, last)
                tokens = [*range(start, begin), *voted, *range(last, end)]
            lists[b].append(tokens)
            for row in rows.tolist():
                if row + k_len - q_len < start:
                    continue
                seen = [j for j in tokens if j <= row + k_len - q_len]
                if method.reindex_positions:  # a token's position is its rank in the list
                    places = torch.arange(len(seen))
                else:
                    places = torch.tensor(seen)
                for h in range(heads):
                    kv_head = h * kv_heads // heads
                    near = turned(key[b, kv_head, seen], places)
                    logits = near @ turned(query[b, h, row][None], places[-1:])[0] * dim**-0.5
                    output[b, h, row] = logits.softmax(0) @ value[b, kv_head, seen].double()
    return lists, output


def listed(pattern: Any) -> list[list[list[int]]]:
    assert isinstance(pattern, TokenPattern)
    assert pattern.shape[1] == 1
    return [[[int(j) for j in tokens if j >= 0] for tokens in row] for row in pattern.indices[:, 0]]


class Seen(TokenSelect):
    """Keeps the selections it makes, for a test to look at."""

    selections: list[Any] = []  # noqa: RUF012

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Any:
        self.selections.append(super().select(query, key, state))
        return self.selections[-1]


def run(
    method: TokenSelect, query: Tensor, key: Tensor, value: Tensor, state: LayerState
) -> tuple[list[list[list[int]]], Tensor]:
    spy = Seen(**{name: getattr(method, name) for name in TokenSelect.__dataclass_fields__})
    output = run_layer(spy, query, key, value, state)
    return listed(Seen.selections.pop().pattern), output


@pytest.mark.parametrize("starts", [None, [0, 71]], ids=["full", "padded"])
@pytest.mark.parametrize("shape", [LONG, CHUNK, DECODE], ids=["prompt", "chunk", "decode"])
@pytest.mark.parametrize(
    "method",
    [
        METHOD,
        replace(METHOD, scale="rsqrt", n_init=0, chunk=5),
        replace(METHOD, vote="head"),
        replace(METHOD, vote="sum", top_k=1),
        replace(METHOD, smooth_kernel=3),
        replace(METHOD, reindex_positions=False),
    ],
    ids=str,
)
def test_follows_the_algorithm(
    method: TokenSelect, shape: AttentionShape, starts: list[int] | None
) -> None:
    query, key, value = attention_inputs(shape)
    meter = Meter()
    state = LayerState(key_start=None if starts is None else torch.tensor(starts), meter=meter)
    right, exact = expected(method, query, key, value, starts)
    lists, output = run(method, query, key, value, state)
    assert lists == right
    check_close(output, exact, 2e-5 * float(value.abs().max()))
    causal = 12 * causal_pairs(shape.q_len, 150)
    group = 1 if shape.q_len == 1 else method.chunk
    pairs = scored = 0
    for b in range(2):
        start = 0 if starts is None else starts[b]
        for row in range(shape.q_len):
            position = row + 150 - shape.q_len
            pairs += sum(j <= position for j in right[b][row // group])
        for first in range(0, shape.q_len, group):
            end = 150 - shape.q_len + min(shape.q_len, first + group)
            voted = max(end - s for s in starts or [0]) > method.budget
            scored += max(0, end - start - method.n_init - method.n_local) * voted
    assert meter.density == pytest.approx(6 * pairs / causal)
    assert meter.selection_share == pytest.approx(6 * scored / causal)
    if shape.q_len == 1:
        assert meter.bytes_read == (2 * pairs + scored) * 2 * 8 * 4  # of both key heads


def test_query_heads_read_their_own_key_head() -> None:
    """Head h reads key head h // (H / G), not h % G: here the two would vote differently."""
    query, key, value = attention_inputs(DECODE)
    swapped = query[:, [0, 3, 1, 4, 2, 5]]
    lists, _ = run(METHOD, query, key, value, LayerState())
    others, _ = run(METHOD, swapped, key, value, LayerState())
    assert lists != others
    assert others == expected(METHOD, swapped, key, value, None)[0]


def test_every_chunk_holds_itself_and_the_budget() -> None:
    query, key, value = attention_inputs(LONG)
    lists, _ = run(METHOD, query, key, value, LayerState())
    for number, tokens in enumerate(lists[0]):
        end = min(150, (number + 1) * 16)
        assert tokens[-16:] == list(range(end - 16, end))
        assert tokens[:4] == [0, 1, 2, 3]
        assert tokens == sorted(set(tokens))
        assert len(tokens) == min(end, METHOD.budget)


@pytest.mark.parametrize(("length", "dense"), [(31, True), (32, True), (33, False)])
def test_dense_until_the_budget_is_spent(length: int, dense: bool) -> None:
    query, key, value = attention_inputs(AttentionShape(1, 4, 2, 1, length, 8))
    state = LayerState()
    lists, _ = run(METHOD, query, key, value, state)
    assert (lists == [[list(range(length))]]) == dense
    assert len(lists[0][0]) == min(length, METHOD.budget)
    assert (state.memory is None) == dense


def test_positions_stay_within_budget_and_chunk() -> None:
    """However long the text, no position past the budget is used: contexts extrapolate."""
    asked = []

    def tables(n: int, dim: int) -> tuple[Tensor, Tensor]:
        asked.append(n)
        return rotary_tables(n, dim)

    for shape in (AttentionShape(1, 4, 2, 900, 900, 8), AttentionShape(1, 4, 2, 1, 900, 8)):
        query, key, value = attention_inputs(shape)
        state = LayerState()
        run(METHOD, query, key, value, state)
        state.rank_rotary = lambda n: tables(n, 8)
        METHOD.select(query[:, :, -1:], key, replace_rotary(state, 1))
    assert max(asked) <= METHOD.budget + METHOD.chunk


def replace_rotary(state: LayerState, q_len: int) -> LayerState:
    assert state.rotary is not None
    cosine, sine = state.rotary
    state.rotary = cosine[:, -q_len:], sine[:, -q_len:]
    return state


def test_true_positions_do_not_matter() -> None:
    model = tiny_llama()
    ids = prompt(tokens=METHOD.budget)  # no vote, which rounding could decide
    near = torch.arange(METHOD.budget)[None]
    far = near + 5000 * (near >= 16)

    def logits(method: TokenSelect, positions: Tensor) -> Tensor:
        with torch.no_grad(), use(model, method):
            return model(ids, position_ids=positions).logits

    torch.testing.assert_close(logits(METHOD, far), logits(METHOD, near), atol=2e-3, rtol=1e-3)
    true = replace(METHOD, reindex_positions=False)
    assert float((logits(true, far) - logits(true, near)).abs().max()) > 0.1


def test_votes_are_cast_on_keys_without_positions() -> None:
    model, kept = tiny_llama(layers=1), []
    for shift in (0, 5000):
        with torch.no_grad(), use(model, METHOD) as attachment:
            cache = attachment.new_cache()
            model(prompt(), position_ids=torch.arange(128)[None] + shift, past_key_values=cache)
            kept.append(cache.layers[0].keys.clone())
    torch.testing.assert_close(*kept, atol=2e-3, rtol=1e-3)


class Decoder:
    """Decodes with chosen queries, counting the scans over the cache."""

    def __init__(self, method: TokenSelect, starts: list[int] | None = None) -> None:
        self.method, self.starts, self.scans = method, starts, 0
        _, self.key, self.value = attention_inputs(AttentionShape(2, 4, 2, 1, 200, 8))
        self.state = LayerState(key_start=None if starts is None else torch.tensor(starts))

        class Scans(Meter):
            def add(meter, selection: Selection, query: Tensor, key: Tensor) -> None:
                self.scans += selection.bytes_read > 0

        self.state.meter = Scans()

    def step(self, query: Tensor, k_len: int) -> list[list[int]]:
        key, value = self.key[:, :, :k_len], self.value[:, :, :k_len]
        return [row[0] for row in run(self.method, query, key, value, self.state)[0]]

    def fresh(self, query: Tensor, k_len: int) -> list[list[int]]:
        key, value = self.key[:, :, :k_len], self.value[:, :, :k_len]
        return [row[0] for row in expected(self.method, query, key, value, self.starts)[0]]


def test_alike_queries_reuse_the_selection() -> None:
    decoder = Decoder(METHOD)
    query, other, noise = torch.randn(3, 2, 4, 1, 8, generator=torch.Generator().manual_seed(3))
    first = decoder.step(query, 100)
    assert first == decoder.fresh(query, 100)
    reused = decoder.step(1.5 * query + 0.01 * noise, 103)
    assert decoder.scans == 1
    for before, after in zip(first, reused, strict=True):
        assert after[4:16] == before[4:16]  # the same votes
        assert after[16:] == list(range(103 - 16, 103))  # but the window has moved
    assert decoder.step(other, 104) == decoder.fresh(other, 104)
    assert decoder.scans == 2
    decoder.step(other, 105)
    assert (decoder.scans, decoder.state.memory.hits, decoder.state.memory.asked) == (2, 4, 6)


def test_each_sequence_hits_on_its_own() -> None:
    """A hit compares with the query that made the selection, not with the one before."""
    decoder = Decoder(replace(METHOD, cache_threshold=0.7))  # 45 degrees
    axes = torch.linalg.qr(torch.randn(32, 2, generator=torch.Generator().manual_seed(3))).Q.T

    def towards(*degrees: float) -> Tensor:
        angle = torch.tensor(degrees).deg2rad()[:, None]
        return 10 * (angle.cos() * axes[0] + angle.sin() * axes[1]).reshape(2, 4, 1, 8)

    first = decoder.step(towards(0, 0), 100)
    hit_and_miss = decoder.step(towards(40, 90), 101)
    own = decoder.fresh(towards(40, 90), 101)
    assert hit_and_miss == [first[0][:16] + list(range(85, 101)), own[1]]
    assert hit_and_miss[0] != own[0]
    miss_and_hit = decoder.step(towards(80, 50), 102)
    own = decoder.fresh(towards(80, 50), 102)
    assert miss_and_hit == [own[0], hit_and_miss[1][:16] + list(range(86, 102))]
    assert miss_and_hit[1] != own[1]
    assert (decoder.state.memory.hits, decoder.state.memory.asked, decoder.scans) == (2, 4, 3)


@pytest.mark.parametrize(("threshold", "hits"), [(2.0, 0), (1.1, 0), (-1.0, 10)])
def test_threshold(threshold: float, hits: int) -> None:
    decoder = Decoder(replace(METHOD, cache_threshold=threshold))
    generator = torch.Generator().manual_seed(3)
    for step in range(6):
        query = (
            torch.ones(2, 4, 1, 8) if hits == 0 else torch.randn(2, 4, 1, 8, generator=generator)
        )
        decoder.step(query, 100 + step)
    assert (decoder.state.memory.hits, decoder.state.memory.asked) == (hits, 10)


def test_a_short_sequence_never_reuses_what_it_did_not_select() -> None:
    """Beside a long one it is voted on before it has candidates; those votes mean nothing."""
    decoder = Decoder(METHOD, starts=[0, 70])
    query = torch.randn(2, 4, 1, 8, generator=torch.Generator().manual_seed(3))
    for k_len in range(98, 106):
        lists = decoder.step(query, k_len)
        if k_len - 70 <= METHOD.budget:
            assert lists[1] == list(range(70, k_len))
        assert lists[1] == sorted(set(lists[1]))
        assert lists[1][:4] == [70, 71, 72, 73]
        assert len(lists[1]) == min(k_len - 70, METHOD.budget)


def test_a_prompt_or_rollback_forgets() -> None:
    model = tiny_llama()
    with torch.no_grad(), use(model, METHOD) as attachment:
        cache: Any = attachment.new_cache()
        model(prompt(), past_key_values=cache)
        mark = cache.mark()
        model(prompt(1, 1), past_key_values=cache)
        assert all(layer.state.memory is not None for layer in cache.layers)
        assert all(layer.state.memory is None for layer in cache.fork().layers)
        cache.rollback(mark)
        assert all(layer.state.memory is None for layer in cache.layers)
        model(prompt(1, 1), past_key_values=cache)
        model(prompt(1, 5), past_key_values=cache)
        assert all(layer.state.memory is None for layer in cache.layers)


def test_values_that_were_not_selected_are_not_read() -> None:
    query, key, value = attention_inputs(DECODE)
    lists, before = run(METHOD, query, key, value, LayerState())
    for b in range(2):
        dropped = sorted({*range(150)} - {*lists[b][0]})
        value[b, :, dropped] = torch.nan
    assert torch.equal(run(METHOD, query, key, value, LayerState())[1], before)


def test_a_forward_without_a_cache_needs_no_context_against_gradients() -> None:
    model = tiny_llama()
    with use(model, METHOD):
        found = model(prompt(), use_cache=False).logits
        with torch.no_grad():
            expected = model(prompt(), use_cache=False).logits
    assert torch.equal(found, expected)


def test_needs_the_encoding_to_take_it_off() -> None:
    query, key, value = attention_inputs(DECODE)
    with pytest.raises(ValueError, match=r"rotary encoding.*reindex_positions=False"):
        METHOD(query, key, value, LayerState())
    kept = replace(METHOD, reindex_positions=False)
    assert kept(query, key, value, LayerState()).shape == query.shape


def test_budget_bounds_the_threshold() -> None:
    assert METHOD.budget == 4 + 16 + 12
    with pytest.raises(ValueError, match="cache_threshold"):
        replace(METHOD, cache_threshold=inf)
