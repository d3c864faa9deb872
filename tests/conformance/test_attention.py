"""Every attention method through its family's suite, and proof that the suite can fail."""

import re
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Any

import pytest
from torch import Tensor

from gossamer import attention
from gossamer.adapters.transformers import Attachment
from gossamer.attention import (
    AnchorAttention,
    AttentionMethod,
    DenseAttention,
    HiPAttention,
    LayerState,
    Selection,
    StreamingAttention,
    TokenSelect,
)
from gossamer.patterns import Window
from gossamer.testing import attention as suite

REFUSED: dict[type[AttentionMethod], list[tuple[dict[str, Any], str]]] = {
    DenseAttention: [],
    StreamingAttention: [({"sink": -1}, "sink .*-1"), ({"local": 0}, "local .*0")],
    HiPAttention: [
        ({"block_q": 0}, "block_q .*power of two, got 0"),
        ({"block_q": 48}, "block_q .*power of two, got 48"),
        ({"k": 511}, "k to be a multiple of block_k 2, got 511"),
        ({"k": 0}, "k .*got 0"),
        ({"block_k": 0}, "block_k .*got 0"),
        ({"block_k": 3, "k": 6}, "block_k .*got 3"),
        ({"window": 0}, "refresh_interval in 1..window"),
        ({"window": 4}, r"refresh_interval in 1..window \(4\), got 8"),
        ({"refresh_interval": 0}, "refresh_interval .*got 0"),
        ({"dense_layers": -1}, "dense_layers, .*got -1, 4 and 0"),
        ({"sink": -1}, "sink .*got 3, -1 and 0"),
        ({"query_stride": 0}, "query_stride .*got 0"),
        ({"representative": "last"}, "representative .*'last'"),
        ({"sparq_dim": 0}, "sparq_dim .*and 0"),
        ({"seed": -1}, "seed .*got 3, 4 and -1"),
    ],
    AnchorAttention: [
        ({"theta": nan}, "theta .*NaN"),
        ({"block": 0}, "block .*16, got 0"),
        ({"block": 100}, "block .*16, got 100"),
        ({"step": 0}, "step .*got 0"),
        ({"sink_blocks": 0}, "sink_blocks .*0"),
        ({"local_blocks": -1}, "local_blocks .*-1"),
        ({"dense_layers": -1}, "dense_layers .*-1"),
        ({"share": "all"}, "share .*'all'"),
    ],
    TokenSelect: [
        ({"score_dtype": "float16"}, "score_dtype .*'float16'"),
        ({"n_init": -1}, "n_init .*-1"),
        ({"n_local": 0}, "n_local.* 0"),
        ({"top_k": 0}, "top_k.* 0"),
        ({"chunk": 0}, "chunk .* 0"),
        ({"chunk": 513}, "chunk <= n_local .*513 > 512"),
        ({"vote": "max"}, "vote .*'max'"),
        ({"scale": "none"}, "scale .*'none'"),
        ({"smooth_kernel": 2}, "smooth_kernel .*got 2"),
        ({"smooth_kernel": -1}, "smooth_kernel .*got -1"),
        ({"cache_threshold": nan}, "cache_threshold .*got nan"),
        ({"cache_threshold": -2.0}, "cache_threshold .*got -2"),
    ],
}

HIP = HiPAttention(k=16, window=16, block_q=16, dense_layers=0, refresh_interval=4)
ANCHOR = AnchorAttention(theta=1.0, block=16, step=2, dense_layers=0)
SELECT = TokenSelect(n_init=4, n_local=16, top_k=16, chunk=16)

# A setting that skips keys of a prompt of 128 tokens, and what makes it cover every key.
SETTINGS: list[tuple[AttentionMethod, dict[str, Any]]] = [
    (DenseAttention(), {}),
    (StreamingAttention(sink=4, local=16), {"local": 1000}),
    (StreamingAttention(sink=0, local=1), {"sink": 1000}),
    (HIP, {"k": 1000}),
    (replace(HIP, block_q=1, block_k=1, query_stride=1, sink=0), {"window": 1000}),
    (replace(HIP, representative="first", block_k=4, query_stride=3), {"k": 1000}),
    (replace(HIP, sparq_dim=4, k=8, refresh_interval=1), {"k": 1000}),
    (ANCHOR, {"theta": inf}),
    (replace(ANCHOR, step=1, sink_blocks=2, local_blocks=0), {"theta": inf}),
    (replace(ANCHOR, share="group", local_blocks=2, step=3), {"theta": inf}),
    (SELECT, {"top_k": 1000}),
    (replace(SELECT, vote="head", scale="rsqrt", n_init=0), {"top_k": 1000}),
    (replace(SELECT, vote="sum", smooth_kernel=3, chunk=5), {"top_k": 1000}),
    (replace(SELECT, reindex_positions=False, cache_threshold=-1.0), {"top_k": 1000}),
]


@pytest.mark.parametrize(("method", "changes"), SETTINGS, ids=lambda part: str(part)[:90])
def test_conforms(method: AttentionMethod, changes: dict[str, Any]) -> None:
    suite.check_attention_method(
        method, full=replace(method, **changes), refused=REFUSED[type(method)]
    )


