"""Attaching methods to a model, one on another, and giving it back bit by bit as it was."""

import gc
import weakref
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.attention import (
    AnchorAttention,
    AttentionMethod,
    DenseAttention,
    HiPAttention,
    Meter,
    StreamingAttention,
    TokenSelect,
    use,
)
from gossamer.testing.attention import prompt, tiny_llama

DENSE = DenseAttention()
NARROW = StreamingAttention(sink=2, local=8)
SELECT = TokenSelect(n_init=4, n_local=16, top_k=16, chunk=16)
SPARSE = [
    NARROW,
    HiPAttention(k=16, window=16, block_q=16, dense_layers=0),
    AnchorAttention(theta=1.0, block=16, step=2, dense_layers=0),
    SELECT,
]


def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def greedy(model: Any, ids: Tensor) -> list[list[int]]:
    return model.generate(ids, do_sample=False, max_new_tokens=6)[:, ids.shape[1] :].tolist()


def test_generate_inside_a_nested_method(llama: Any) -> None:
    ids = prompt()
    with use(llama, DENSE):
        dense = greedy(llama, ids)
    with use(llama, SELECT):
        sparse = greedy(llama, ids)
        with use(llama, DENSE):
            assert greedy(llama, ids) == dense
        assert greedy(llama, ids) == sparse
    assert sparse != dense


def test_detach_takes_what_came_later_with_it(llama: Any) -> None:
    before = logits(llama, prompt())
    first, second, third = (method.attach(llama) for method in (SELECT, DENSE, NARROW))
    second.detach()
    assert (first.attached, second.attached, third.attached) == (True, False, False)
    with use(llama, SELECT):
        expected = logits(llama, prompt())
    assert torch.equal(logits(llama, prompt()), expected)
    third.detach()
    first.detach()
    first.detach()
    assert torch.equal(logits(llama, prompt()), before)


def test_an_attachment_is_its_own_context(llama: Any) -> None:
    with NARROW.attach(llama) as attachment, attachment:
        assert len(llama.model._forward_pre_hooks) == 1
    assert not llama.model._forward_pre_hooks
    assert not attachment.attached


def test_a_copied_model_keeps_its_method(llama: Any) -> None:
    ids = prompt()
    with use(llama, NARROW):
        sparse = logits(llama, ids)
        copied = deepcopy(llama)
    assert torch.equal(logits(copied, ids), sparse)
    with use(copied, DENSE):
        dense = logits(copied, ids)
    with use(llama, DENSE):
        assert torch.equal(logits(llama, ids), dense)


def test_meters_nest(llama: Any) -> None:
    with use(llama, NARROW) as attachment:
        with attachment.metered() as outer:
            logits(llama, prompt())
            with attachment.metered() as inner:
                logits(llama, prompt(1, 8))
        logits(llama, prompt())
    assert isinstance(outer, Meter)
    assert inner.density == 1.0
    assert outer.density == pytest.approx(NARROW_PAIRS / (128 * 129 / 2))


NARROW_PAIRS = sum(min(row + 1, 8 + 2) for row in range(128))


def test_an_error_in_a_forward_leaves_the_next_one_right(llama: Any) -> None:
    with use(llama, NARROW):
        expected = logits(llama, prompt())
        hook = llama.model.layers[1].mlp.register_forward_pre_hook(_fail)
        with pytest.raises(InterruptedError):
            logits(llama, prompt())
        hook.remove()
        assert torch.equal(logits(llama, prompt()), expected)


def _fail(*_: Any) -> None:
    raise InterruptedError


@pytest.mark.parametrize("method", [DENSE, SELECT], ids=lambda method: type(method).__name__)
def test_nothing_is_left_behind(method: AttentionMethod, llama: Any) -> None:
    ids = prompt(1, 8)
    attachments, caches = [], []
    for _ in range(200):
        with use(llama, method) as attachment:
            cache = attachment.new_cache()
        attachments.append(weakref.ref(attachment))
        caches.append(weakref.ref(cache))
    with use(llama, method) as attachment:
        logits(llama, ids, use_cache=True)
        attachments.append(weakref.ref(attachment))
    del attachment, cache
    gc.collect()
    assert not [ref for ref in (*attachments, *caches) if ref() is not None]
    for part in llama.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_an_attached_model_can_be_freed() -> None:
    model = tiny_llama()
    NARROW.attach(model)
    logits(model, prompt(1, 8))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
