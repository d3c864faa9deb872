"""Saved models: plain transformers reads the dense one, ours the packed one, to the bit."""

import json
from pathlib import Path

import pytest
import torch

from gossamer.adapters.safetensors import load_packed
from gossamer.compression import Wanda, load, pack_linears, prune, save
from gossamer.errors import FormatError
from gossamer.kernels import PackedWeight
from gossamer.layers import PackedLinear
from gossamer.patterns import NM
from gossamer.testing.attention import prompt, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")


@pytest.fixture
def pruned(llama):
    prune(llama, [Wanda(0.4)], [prompt()])
    return llama


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(prompt(2, 20, seed=5)).logits


def test_plain_transformers_loads_the_dense_model(pruned, tmp_path):
    from transformers import AutoModelForCausalLM

    save(pruned, tmp_path / "dense")
    for model in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "dense"),
        load(tmp_path / "dense"),
    ):
        assert torch.equal(logits(model), logits(pruned))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_packed_models_come_back_to_the_bit(tmp_path, tied, head):
    model = tiny_llama()
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    prune(model, [Wanda(0.4)], [prompt()])
    packed = pack_linears(model, head=head)
    save(packed, tmp_path)
    files = load_packed(tmp_path / "packed.safetensors")
    assert sum(isinstance(w, PackedWeight) for w in files.values()) == 14 + head
    assert ("lm_head.weight" in files) == (head or not tied)
    state = torch.get_rng_state()
    back = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(back), logits(packed))
    assert not back.training and isinstance(back.model.layers[1].mlp.down_proj, PackedLinear)
    torch.testing.assert_close(logits(back), logits(model), atol=1e-4, rtol=1e-3)


def test_packed_models_decode_with_a_cache(pruned):
    ids = prompt(1, 12)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = pruned.generate(ids, **options)
    assert torch.equal(pack_linears(pruned).generate(ids, **options), expected)


def test_packing_leaves_the_model_as_it_was(pruned):
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    packed = pack_linears(pruned, dtype=torch.bfloat16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())
    assert all(weight.requires_grad for weight in pruned.parameters())
    assert (
        packed.model.embed_tokens.weight.data_ptr() == pruned.model.embed_tokens.weight.data_ptr()
    )
    layer = packed.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.bfloat16 and layer.density() == pytest.approx(0.4, abs=0.01)


def test_a_pattern_is_checked_with_the_layer_named(pruned):
    with pytest.raises(ValueError, match=r"layers\.0\.\S+: expected at most 1 of 4"):
        pack_linears(pruned, pattern=NM(1, 4))


def test_packing_twice_is_refused(pruned):
    with pytest.raises(ValueError, match="expected a dense layer"):
        pack_linears(pack_linears(pruned))


def test_a_directory_holds_one_kind(pruned, tmp_path):
    save(pruned, tmp_path / "dense")
    with pytest.raises(ValueError, match="another directory"):
        save(pack_linears(pruned), tmp_path / "dense")
    save(pack_linears(pruned), tmp_path / "packed")
    with pytest.raises(ValueError, match="another directory"):
        save(pruned, tmp_path / "packed")
    with pytest.raises(ValueError, match="expected a directory"):
        save(pruned, tmp_path / "packed" / "config.json")


@pytest.mark.parametrize("packed", [False, True])
def test_a_save_that_fails_changes_nothing(pruned, tmp_path, monkeypatch, packed):
    model = pack_linears(pruned) if packed else pruned
    save(model, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}

    class Full:
        def save_pretrained(self, directory):
            (Path(directory) / "tokenizer.json").write_text("{}")
            raise OSError("disk full")

    for name in ("old", "new"):
        with pytest.raises(OSError, match="disk full"):
            save(model, tmp_path / name, tokenizer=Full())
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_weights_of_an_earlier_save_are_not_read_again(pruned, tmp_path):
    for stale in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / stale).write_bytes(b"stale")
    save(pruned, tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(pruned))
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_what_does_not_fit_is_refused(pruned, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load(tmp_path)
    save(pack_linears(pruned), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 1}, "expected model.layers.1"),
        ({"num_hidden_layers": 3}, "expected the weights of config.json"),
        ({"intermediate_size": 100}, r"expected shape \[100, 64\]"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(FormatError, match=message):
            load(tmp_path)
