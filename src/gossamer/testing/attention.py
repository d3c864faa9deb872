"""Conformance of attention methods: what every one of them must do, yours included.

`check_attention_method` runs all of it on random models of a few thousand weights; each check is
also a function of its own. A check that fails raises `AssertionError` and says what it found.

Examples
--------
>>> from gossamer.attention import StreamingAttention
>>> check_attention_method(
...     StreamingAttention(sink=4, local=32),
...     full=StreamingAttention(sink=4, local=1000),
...     refused=[({"sink": -1}, "sink"), ({"local": 0}, "local")],
... )
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from gossamer.attention import AttentionMethod, DenseAttention, LayerState, use
from gossamer.kernels import rotate
from gossamer.testing.bounds import budget, check_close
from gossamer.testing.inputs import AttentionShape, attention_inputs, rotary_tables
from gossamer.testing.records import check_documented, check_record, check_refusals, expect

TOKENS = 128  # of every prompt here: a method under test should skip something at that length
_SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # ten times the usual, for attention that is far from uniform
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_llama(*, layers: int = 2, seed: int = 0) -> Any:
    """Build a random Llama with 4 query heads, 2 key heads and a peaked attention.

    Examples
    --------
    >>> tiny_llama(layers=1).config.num_key_value_heads
    2
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_SIZES, num_hidden_layers=layers)
    return _seeded(seed, lambda: LlamaForCausalLM(config).eval())


def tiny_gemma3(*, window: int = 32, seed: int = 0) -> Any:
    """Build a random Gemma 3 whose middle layer of three attends to a sliding window.

    Examples
    --------
    >>> tiny_gemma3().config.layer_types
    ['full_attention', 'sliding_attention', 'full_attention']
    """
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **_SIZES,
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        sliding_window=window,
        query_pre_attn_scalar=16,
    )
    return _seeded(seed, lambda: Gemma3ForCausalLM(config).eval())


