"""Llama models that decode natively, packed and attached, and when modules must be called."""

import copy
from collections.abc import Iterator

import pytest
import torch
from transformers import DynamicCache

from gossamer import attention
from gossamer.adapters.transformers import decode_ahead
from gossamer.adapters.transformers.native_llama import NativeLlamaLayer, quicken
from gossamer.compression import load, pack_linears, save
from gossamer.kernels.backend import instruction_sets
from gossamer.kernels.decoder_block import DecoderBlock
from gossamer.layers import LosslessLinear, PackedLinear
from gossamer.testing.attention import tiny_gemma3, tiny_llama

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="native kernels are not built")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(0))


def decoded(model, tokens: torch.Tensor, steps: int) -> torch.Tensor:
    """Logits of each of the last tokens, read one by one."""
    cache = DynamicCache(config=model.config)
    model(tokens[:, :-steps], past_key_values=cache)
    return torch.cat(
        [model(token, past_key_values=cache).logits for token in tokens[:, -steps:].split(1, 1)], 1
    )


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of each call of a native block, attention in it or not."""
    calls: list[int] = []

    def count(name: str) -> None:
        real = getattr(DecoderBlock, name)

        def counted(self, sequences, *rest, **options):
            calls.append(len(sequences))
            return real(self, sequences, *rest, **options)

        monkeypatch.setattr(DecoderBlock, name, counted)

    count("after")
    count("attend")
    real = decode_ahead.run_steps

    def counted(steps, x, *angles):
        calls.extend([len(x)] * len(steps))
        return real(steps, x, *angles)

    monkeypatch.setattr(decode_ahead, "run_steps", counted)
    return calls


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_decoding_gives_the_dense_models_logits(batch, native_calls):
    model = tiny_llama()
    tokens = ids(batch, 12)
    found = decoded(pack_linears(model, head=True), tokens, steps=5)
    assert native_calls == [batch] * 5 * 2
    torch.testing.assert_close(found, decoded(model, tokens, steps=5), rtol=1e-4, atol=1e-4)


def test_generate_and_left_padding_work(native_calls):
    model = tiny_llama()
    packed = pack_linears(model)
    tokens, mask = ids(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(packed.generate(tokens, **options), model.generate(tokens, **options))
    assert native_calls


def test_sparse_attention_goes_between_the_two_halves(native_calls):
    model = tiny_llama()
    method = attention.StreamingAttention(sink=2, local=6)
    outputs = []
    for each in (model, pack_linears(model)):
        with attention.use(each, method) as attached:
            cache = attached.new_cache()
            each(ids(1, 30), past_key_values=cache)
            outputs.append(each(ids(1, 1), past_key_values=cache).logits)
    assert native_calls
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)


def test_a_hook_on_a_module_that_would_be_passed_over_is_called(native_calls):
    packed = pack_linears(tiny_llama())
    seen: list[str] = []
    handle = packed.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda *_: seen.append("up_proj")
    )
    packed(ids(1, 1))
    assert (seen, len(native_calls)) == (["up_proj"], 1)  # the other block
    handle.remove()
    packed(ids(1, 1))
    assert (seen, len(native_calls)) == (["up_proj"], 3)


def test_a_forward_put_over_a_module_is_called(native_calls):
    packed = pack_linears(tiny_llama())
    mlp = packed.model.layers[1].mlp
    mlp.forward = lambda x: 0 * x  # as accelerate puts its own over a module's
    without = copy.deepcopy(tiny_llama())
    without.model.layers[1].mlp.forward = lambda x: 0 * x
    torch.testing.assert_close(
        packed(ids(1, 1)).logits, without(ids(1, 1)).logits, rtol=1e-4, atol=1e-4
    )
    assert len(native_calls) == 1


def test_attention_weights_can_be_asked_for(native_calls):
    model = tiny_llama()
    model.set_attn_implementation("eager")
    packed = pack_linears(model)
    found, expected = (each(ids(1, 1), output_attentions=True) for each in (packed, model))
    assert not native_calls
    torch.testing.assert_close(found.attentions, expected.attentions)


@pytest.mark.parametrize(
    "case",
    ["several tokens", "float64", "bias", "another activation", "17 sequences", "dense layer"],
)
def test_what_a_native_block_cannot_do_goes_through_the_modules(case, native_calls):
    model = tiny_llama()
    if case == "bias":
        for layer in model.model.layers:
            layer.mlp.up_proj.bias = torch.nn.Parameter(torch.randn(96))
    if case == "another activation":
        for layer in model.model.layers:
            layer.mlp.act_fn = torch.nn.ReLU()
    packed = pack_linears(model)
    if case == "dense layer":
        for layer, dense in zip(packed.model.layers, model.model.layers, strict=True):
            layer.mlp.down_proj = dense.mlp.down_proj
    shape = {"several tokens": (1, 2), "17 sequences": (17, 1)}.get(case, (1, 1))
    tokens = ids(*shape)
    if case == "float64":
        embedded = model.model.embed_tokens(tokens).double()
        assert not packed.model.layers[0]._decodes(embedded, (embedded, embedded))
        return
    torch.testing.assert_close(packed(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert not native_calls


def test_a_weight_that_is_exchanged_is_taken_over_anew(native_calls):
    model, other = tiny_llama(), tiny_llama(seed=1)
    packed, tokens = pack_linears(model), ids(1, 1)
    packed(tokens)
    for mine, theirs in zip(packed.model.layers, other.model.layers, strict=True):
        mine.load_state_dict(pack_linears(other).model.layers[0].state_dict())
        mine.mlp.gate_proj = PackedLinear.from_dense(theirs.mlp.gate_proj)
    expected = copy.deepcopy(model)
    for mine, theirs in zip(expected.model.layers, other.model.layers, strict=True):
        mine.load_state_dict(other.model.layers[0].state_dict())
        mine.mlp.gate_proj = theirs.mlp.gate_proj
    torch.testing.assert_close(packed(tokens).logits, expected(tokens).logits, rtol=1e-4, atol=1e-4)
    assert len(native_calls) == 4


def test_copies_share_nothing_native(native_calls):
    packed = pack_linears(tiny_llama())
    packed(ids(1, 1))
    twin = copy.deepcopy(packed)
    assert "_taken" not in twin.model.layers[0].__dict__
    assert torch.equal(twin(ids(1, 1)).logits, packed(ids(1, 1)).logits)


def test_a_saved_model_decodes_natively_too(tmp_path, native_calls):
    packed = pack_linears(tiny_llama())
    save(packed, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded.model.layers[0]) is NativeLlamaLayer
    assert torch.equal(loaded(ids(1, 1)).logits, packed(ids(1, 1)).logits)
    assert len(native_calls) == 4


def test_other_models_stay_as_they_are():
    model = tiny_gemma3()
    kinds = [type(module) for module in model.modules()]
    assert quicken(model) == []
    assert [type(module) for module in model.modules()] == kinds


METHODS = [
    attention.DenseAttention(),
    attention.StreamingAttention(sink=2, local=6),
    attention.TokenSelect(n_init=2, n_local=8, top_k=4, chunk=4),  # keeps raw keys
    attention.HiPAttention(k=8, block_q=4, block_k=2, window=4, refresh_interval=3, dense_layers=1),
]


def trainable(*, seed: int = 0):
    """A model whose weights tell when they change, as those made for inference do not."""
    with torch.inference_mode(mode=False):
        return tiny_llama(seed=seed)


def attached_logits(model, method, *, lossless: bool) -> torch.Tensor:
    with attention.use(model, method, lossless=lossless) as attached:
        cache = attached.new_cache()
        model(ids(1, 30), past_key_values=cache)
        steps = [model(token, past_key_values=cache).logits for token in ids(1, 6).split(1, 1)]
    return torch.cat(steps, 1)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_an_attached_dense_model_decodes_natively(method, native_calls):
    model = trainable()
    expected = attached_logits(model, method, lossless=False)
    assert not native_calls
    found = attached_logits(model, method, lossless=True)
    assert native_calls == [1] * 6 * 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_padded_sequences_decode_natively_too(method, native_calls):
    model, mask = trainable(), torch.ones(2, 40, dtype=torch.int64)
    mask[0, :5] = 0
    found = []
    for lossless in (False, True):
        with attention.use(model, method, lossless=lossless) as attached:
            cache = attached.new_cache()
            options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
            found.append(model.generate(ids(2, 40), past_key_values=cache, **options))
    assert torch.equal(*found) and native_calls == [2] * 5 * 2


class Halved(attention.DenseAttention):
    """Attends in its own way, which no native block knows."""

    def attend(self, query, key, value, selection, state):
        return super().attend(query, key, value, selection, state) / 2


class Reversed(attention.DenseAttention):
    """Stores values in its own way."""

    def update_cache(self, key, value, state):
        return key, -value


@pytest.mark.parametrize("method", [Halved(), Reversed()], ids=lambda one: type(one).__name__)
def test_what_a_method_does_its_own_way_is_not_passed_over(method, native_calls):
    model = trainable()
    expected = attached_logits(model, method, lossless=False)
    found = attached_logits(model, method, lossless=True)
    assert native_calls == [1] * 6 * 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    usual = attached_logits(model, attention.DenseAttention(), lossless=True)
    assert float((found - usual).abs().max()) > 1e-2


def test_a_step_that_does_not_fit_leaves_the_cache_as_it_was():
    model = trainable()
    with attention.use(model, METHODS[0]) as attached:
        cache = attached.new_cache()
        model(ids(1, 30), past_key_values=cache)
        with pytest.raises(ValueError, match="expected key like the stored"):
            model(ids(2, 1), past_key_values=cache)
        assert [layer.store.length for layer in cache.layers] == [30, 30]


def test_a_model_is_given_back_as_it_was(native_calls):
    model = trainable()
    kinds = [type(module) for module in model.modules()]
    names = list(model.state_dict())
    with attention.use(model, METHODS[0]):
        assert type(model.lm_head) is LosslessLinear
        assert type(model.model.layers[0]) is NativeLlamaLayer
        with attention.use(model, METHODS[1]):
            model(ids(1, 1))
        model(ids(1, 1))
        assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == kinds
    assert not any("_taken" in module.__dict__ for module in model.modules())
    assert len(native_calls) == 4


def test_a_packed_model_stays_packed_when_a_method_leaves(native_calls):
    packed = pack_linears(tiny_llama())
    with attention.use(packed, METHODS[0]):
        packed(ids(1, 1))
    assert type(packed.model.layers[0]) is NativeLlamaLayer
    packed(ids(1, 1))
    assert len(native_calls) == 4


def test_weights_that_train_while_a_method_is_attached_are_read_anew(native_calls):
    model, other = trainable(), trainable(seed=1)
    with attention.use(model, METHODS[0]):
        model(ids(1, 1))
        model.load_state_dict(other.state_dict())
        found = model(ids(1, 1)).logits
    torch.testing.assert_close(found, other(ids(1, 1)).logits, rtol=1e-4, atol=1e-4)
    assert len(native_calls) == 4


def test_gradients_are_never_lost_to_a_native_block(native_calls):
    model = trainable()
    with torch.inference_mode(mode=False), torch.enable_grad():
        with attention.use(model, METHODS[0]):
            assert model(ids(1, 1).clone(), use_cache=False).logits.requires_grad
    assert not native_calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_alone(dtype):
    model = tiny_llama().to(dtype)
    with attention.use(model, METHODS[0]):
        assert type(model.lm_head) is torch.nn.Linear
