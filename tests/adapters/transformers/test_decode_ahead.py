"""Tokens that go through many blocks in one native call, and whatever must not be passed over."""

import copy
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from gossamer import attention
from gossamer.adapters.transformers import decode_ahead
from gossamer.attention.base import LayerState, Selection
from gossamer.kernels.backend import instruction_sets
from gossamer.testing.attention import tiny_llama

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="native kernels are not built")

LAYERS = 4
DENSE = attention.DenseAttention()
STREAMING = attention.StreamingAttention(sink=2, local=6)
VOTES = attention.TokenSelect(n_init=2, n_local=8, top_k=4, chunk=4)
HIP = attention.HiPAttention(
    k=8, block_q=4, block_k=2, window=4, refresh_interval=3, dense_layers=1
)
METHODS = [
    DENSE,
    STREAMING,
    attention.AnchorAttention(),
    VOTES,
    attention.TokenSelect(n_init=2, n_local=8, top_k=4, chunk=4, cache_threshold=0.3),
    attention.TokenSelect(n_init=2, n_local=8, top_k=4, chunk=4, reindex_positions=False),
    attention.TokenSelect(n_init=2, n_local=8, top_k=4, chunk=4, score_dtype="bfloat16"),
    HIP,
]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model():
    return tiny_llama(layers=LAYERS)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of each native call."""
    found: list[int] = []
    real = decode_ahead.run_steps

    def counted(steps, *rest):
        found.append(len(steps))
        return real(steps, *rest)

    monkeypatch.setattr(decode_ahead, "run_steps", counted)
    return found


def ids(batch: int, count: int) -> Tensor:
    """Tokens that differ: keys without positions are alike where tokens are, and so are votes."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(64, generator=generator)[:count] for _ in range(batch)])


def stepped(model, attached, steps: int = 7) -> Tensor:
    """Logits of some tokens, read one by one after a prompt."""
    cache = attached.new_cache()
    tokens = ids(1, 30 + steps).split([30] + [1] * steps, 1)
    model(tokens[0], past_key_values=cache)
    return torch.cat([model(one, past_key_values=cache).logits for one in tokens[1:]], 1)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_gives_what_the_blocks_give_one_by_one(model, method, runs):
    with attention.use(model, method, lossless=False) as attached, attached.metered() as exact:
        expected = stepped(model, attached)
    assert not runs
    with attention.use(model, method) as attached, attached.metered() as meter:
        found = stepped(model, attached)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    figures = [(one.density, one.selection_share, one.bytes_read) for one in (meter, exact)]
    assert figures[0] == figures[1]
    if method is HIP:  # every third token the blocks that search are called
        assert runs == [1, 4, 4, 1, 4, 4, 1]
    else:
        assert runs == [LAYERS] * 7


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_padded_sequences_run_ahead_too(model, method, runs):
    mask = torch.ones(3, 40, dtype=torch.int64)
    mask[0, :5] = mask[1, :11] = 0
    logits = []
    for lossless in (False, True):
        with attention.use(model, method, lossless=lossless) as attached:
            cache = attached.new_cache()
            for end in range(34, 41):
                begin = 0 if end == 34 else end - 1
                options = {"attention_mask": mask[:, :end], "past_key_values": cache}
                found = model(ids(3, 40)[:, begin:end], **options).logits[:, -1]
            logits.append(found)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert set(runs) <= {1, LAYERS} and len(runs) == 6


def test_votes_that_native_code_does_not_count_are_cast_by_the_method(model, runs):
    method = attention.TokenSelect(n_init=2, n_local=8, top_k=4, chunk=4, vote="head")
    with attention.use(model, method) as attached:
        assert bool(stepped(model, attached).isfinite().all())
    assert not runs


