"""The walker's statistics are those of the whole model's own forward pass."""

import pytest
import torch
from torch import nn

from gossamer.compression import block_walker
from gossamer.compression.block_walker import (
    block_linears,
    calibrated_blocks,
    calibration_sequences,
    decoder_blocks,
    equal_batches,
)
from gossamer.layers import PackedLinear
from gossamer.testing.attention import prompt, tiny_gemma3, tiny_llama

NAMES = {f"self_attn.{p}_proj" for p in "qkvo"} | {f"mlp.{p}_proj" for p in ("gate", "up", "down")}


@pytest.mark.parametrize("build", [tiny_llama, tiny_gemma3])
def test_statistics_are_those_of_the_whole_model(build, linear_inputs):
    """Causal and sliding masks, rotary positions and scaled embeddings are the model's own."""
    model = build()
    sequences = [prompt(tokens=40, seed=1), prompt(tokens=64, seed=2), prompt(tokens=40, seed=3)]
    walked = {}
    for index, block in enumerate(calibrated_blocks(model, sequences, gram=True)):
        prefix = f"model.layers.{index}."
        assert {name.removeprefix(prefix) for name in block.linears} == NAMES
        walked |= block.inputs
    expected = {}
    for ids in sequences:
        for name, x in linear_inputs(model, [ids]).items():
            expected.setdefault(name, []).append(x[0].double())
    assert set(expected) - set(walked) == {"lm_head"}
    for name, inputs in walked.items():
        every = torch.cat(expected[name])
        torch.testing.assert_close(inputs.mean, every.mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            inputs.variance, every.var(0, correction=0), atol=1e-5, rtol=1e-3
        )
        torch.testing.assert_close(inputs.gram.double(), every.mT @ every, atol=1e-2, rtol=1e-3)


MIXED = [prompt(tokens=tokens, seed=seed) for seed, tokens in enumerate((40, 64, 40, 40, 64, 90))]


def walked(model, monkeypatch, batch_tokens):
    monkeypatch.setattr(block_walker, "BATCH_TOKENS", batch_tokens)
    found = {}
    for block in calibrated_blocks(model, MIXED, gram=True):
        found |= block.inputs
        with torch.no_grad():
            for linear in block.linears.values():
                linear.weight.mul_(0.9)
    return found


@pytest.mark.parametrize("build", [tiny_llama, tiny_gemma3])
@pytest.mark.parametrize("batch_tokens", [100, 2048])
def test_statistics_do_not_depend_on_the_batches(build, batch_tokens, monkeypatch):
    alone, batched = (walked(build(), monkeypatch, bound) for bound in (1, batch_tokens))
    assert set(alone) == set(batched)
    for name, one in alone.items():
        many = batched[name]
        assert (many.sequences, many.tokens) == (one.sequences, one.tokens) == (6, 338)
        # A batch may add a layer's products in another order: some float32 roundings (6e-8) of
        # an input's size a layer, and there are a dozen layers.
        scale, bound = float(one.norm.square().mean() * 6 / 338) ** 0.5, 12 * 2**-22
        torch.testing.assert_close(many.mean, one.mean, rtol=0, atol=bound * scale)
        torch.testing.assert_close(many.variance, one.variance, rtol=0, atol=bound * scale**2)
        size = float(one.gram.diagonal().max())
        torch.testing.assert_close(many.gram, one.gram, rtol=0, atol=bound * size)


@pytest.mark.parametrize(("bound", "largest"), [(1, 90), (80, 90), (128, 128), (2048, 128)])
def test_no_pass_is_larger_than_the_bound_or_one_sequence(llama, monkeypatch, bound, largest):
    monkeypatch.setattr(block_walker, "BATCH_TOKENS", bound)
    shapes = []
    for block in llama.model.layers:
        block.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:2]))
    list(calibrated_blocks(llama, MIXED))
    assert max(shape.numel() for shape in shapes) == largest


