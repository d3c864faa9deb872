from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from gossamer.adapters.transformers import KVCache
from gossamer.attention import (
    AnchorAttention,
    AttentionMethod,
    DenseAttention,
    HiPAttention,
    StreamingAttention,
    TokenSelect,
    use,
)
from gossamer.testing.attention import prompt

DENSE = DenseAttention()
NARROW = StreamingAttention(sink=2, local=8)
SELECT = TokenSelect(n_init=4, n_local=16, top_k=16, chunk=16)
SPARSE = [
    NARROW,
    HiPAttention(k=16, window=16, block_q=16, dense_layers=0),
    AnchorAttention(theta=1.0, block=16, step=2, dense_layers=0),
    SELECT,
]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16}


def build(name: str, config: str, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()


MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": None}),
    "mistral sliding": ("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 8}),
    "phi": (
        "PhiForCausalLM",
        "PhiConfig",
        SIZES
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "cohere": ("CohereForCausalLM", "CohereConfig", SIZES | {"logit_scale": 1.0}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        GROUPED
        | {
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "bert": ("BertModel", "BertConfig", SIZES),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "gemma3 with vision": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": GROUPED | {"layer_types": ["full_attention"] * 2},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_id": 63,
            "boi_token_id": 62,
            "eoi_token_id": 61,
        },
    ),
}


def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def greedy(model: Any, ids: Tensor) -> list[list[int]]:
    return model.generate(ids, do_sample=False, max_new_tokens=6)[:, ids.shape[1] :].tolist()


# ---- models


@pytest.mark.parametrize("name", ["qwen3", "mistral", "phi", "cohere", "gemma3 with vision"])
def test_dense_is_the_model(name: str) -> None:
    model, ids = build(*MODELS[name]), prompt(2)
    expected, written = logits(model, ids), greedy(model, ids)
    with use(model, DENSE) as attachment, attachment.metered() as meter:
        torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=1e-4)
        assert meter.density == 1.0
        assert greedy(model, ids) == written
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("method", SPARSE, ids=lambda method: type(method).__name__)
def test_sparse_methods_skip(method: AttentionMethod, llama: Any) -> None:
    expected = logits(llama, prompt())
    with use(llama, method) as attachment, attachment.metered() as meter:
        found = logits(llama, prompt())
        assert 0.0 < meter.density < 0.9
    assert float((found - expected).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mistral sliding", "every layer of MistralForCausalLM has a sliding window"),
        ("gemma2", "soft-capping, got softcap 50.0"),
        ("gpt-oss", "learned attention sinks"),
        ("bert", "BertModel has no attention layout"),
        ("gpt2", "GPT2LMHeadModel has no attention layout"),
    ],
)
def test_refuses_models_it_would_get_wrong(name: str, message: str) -> None:
    model = build(*MODELS[name])
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=message):
        use(model, DENSE)
    with pytest.raises(ValueError, match=message):
        DENSE.attach(model)
    assert model.config._attn_implementation == before


def test_refuses_attention_that_is_not_causal(llama: Any) -> None:
    llama.model.layers[1].self_attn.is_causal = False
    with pytest.raises(ValueError, match="expected causal attention, got LlamaAttention"):
        use(llama, DENSE)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), None, "smollm2"])
def test_refuses_what_is_no_model(model: Any) -> None:
    with pytest.raises(ValueError, match="expected a transformers model, got"):
        use(model, DENSE)


@pytest.mark.parametrize("method", ["dense", DenseAttention, None])
def test_refuses_what_is_no_method(method: Any, llama: Any) -> None:
    with pytest.raises(TypeError, match=r"expected an attention method, got .*DenseAttention\(\)"):
        use(llama, method)


@pytest.mark.parametrize(
    ("name", "message"),
    [("phi", "rotary encoding over the whole head dim 16, got 8"), ("cohere", "dims d and d")],
)
def test_token_select_refuses_other_encodings(name: str, message: str) -> None:
    model, ids = build(*MODELS[name]), prompt()
    expected = logits(model, ids)
    with use(model, SELECT), pytest.raises(ValueError, match=message):
        logits(model, ids)
    assert torch.equal(logits(model, ids), expected)
    with use(model, replace(SELECT, reindex_positions=False, top_k=500)):
        torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=1e-4)


def test_works_on_the_bare_decoder(llama: Any) -> None:
    with torch.no_grad(), use(llama.model, NARROW):
        found = llama.model(prompt())
        assert isinstance(found.past_key_values, KVCache)
    with use(llama, NARROW):
        expected = logits(llama, prompt())
    assert torch.equal(llama.lm_head(found.last_hidden_state), expected)


def test_vision_keeps_its_own_attention() -> None:
    model = build(*MODELS["gemma3 with vision"])
    before = model.config.vision_config._attn_implementation
    with use(model, DENSE) as attachment:
        assert len(attachment.modules) == 2
        assert model.config.text_config._attn_implementation == "gossamer"
        assert model.config.vision_config._attn_implementation == before


# ---- inputs


def test_refuses_masks_it_cannot_follow(llama: Any) -> None:
    ids = prompt(2)
    right, hole = torch.ones_like(ids), torch.ones_like(ids)
    right[0, -3:], hole[0, 50] = 0, 0
    packed = torch.cat([torch.arange(100), torch.arange(28)]).expand(2, -1)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"attention_mask": right}, "padding on the left only.*padding_side = 'left'"),
        ({"attention_mask": hole}, "padding on the left only"),
        ({"attention_mask": torch.zeros(2, 1, 128, 128)}, "2-D attention_mask .*got a 4-D one"),
        ({"position_ids": packed, "use_cache": False}, "packed sequences; try one sequence"),
    ]
    with use(llama, NARROW):
        expected = logits(llama, ids)
        for options, message in refused:
            with pytest.raises(ValueError, match=message):
                logits(llama, ids, **options)
            assert torch.equal(logits(llama, ids), expected)


def test_a_mask_without_padding_is_no_mask(llama: Any) -> None:
    with use(llama, NARROW):
        masked = logits(llama, prompt(), attention_mask=torch.ones(1, 128, dtype=torch.int64))
        assert torch.equal(masked, logits(llama, prompt()))


def test_a_row_of_padding_alone_is_harmless(llama: Any) -> None:
    mask = torch.ones(2, 128, dtype=torch.int64)
    mask[0] = 0
    for method in (DENSE, *SPARSE):
        with use(llama, method):
            found = logits(llama, prompt(2), attention_mask=mask)
            assert bool(found.isfinite().all()), method
            alone = logits(llama, prompt(2)[1:])
            torch.testing.assert_close(found[1:], alone, atol=1e-4, rtol=1e-4)


def test_half_precision_says_what_it_wants(llama: Any) -> None:
    with use(llama.half(), DENSE), pytest.raises(TypeError, match="expected query to be float32"):
        logits(llama, prompt())


def test_training_fails_loudly(llama: Any) -> None:
    with use(llama.train(), DENSE):
        loss = llama(prompt(), labels=prompt()).loss
        with pytest.raises(ValueError, match="detach the method to train"):
            loss.backward()
    llama(prompt(), labels=prompt()).loss.backward()