@pytest.mark.parametrize("method", [DENSE, VOTES, METHODS[6], HIP], ids=str)
def test_caches_may_take_turns_grow_fork_and_roll_back(model, method):
    def walk(attached) -> list[Tensor]:
        attached.reserve = 33  # outgrown on the way
        one, two = attached.new_cache(), attached.new_cache()
        tokens = ids(1, 64)
        logits = [model(tokens[:, :30], past_key_values=one).logits[:, -1]]
        logits += [model(tokens[:, 20:48], past_key_values=two).logits[:, -1]]

        def step(cache, token):
            found = model(tokens[:, token : token + 1], past_key_values=cache)
            logits.append(found.logits[:, -1])

        for token in range(30, 35):
            step(one, token)
            step(two, token + 20)
        mark, branch = one.mark(), one.fork()
        for token in range(35, 39):
            step(one, token)
            step(branch, token + 9)
        one.rollback(mark)
        for token in range(50, 54):
            step(one, token)
        return logits

    with attention.use(model, method, lossless=False) as attached:
        expected = walk(attached)
    with attention.use(model, method) as attached:
        found = walk(attached)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["embed_tokens", "layers.2", "layers.1.mlp.up_proj", "norm"])
def test_a_hook_is_called(model, place, runs):
    seen: list[str] = []
    handle = model.model.get_submodule(place).register_forward_hook(lambda *_: seen.append(place))
    with attention.use(model, DENSE) as attached:
        expected = stepped(model, attached, 1)
        assert len(seen) == 2
        assert runs == {"layers.2": [2, 1], "layers.1.mlp.up_proj": [1, 2]}.get(place, [LAYERS])
        handle.remove()
        found = stepped(model, attached, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2
    assert runs[-1] == LAYERS


CHANGES = {
    "norm": lambda layer: setattr(layer, "input_layernorm", copy.deepcopy(layer.input_layernorm)),
    "another norm": lambda layer: setattr(layer, "input_layernorm", torch.nn.LayerNorm(64)),
    "norm weight": lambda layer: layer.input_layernorm.weight.mul_(2),
    "epsilon": lambda layer: setattr(layer.input_layernorm, "variance_epsilon", 10.0),
    "scaling": lambda layer: setattr(layer.self_attn, "scaling", 3.0),
    "weight": lambda layer: layer.mlp.up_proj.weight.mul_(2),
    "another weight": lambda layer: setattr(
        layer.mlp.up_proj, "weight", torch.nn.Parameter(3 * layer.mlp.up_proj.weight)
    ),
    "its data": lambda layer: setattr(
        layer.post_attention_layernorm.weight, "data", torch.full((64,), 3.0)
    ),
    "forward": lambda layer: setattr(layer.mlp, "forward", lambda x: 0 * x),
    "other block": lambda layer: layer.load_state_dict(
        {name: 2 * part for name, part in layer.state_dict().items()}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_tokens_is_seen(model, change):
    twin = copy.deepcopy(model)
    logits = []
    for each, lossless in ((model, True), (twin, False)):
        with attention.use(each, DENSE, lossless=lossless) as attached:
            cache = attached.new_cache()
            each(ids(1, 30), past_key_values=cache)
            for token in ids(1, 3).split(1, 1):
                before = each(token, past_key_values=cache).logits
            CHANGES[change](each.model.layers[2])
            if change == "norm":
                each.model.layers[2].input_layernorm.weight.mul_(3)
            cache.rollback(32)
            logits.append(each(ids(1, 3)[:, -1:], past_key_values=cache).logits)
            assert float((logits[-1] - before).abs().max()) > 1e-3
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


class Backwards(attention.StreamingAttention):
    """Selects otherwise than its base, which knows nothing of that."""

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        return Selection()


class Halved(attention.DenseAttention):
    """Attends in its own way, which native code does not know."""

    def attend(self, query, key, value, selection, state):
        return super().attend(query, key, value, selection, state) / 2


@pytest.mark.parametrize("method", [Backwards(sink=2, local=6), Halved()], ids=str)
def test_what_a_method_overrides_is_not_passed_over(model, method, runs):
    with attention.use(model, method, lossless=False) as attached:
        expected = stepped(model, attached)
    with attention.use(model, method) as attached:
        torch.testing.assert_close(stepped(model, attached), expected, rtol=1e-4, atol=1e-4)
    assert not runs


class Listening(attention.DenseAttention):
    """Keeps raw keys, and notes the position encoding that it is told of."""

    heard: ClassVar[list[Tensor]] = []

    @property
    def rotated_keys(self) -> bool:
        return False

    def select_ahead(self, key: Tensor, state: LayerState) -> Selection | None:
        assert state.rotary is not None
        self.heard.append(state.rotary[0])
        return super().select_ahead(key, state)


def test_a_method_that_looks_ahead_knows_where_its_token_stands(model, runs):
    with attention.use(model, Listening()) as attached:
        stepped(model, attached, 3)
        cosine, _ = attached.new_state(0).rank_rotary(33)
    assert runs == [LAYERS] * 3 and len(Listening.heard) == 3 * LAYERS
    for place, heard in enumerate(Listening.heard):
        torch.testing.assert_close(heard[0, 0], cosine[30 + place // LAYERS])


def test_hidden_states_can_be_asked_for(model, runs):
    found = []
    for lossless in (False, True):
        with attention.use(model, DENSE, lossless=lossless) as attached:
            cache = attached.new_cache()
            model(ids(1, 30), past_key_values=cache)
            outputs = model(ids(1, 1), past_key_values=cache, output_hidden_states=True)
            found.append(outputs.hidden_states)
    assert len(found[1]) == LAYERS + 1 and not runs
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_a_decoder_by_itself_returns_what_it_did(model, runs):
    with attention.use(model, DENSE) as attached:
        cache = attached.new_cache()
        model(ids(1, 30), past_key_values=cache)
        output = model.model(ids(1, 1), past_key_values=cache)
        assert output.past_key_values is cache and runs == [LAYERS]
        cache.rollback(30)
        found, kept = model.model(ids(1, 1), past_key_values=cache, return_dict=False)
        assert kept is cache and runs == [LAYERS]
    torch.testing.assert_close(found, output.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_embedded_tokens_run_ahead_too(model, runs):
    with attention.use(model, DENSE) as attached:
        logits = []
        for name in ("input_ids", "inputs_embeds"):
            cache = attached.new_cache()
            model(ids(1, 30), past_key_values=cache)
            token = ids(1, 1) if name == "input_ids" else model.model.embed_tokens(ids(1, 1))
            logits.append(model(**{name: token}, past_key_values=cache).logits)
    assert torch.equal(*logits) and runs == [LAYERS] * 2


@pytest.mark.parametrize("case", ["gradients", "several tokens", "17 sequences", "no cache"])
def test_what_does_not_fit_goes_through_the_blocks(model, case, runs):
    tokens = ids(17, 1) if case == "17 sequences" else ids(1, 2 if case == "several tokens" else 1)
    with attention.use(model, DENSE) as attached:
        cache = None if case == "no cache" else attached.new_cache()
        with torch.set_grad_enabled(case == "gradients"):
            found = model(tokens, past_key_values=cache, use_cache=cache is not None).logits
    torch.testing.assert_close(found, model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert not runs


def test_the_model_is_given_back(model, runs):
    own = model.model.forward
    with attention.use(model, DENSE) as attached:
        with attention.use(model, STREAMING) as inner:
            stepped(model, inner, 1)
        stepped(model, attached, 1)
        twin = copy.deepcopy(model)
    assert model.model.forward == own and "forward" not in model.model.__dict__
    assert runs == [LAYERS] * 2
    assert twin.model.forward.args[0] is twin.model  # a copy leads itself


def test_a_forward_that_somebody_put_over_the_decoder_stays(model, runs):
    own = model.model.forward
    model.model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    theirs = model.model.forward
    with attention.use(model, DENSE) as attached:
        stepped(model, attached, 1)
    assert model.model.forward is theirs and not runs