def test_every_method_is_here() -> None:
    exported = [getattr(attention, name) for name in attention.__all__]
    kinds = {kind for kind in exported if isinstance(kind, type)}
    methods = {kind for kind in kinds if issubclass(kind, AttentionMethod)} - {AttentionMethod}
    assert {type(method) for method, _ in SETTINGS} == methods == REFUSED.keys()


@pytest.mark.parametrize(
    "method", [DenseAttention(), StreamingAttention(sink=4, local=16)], ids=lambda m: str(m)
)
def test_exact_at_any_setting(method: AttentionMethod) -> None:
    """What these attend to does not depend on how a prompt is cut or padded."""
    for model in (suite.tiny_llama(), suite.tiny_gemma3()):
        suite.check_steps(method, model)
        suite.check_padding(method, model)


@pytest.mark.parametrize(
    "method",
    [HIP, replace(HIP, representative="random"), SELECT, ANCHOR],
    ids=lambda m: str(m)[:60],
)
def test_padding_by_whole_groups_changes_nothing(method: AttentionMethod) -> None:
    """Query groups count from the first row, so this much padding leaves each group as it was."""
    suite.check_padding(method, suite.tiny_llama(), pads=32)


@pytest.mark.parametrize("kind", [*REFUSED], ids=lambda kind: kind.__name__)
def test_methods_from_papers_say_which(kind: type[AttentionMethod]) -> None:
    if kind is not DenseAttention:
        assert re.search(r'Based on\s+".+"\s+\(arXiv\s+\d{4}\.\d{5}\)', kind.__doc__ or "", re.S)


# ---- the suite catches methods that break a rule


@dataclass(frozen=True)
class Remembers(AttentionMethod):
    """Stores more than its parameters.

    >>> method = Remembers(1)
    """

    width: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.width)


@dataclass(frozen=True)
class Forgets(AttentionMethod):
    """Loses its parameter in the repr.

    >>> method = Forgets(1)
    """

    width: int = field(default=1, repr=False)


@dataclass(frozen=True)
class Scribbles(AttentionMethod):
    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        if state.value is not None:
            state.value[:, :, 0] += 1.0
        return Selection()


@dataclass(frozen=True)
class Mixes(AttentionMethod):
    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        return Selection(query=query.mean(0, keepdim=True).expand_as(query).contiguous())


@dataclass(frozen=True)
class Wanders(AttentionMethod):
    """The same for every row of a batch, but not from call to call."""

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        calls.append(len(calls))
        return Selection(query=query + len(calls) // 3 * 0.1)


@dataclass(frozen=True)
class Shrinks(AttentionMethod):
    """Keeps every key of a prompt, but eight in decode."""

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        return Selection(window=Window(0, 8) if query.shape[2] == 1 else None)


@dataclass(frozen=True)
class Overlooks(AttentionMethod):
    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        state.key_start = None
        return Selection()


@dataclass(frozen=True)
class Clings(AttentionMethod):
    """Counts its calls in the process, where no rollback reaches."""

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        calls.append(len(calls))
        return Selection(window=Window(0, 1 + len(calls)))


calls: list[int] = []
NARROW = StreamingAttention(sink=0, local=8)


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (suite.check_record, (Remembers(),), "stores more"),
        (suite.check_record, (Forgets(2),), "its repr"),
        (suite.check_documented, (Forgets,), "does not document width"),
        (suite.check_documented, (Shrinks,), "no example"),
        (suite.check_refusals, (HiPAttention, [({"k": 512}, "k")]), "expected .* to raise"),
        (suite.check_refusals, (HiPAttention, [({"k": 0}, "block_q")]), "says expected k"),
        (suite.check_layer, (Scribbles(),), "changes its inputs"),
        (suite.check_layer, (Mixes(),), "mixes sequences"),
        (suite.check_layer, (Clings(),), "mixes sequences"),
        (suite.check_layer, (Wanders(),), "other bits on 1 threads"),
        (suite.check_dense_limit, (NARROW, suite.tiny_llama()), "local=8.* within"),
        (suite.check_steps, (Shrinks(), suite.tiny_llama()), "Shrinks.* within"),
        (suite.check_padding, (Overlooks(), suite.tiny_llama()), "padded Overlooks.* within"),
        (suite.check_generate, (NARROW, NARROW, suite.tiny_llama()), "local=8.* writes .* not"),
        (suite.check_generate, (Clings(), DenseAttention(), suite.tiny_llama()), "second time"),
        (suite.check_cache, (Clings(), suite.tiny_llama()), "differently after a rollback"),
    ],
)
def test_suite_refuses(check: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(*arguments)


@pytest.mark.parametrize("forgotten", ["hooks", "slot", "implementation"])
def test_suite_refuses_a_trace(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def detach(attachment: Attachment) -> None:
        hooks, attachment._hooks = attachment._hooks, []
        decoder = attachment.model.get_decoder()
        detach_all(attachment)
        if forgotten == "implementation":
            decoder.set_attn_implementation("eager")
        for hook in hooks if forgotten != "hooks" else []:
            hook.remove()
        if forgotten == "slot":
            attachment.modules[0].__dict__["left"] = attachment

    detach_all = Attachment.detach
    monkeypatch.setattr(Attachment, "detach", detach)
    with pytest.raises(AssertionError, match="leaves a trace after the context"):
        suite.check_restores(NARROW, suite.tiny_llama())