def prompt(batch: int = 1, tokens: int = TOKENS, *, seed: int = 0) -> Tensor:
    """Draw a prompt, int64 [batch, tokens], without special tokens.

    Examples
    --------
    >>> prompt(2).shape
    torch.Size([2, 128])
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, _SIZES["vocab_size"], (batch, tokens), generator=generator)


def run_layer(
    method: AttentionMethod,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: LayerState | None = None,
) -> Tensor:
    """Attend as one layer of a model does: positions encoded, this call's tokens last.

    Parameters
    ----------
    method : AttentionMethod
    query : Tensor [B, H, q_len, D]
        Before position encoding, of the last q_len tokens.
    key, value : Tensor [B, H_kv, k_len, D]
        All tokens so far; keys before position encoding.
    state : LayerState, optional
        Pass one to keep what the method remembers; its scale and encodings are filled in.

    Returns
    -------
    Tensor [B, H, q_len, D]

    Examples
    --------
    >>> query, key, value = attention_inputs(AttentionShape(1, 4, 2, 3, 10, 8))
    >>> run_layer(DenseAttention(), query, key, value).shape
    torch.Size([1, 4, 3, 8])
    """
    (q_len, dim), k_len = query.shape[2:], key.shape[2]
    cosine, sine = rotary_tables(k_len, dim)
    state = LayerState(layer=10**6, layers=10**6 + 1) if state is None else state
    state.scale = dim**-0.5
    state.rank_rotary = lambda n: rotary_tables(n, dim)
    state.rotary = cosine[None], sine[None]
    stored = method.update_cache(rotate(key, cosine, sine), value, state)
    cosine, sine = cosine[k_len - q_len :], sine[k_len - q_len :]
    state.rotary = cosine[None], sine[None]
    return method(rotate(query, cosine, sine), *stored, state)


def check_attention_method(
    method: AttentionMethod,
    *,
    full: AttentionMethod,
    refused: Iterable[tuple[Mapping[str, Any], str]] = (),
) -> None:
    """Run every check of this module on a method.

    Parameters
    ----------
    method : AttentionMethod
        With a setting that skips keys of a prompt of `TOKENS` tokens.
    full : AttentionMethod
        The same method with a budget that covers every key.
    refused : iterable of (parameters, pattern)
        Parameters that the constructor must refuse, and a regular expression for its message.

    Raises
    ------
    AssertionError
        Naming the first rule broken.
    """
    check_record(method)
    check_documented(type(method))
    check_refusals(type(method), refused)
    check_layer(method)
    for model in (tiny_llama(), tiny_gemma3()):
        check_dense_limit(full, model)
        check_steps(full, model)
        check_padding(full, model)
        check_generate(method, full, model)
        check_restores(method, model)
    check_cache(method, tiny_llama())


def check_layer(method: AttentionMethod) -> None:
    """Check prompt, chunk and decode step on tensors, in float32 and bfloat16.

    Output is finite and like the query, inputs stay as they were, and the result has the same
    bits for each sequence alone, again, and on another number of threads.
    """
    for dtype in (torch.float32, torch.bfloat16):
        for q_len in (TOKENS, 40, 1):
            q, k, v = attention_inputs(AttentionShape(2, 4, 2, q_len, TOKENS, 16), dtype=dtype)
            before = q.clone(), k.clone(), v.clone()
            output = run_layer(method, q, k, v)
            case = f"{method} with {q_len} queries in {dtype}"
            same = output.shape == q.shape and output.dtype == dtype
            expect(same, f"{case} gives {output.dtype} {list(output.shape)}")
            expect(bool(output.isfinite().all()), f"{case} gives NaN or infinity")
            expect(all(map(torch.equal, (q, k, v), before)), f"{case} changes its inputs")
            for b in range(2):
                alone = run_layer(method, q[b : b + 1], k[b : b + 1], v[b : b + 1])
                expect(torch.equal(alone[0], output[b]), f"{case} mixes sequences of a batch")
            before = torch.get_num_threads()
            try:
                for threads in range(1, 3 if q_len == 40 else 2):
                    torch.set_num_threads(threads)
                    again = torch.equal(run_layer(method, q, k, v), output)
                    expect(again, f"{case} gives other bits on {threads} threads")
            finally:
                torch.set_num_threads(before)


@torch.no_grad()
def check_dense_limit(full: AttentionMethod, model: Any) -> None:
    """Check that a budget for every key gives the model's own logits, within `budget`."""
    ids = prompt(2)
    for dtype in (torch.float32, torch.bfloat16):
        tiny = deepcopy(model).to(dtype)
        plain, exact = tiny(ids).logits, deepcopy(tiny).double()(ids).logits
        with use(tiny, full) as attachment, attachment.metered() as meter:
            check_close(tiny(ids).logits, exact, budget(plain, exact), f"{full} in {dtype}")
        expect(meter.density == 1.0, f"expected {full} to cover every key, got {meter.density:g}")


@torch.no_grad()
def check_steps(method: AttentionMethod, model: Any) -> None:
    """Check that chunks and single tokens give the logits of one forward pass."""
    ids = prompt(2)
    bound = _rounding(model, ids)
    with use(model, method) as attachment:
        whole = model(ids, use_cache=False).logits
        for steps in ([50, 1, 30, 47], [TOKENS - 12, *[1] * 12]):
            cache = attachment.new_cache()
            parts = [model(part, past_key_values=cache).logits for part in ids.split(steps, 1)]
            check_close(torch.cat(parts, 1), whole.double(), bound, f"{method} in {len(steps)}")


@torch.no_grad()
def check_padding(method: AttentionMethod, model: Any, pads: int = 21) -> None:
    """Check that a sequence padded on the left, and the one beside it, give their own logits."""
    ids, other = prompt(), prompt(tokens=TOKENS + pads)
    both = torch.cat([torch.cat([ids.new_zeros(1, pads), ids], 1), other])
    mask = torch.ones_like(both)
    mask[0, :pads] = 0
    position = (mask.cumsum(1) - 1).clamp(min=0)
    bound = _rounding(model, other)
    with use(model, method):
        found = model(both, attention_mask=mask, position_ids=position).logits
        for actual, alone in ((found[:1, pads:], ids), (found[1:], other)):
            check_close(actual, model(alone).logits.double(), bound, f"padded {method}")


