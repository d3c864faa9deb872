"""The cache that an attached model fills: what transformers does to it, and what gossamer adds."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from gossamer.adapters.transformers import KVLayer
from gossamer.attention import (
    AttentionMethod,
    DenseAttention,
    HiPAttention,
    StreamingAttention,
    TokenSelect,
    use,
)
from gossamer.testing.attention import prompt, tiny_gemma3

DENSE = DenseAttention()
NARROW = StreamingAttention(sink=2, local=8)
SELECT = TokenSelect(n_init=4, n_local=16, top_k=16, chunk=16)
SEARCH = HiPAttention(k=16, window=16, block_q=16, dense_layers=0)


def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def test_prompt_lookup_crops_the_cache(llama: Any) -> None:
    ids = prompt(1, 40).repeat(1, 2)  # n-grams to look up, and drafts to roll back
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 16}
    expected = llama.generate(ids, **options)
    with use(llama, DENSE):
        found = llama.generate(ids, **options, prompt_lookup_num_tokens=4)
    assert torch.equal(found, expected)


def test_crop_and_reset(llama: Any) -> None:
    ids = prompt()
    with torch.no_grad(), use(llama, NARROW) as attachment:
        cache: Any = attachment.new_cache()
        whole = llama(ids, past_key_values=cache).logits
        cache.crop(-10)
        assert cache.get_seq_length() == 118
        again = llama(ids[:, 118:], past_key_values=cache).logits
        torch.testing.assert_close(again, whole[:, 118:], atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="negative number to remove, got 3"):
            cache.crop(3)
        assert (cache.get_seq_length(), cache.nbytes()) == (128, 2 * 2 * 2 * 128 * 16 * 4)
        cache.crop(-1000)
        assert cache.get_seq_length() == 0
        llama(ids, past_key_values=cache)
        cache.reset()
        assert (cache.get_seq_length(), cache.nbytes()) == (0, 0)
        both = llama(prompt(3), past_key_values=cache).logits  # another batch size
        assert torch.equal(both, llama(prompt(3)).logits)


def test_batch_operations(llama: Any) -> None:
    ids, step = prompt(2), prompt(2, 1, seed=1)
    with torch.no_grad(), use(llama, NARROW) as attachment:
        cache: Any = attachment.new_cache()
        cache.batch_repeat_interleave(2)  # nothing stored yet
        llama(ids, past_key_values=cache)
        branch = cache.fork()
        expected = llama(step, past_key_values=branch).logits
        cache.batch_repeat_interleave(2)
        found = llama(step[[0, 0, 1, 1]], past_key_values=cache.fork()).logits
        torch.testing.assert_close(found, expected[[0, 0, 1, 1]], atol=1e-5, rtol=1e-5)
        cache.batch_select_indices(torch.tensor([2, 1]))
        cache.reorder_cache(torch.tensor([1, 0]))
        found = llama(step, past_key_values=cache).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_deep_copy_of_a_cache_is_a_fork(llama: Any) -> None:
    with torch.no_grad(), use(llama, NARROW) as attachment:
        cache: Any = attachment.new_cache()
        llama(prompt(), past_key_values=cache)
        copied = deepcopy(cache)
        assert all(layer.attachment is attachment for layer in copied.layers)
        expected = llama(prompt(1, 1), past_key_values=copied).logits
        assert cache.get_seq_length() == 128
        assert torch.equal(llama(prompt(1, 1), past_key_values=cache).logits, expected)


def test_an_empty_cache_of_transformers_is_adopted(llama: Any) -> None:
    with torch.no_grad(), use(llama, DENSE):
        for cache in (DynamicCache(config=llama.config), DynamicCache()):
            found = llama(prompt(), past_key_values=cache).logits
            assert all(type(layer) is KVLayer for layer in cache.layers)
            assert torch.equal(found, llama(prompt()).logits)
            assert cache.get_seq_length() == 128


def test_refuses_caches_it_cannot_read(llama: Any) -> None:
    ids = prompt()
    stock = DynamicCache(config=llama.config)
    logits(llama, ids, past_key_values=stock)
    static = transformers.StaticCache(config=llama.config, max_cache_len=256)
    with use(llama, DENSE) as attachment:
        rotated: Any = attachment.new_cache()
        logits(llama, ids, past_key_values=rotated)
        with pytest.raises(ValueError, match="tokens that gossamer did not store"):
            logits(llama, ids[:, :1], past_key_values=stock)
        with pytest.raises(ValueError, match=r"layer of type StaticLayer.*new_cache\(\)"):
            logits(llama, ids, past_key_values=static)
    assert stock.get_seq_length() == 128
    with pytest.raises(ValueError, match="no longer attached"):
        logits(llama, ids[:, :1], past_key_values=rotated)
    with use(llama, SELECT), pytest.raises(ValueError, match="stores keys differently from Token"):
        logits(llama, ids[:, :1], past_key_values=rotated)
    assert rotated.get_seq_length() == 128


def test_methods_that_store_alike_share_a_cache(llama: Any) -> None:
    """Prefill with one, decode with another; the second starts without memory."""
    ids, step = prompt(), prompt(1, 1)
    with torch.no_grad(), use(llama, SEARCH) as attachment:
        cache: Any = attachment.new_cache()
        llama(ids, past_key_values=cache)
        llama(step, past_key_values=cache)
        assert cache.layers[0].state.memory is not None
    with torch.no_grad(), use(llama, DENSE) as second, second.metered() as meter:
        llama(step, past_key_values=cache)
        assert cache.layers[0].attachment is second
        assert cache.layers[0].state.memory is None
        assert meter.density == 1.0


def test_sliding_layers_stay_and_cannot_fork() -> None:
    model = tiny_gemma3(window=32)
    with torch.no_grad(), use(model, DENSE) as attachment:
        cache: Any = attachment.new_cache()
        model(prompt(), past_key_values=cache)
        assert [type(layer) is KVLayer for layer in cache.layers] == [True, False, True]
        with pytest.raises(ValueError, match=r"sliding-window layers.*full attention in every"):
            cache.fork()
        with pytest.raises(ValueError, match="sliding-window layers"):
            cache.rollback(3)


@pytest.mark.parametrize("method", [DENSE, SELECT], ids=lambda method: type(method).__name__)
def test_the_cache_holds_no_graph(method: AttentionMethod, llama: Any) -> None:
    with use(llama, method) as attachment:
        cache: Any = attachment.new_cache()
        for ids in (prompt(), prompt(1, 1)):
            assert llama(ids, past_key_values=cache).logits.requires_grad
        assert not any(layer.keys.requires_grad for layer in cache.layers)
        assert not any(layer.values.requires_grad for layer in cache.layers)


def test_decode_copies_nothing_but_new_tokens(llama: Any) -> None:
    with torch.no_grad(), use(llama, DENSE) as attachment:
        cache: Any = attachment.new_cache()
        llama(prompt(), past_key_values=cache)
        places = [layer.keys.data_ptr() for layer in cache.layers]
        for _ in range(30):
            llama(prompt(1, 1), past_key_values=cache)
        assert [layer.keys.data_ptr() for layer in cache.layers] == places
        assert not any(layer.store.copies for layer in cache.layers)
        assert cache.layers[0].store.reserve == llama.config.max_position_embeddings