def test_batches_keep_the_order_of_sequences_of_one_length(monkeypatch):
    monkeypatch.setattr(block_walker, "BATCH_TOKENS", 80)
    batches = equal_batches(MIXED)
    assert [tuple(batch.shape) for batch in batches] == [
        (2, 40),
        (1, 40),
        (1, 64),
        (1, 64),
        (1, 90),
    ]
    for place, rows in ((0, [MIXED[0], MIXED[2]]), (1, [MIXED[3]]), (2, [MIXED[1]])):
        assert torch.equal(batches[place], torch.cat(rows))


def test_collecting_runs_no_layer_whose_output_nothing_needs(llama):
    calls = []
    for index, block in enumerate(llama.model.layers):
        block.mlp.down_proj.register_forward_hook(lambda *_, index=index: calls.append(index))
    list(calibrated_blocks(llama, [prompt()]))
    assert calls == [0]  # to reach the second block


def test_a_replaced_forward_of_a_block_is_put_back(llama):
    first, second = llama.model.layers
    first.forward = own = first.forward
    with pytest.raises(IndexError):
        list(calibrated_blocks(llama, [torch.full((1, 4), 10**6)]))
    next(calibrated_blocks(llama, [prompt()]))
    assert first.forward is own and "forward" not in vars(second)


def test_a_block_is_calibrated_behind_the_blocks_as_they_are_now(llama, linear_inputs):
    sequences = [prompt(seed=1)]
    for index, block in enumerate(calibrated_blocks(llama, sequences)):
        name = f"model.layers.{index}.self_attn.q_proj"
        seen = linear_inputs(llama, sequences)[name][0].double()
        torch.testing.assert_close(block.inputs[name].mean, seen.mean(0), atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            for linear in block.linears.values():
                linear.weight.mul_(0.3)


def test_layers_that_read_one_tensor_share_its_statistics(llama):
    for block in calibrated_blocks(llama, [prompt()], gram=True):
        parts = {name.rpartition(".")[2]: inputs for name, inputs in block.inputs.items()}
        assert parts["q_proj"] is parts["k_proj"] is parts["v_proj"]
        assert parts["gate_proj"] is parts["up_proj"]
        assert len({id(inputs) for inputs in parts.values()}) == 4


def test_no_hook_stays_behind_even_when_the_caller_stops(llama):
    walk = calibrated_blocks(llama, [prompt()])
    next(walk)
    walk.close()
    for module in llama.modules():
        assert not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "expected calibration sequences, got none"),
        ([torch.ones(2, 0, dtype=torch.long)], ValueError, "got none"),
        (torch.ones(2, 3, dtype=torch.long), TypeError, r"try \[batch\]"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long)}, TypeError, r"try \[batch\]"),
        ("some text", TypeError, "batches of token ids, got str"),
        ([torch.ones(2, 3)], TypeError, "token ids .*float32"),
        ([torch.ones(3, dtype=torch.long)], TypeError, r"\[sequences, tokens\]"),
        (["some text"], TypeError, "token ids"),
        ([{"tokens": torch.ones(2, 3)}], ValueError, "input_ids, got tokens"),
        (
            [{"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.tensor([[0, 1]])}],
            ValueError,
            "without padding",
        ),
    ],
)
def test_bad_calibration_is_refused(batches, error, message):
    with pytest.raises(error, match=message):
        calibration_sequences(batches)


def test_bad_models_are_refused(llama):
    with pytest.raises(TypeError, match="transformers language model, got Linear"):
        decoder_blocks(nn.Linear(2, 2))
    llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj: expected finite"):
        block_linears(llama)
    mlp = llama.model.layers[0].mlp
    mlp.up_proj = PackedLinear.from_dense(mlp.up_proj)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj: expected a dense layer"):
        block_linears(llama)
    llama.model.layers = llama.model.layers[:1]
    with pytest.raises(ValueError, match="list of 2 decoder blocks"):
        decoder_blocks(llama)


def test_inputs_that_are_not_finite_name_the_layer(llama):
    llama.model.embed_tokens.weight.data[:] = torch.inf
    with pytest.raises(ValueError, match=r"layers\.0\.\S+: expected finite inputs"):
        list(calibrated_blocks(llama, [prompt()]))