def check_generate(method: AttentionMethod, full: AttentionMethod, model: Any) -> None:
    """Check greedy, sampled, beam and padded generation; `full` writes what the model does."""
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[0, :9] = 0
    ids = prompt(2) * mask

    def write(rows: slice, options: dict[str, Any]) -> Tensor:
        options = options | {"attention_mask": mask[rows], "max_new_tokens": 6}
        return _seeded(0, lambda: model.generate(ids[rows], **options))

    for rows, options in (
        (slice(1, 2), {"do_sample": False}),
        (slice(1, 2), {"do_sample": True}),
        (slice(1, 2), {"do_sample": False, "num_beams": 2}),
        (slice(0, 2), {"do_sample": False}),
    ):
        stock = write(rows, options)
        with use(model, full):
            found = write(rows, options)
        expect(torch.equal(found, stock), f"{full} writes {found.tolist()}, not {stock.tolist()}")
        with use(model, method):
            again = torch.equal(write(rows, options), write(rows, options))
        expect(again, f"{method} writes something else the second time")


@torch.no_grad()
def check_restores(method: AttentionMethod, model: Any) -> None:
    """Check that the model is as it was after the context, an error, nesting and `detach`."""
    ids = prompt()
    before = _fingerprint(model, ids)
    dense = DenseAttention()

    def check(after: str) -> None:
        expect(_fingerprint(model, ids) == before, f"{method} leaves a trace after {after}")

    with use(model, dense):
        expected = model(ids).logits
    with use(model, method):
        sparse = model(ids).logits
    check("the context")
    try:
        with use(model, method):
            model(ids)
            raise InterruptedError
    except InterruptedError:
        check("an error")
    with use(model, method):
        with use(model, dense):
            expect(torch.equal(model(ids).logits, expected), f"{method} attends inside {dense}")
        expect(torch.equal(model(ids).logits, sparse), f"{method} is gone after {dense} inside")
    check("nesting")
    with method.attach(model):
        expect(torch.equal(model(ids).logits, sparse), f"{method} attached differs from used")
    check("attach")
    below = method.attach(model)
    method.attach(model)
    below.detach()
    check("attaching twice and detaching the first")


@torch.no_grad()
def check_cache(method: AttentionMethod, model: Any) -> None:
    """Check that a cache rolled back or forked decodes, bit for bit, like a fresh one."""
    ids, (first, second) = prompt(), prompt(2, 10, seed=1).split(1)
    with use(model, method) as attachment:

        def prefilled() -> Any:
            cache = attachment.new_cache()
            model(ids, past_key_values=cache)
            return cache

        def decode(cache: Any, tokens: Tensor) -> Tensor:
            steps = [model(token, past_key_values=cache).logits for token in tokens.split(1, 1)]
            return torch.cat(steps, 1)

        fresh = [decode(prefilled(), tokens) for tokens in (first, second)]
        cache = prefilled()
        mark = cache.mark()
        decode(cache, first)
        cache.rollback(mark)
        again = torch.equal(decode(cache, second), fresh[1])
        expect(again, f"{method} decodes differently after a rollback")
        cache.rollback(mark)
        branch = cache.fork()
        again = torch.equal(decode(branch, first), fresh[0])
        expect(again, f"{method} decodes differently on a fork")
        copies = [layer.store.copies for layer in (*branch.layers, *cache.layers)]
        expect(not any(copies), f"a fork of {method} copied the past")
        again = cache.mark() == mark and torch.equal(decode(cache, second), fresh[1])
        expect(again, f"{method} decodes differently after its fork has grown")


def _rounding(model: Any, ids: Tensor) -> float:
    """How far two ways to the same logits may be apart: each within `budget` of the exact."""
    return 2 * budget(model(ids).logits, deepcopy(model).double()(ids).logits)


def _seeded(seed: int, call: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call()


def _fingerprint(model: Any, ids: Tensor) -> str:
    """Digest of everything that attaching could touch, and of the logits."""
    parts = list(model.modules())
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts]
    config = model.config.to_dict(), model.config._attn_implementation
    digest = sha256(repr((config, hooks, [sorted(vars(part)) for part in parts])).encode())
    for tensor in (*model.state_dict().values(), model(ids).logits):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
