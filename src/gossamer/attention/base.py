"""The attention family: what a method decides (`select`) and what every method shares."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer.attention.rotary import inverse
from gossamer.kernels import (
    AttentionState,
    Vote,
    block_sparse_attention,
    gathered_attention,
    rotate,
)
from gossamer.measure import causal_pairs
from gossamer.patterns import BlockPattern, StripePattern, TokenPattern, Window

if TYPE_CHECKING:
    from gossamer.adapters.transformers import Attachment


@dataclass(frozen=True, eq=False)
class Selection:
    """What a method chose for one call, and what choosing cost.

    Parameters
    ----------
    pattern : BlockPattern, TokenPattern, StripePattern or None
        None keeps every key.
    window : Window, optional
        Narrows a block pattern (or every key) to sink and local keys.
    resumed : AttentionState, optional
        Softmax over keys outside `pattern` that `select` attended to on its way.
    resumed_pairs : int
        Query-key pairs in `resumed`, over batch and heads.
    query : Tensor [B, H, q_len, D], optional
        Replaces the query (positions encoded anew).
    rotary : (cosine, sine), Tensor [n, D / 2], optional
        Rotates each gathered key by its rank.
    searched : int
        Query-key products computed to choose, over batch and heads.
    bytes_read : int
        Bytes read to choose.
    vote : Vote, optional
        Brings `pattern` and the query up to date; only `select_ahead` leaves it to be cast.
    """

    pattern: BlockPattern | TokenPattern | StripePattern | None = None
    window: Window | None = None
    resumed: AttentionState | None = None
    resumed_pairs: int = 0
    query: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    searched: int = 0
    bytes_read: int = 0
    vote: Vote | None = None

    def voted(self, scored: int, heads: int, key: Tensor) -> Selection:
        """Return the selection after its vote, which scored so many keys [B, H_kv, k_len, D]."""
        read = 0 if self.vote is None else _bytes_scored(self.vote, scored, key)
        return replace(self, searched=scored * heads, bytes_read=read, vote=None)


EVERYTHING = Selection()


@dataclass(frozen=True, eq=False)
class _Call:
    """What a meter needs of one call, counted when somebody asks."""

    selection: Selection
    shape: tuple[int, int, int, int]  # of the query
    kv_heads: int
    k_len: int
    element_size: int


class Meter:
    """Work counted over calls: all causal pairs, the pairs attended to, the cost of choosing.

    Calls are only noted while the model runs and counted when a figure is read, so that a timed
    run can be metered.
    """

    def __init__(self) -> None:
        self._causal = self._attended = self._searched = self._bytes_read = 0
        self._noted: list[_Call] = []

    def add(self, selection: Selection, queries: tuple[int, ...], key: Tensor) -> None:
        """Note one call of queries [B, H, q_len, D] against key [B, H_kv, k_len, D]."""
        batch, heads, q_len, dim = queries
        light = selection
        if any(part is not None for part in (light.resumed, light.query, light.rotary)):
            light = replace(selection, resumed=None, query=None, rotary=None)
        if isinstance(light.pattern, TokenPattern) and q_len == 1:  # a list that will be reused
            reused = light.pattern
            copied = TokenPattern(reused.indices.clone(), group=reused.group, k_len=reused.k_len)
            light = replace(light, pattern=copied)
        self._noted.append(
            _Call(light, (batch, heads, q_len, dim), key.shape[1], key.shape[2], key.element_size())
        )

    def add_vote(self, vote: Vote, scored: int, queries: tuple[int, ...], key: Tensor) -> None:
        """Count one token a sequence, whose vote on key [B, H_kv, k_len, D] scored so many."""
        (batch, heads, *_), (_, kv_heads, k_len, dim) = queries, key.shape
        pairs = vote.memory.tokens.numel()  # one list a sequence, always full
        self._causal += batch * heads * k_len
        self._attended += pairs * heads
        self._searched += scored * heads
        self._bytes_read += 2 * pairs * kv_heads * dim * key.element_size()
        self._bytes_read += _bytes_scored(vote, scored, key)

    @property
    def density(self) -> float:
        """Pairs attended to over all causal pairs, heads and layers alike."""
        self._count()
        return self._attended / max(1, self._causal)

    @property
    def selection_share(self) -> float:
        """Products computed to choose over all causal pairs."""
        self._count()
        return self._searched / max(1, self._causal)

    @property
    def bytes_read(self) -> int:
        """Bytes of keys and values read by calls with one query a sequence (decode)."""
        self._count()
        return self._bytes_read

    def _count(self) -> None:
        for call in self._noted:
            batch, heads, q_len, dim = call.shape
            causal = batch * heads * causal_pairs(q_len, call.k_len)
            pattern, window = call.selection.pattern, call.selection.window
            if isinstance(pattern, BlockPattern):
                pairs = pattern.pairs(q_len, call.k_len, window=window)
            elif pattern is not None:
                pairs = pattern.pairs(q_len)
            elif window is not None:
                pairs = batch * window.pairs(q_len, call.k_len)
            else:
                pairs = causal // heads
            lists = 1 if pattern is None else pattern.shape[1]
            self._causal += causal
            self._attended += pairs * heads // lists + call.selection.resumed_pairs
            self._searched += call.selection.searched
            if q_len == 1:
                vectors = 2 * pairs * max(call.kv_heads, lists) // lists
                self._bytes_read += vectors * dim * call.element_size + call.selection.bytes_read
        self._noted.clear()


def _bytes_scored(vote: Vote, scored: int, key: Tensor) -> int:
    size = key.element_size() if vote.memory.copy is None else vote.memory.copy.element_size()
    return scored * key.shape[1] * key.shape[3] * size


@dataclass
class LayerState:
    """What a method may know and keep about one layer of one running batch.

    Attributes
    ----------
    layer, layers : int
        Index of this layer, and how many attention layers there are.
    scale : float
        Softmax scale.
    key_start : Tensor [B] int64 or None
        First real key of each sequence (left padding).
    rotary : (cosine, sine), Tensor [B or 1, q_len, D / 2] or None
        The position encoding of this call's tokens.
    rank_rotary : callable or None
        ``rank_rotary(n)`` returns (cosine, sine) [n, D / 2] of positions 0 .. n - 1.
    value : Tensor [B, H_kv, k_len, D] or None
        The values of this call, for a method that attends while it selects.
    memory : Any
        The method's own, carried from call to call; None at first and after a rollback.
    meter : Meter or None
        Counts work when present.
    """

    layer: int = 0
    layers: int = 1
    scale: float = 1.0
    key_start: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    rank_rotary: Callable[[int], tuple[Tensor, Tensor]] | None = None
    value: Tensor | None = field(default=None, repr=False)
    memory: Any = field(default=None, repr=False)
    meter: Meter | None = None

    def without_positions(self, vectors: Tensor) -> Tensor:
        """Undo the position encoding of this call's vectors [B, H, q_len, D]."""
        cosine, sine = self.undo_positions()
        return rotate(vectors, cosine[:, None], sine[:, None])

    def undo_positions(self) -> tuple[Tensor, Tensor]:
        """Return (cosine, sine) [B or 1, q_len, D / 2] that take this call's encoding off.

        Raises
        ------
        ValueError
            If the model has no rotary encoding.
        """
        if self.rotary is None:
            raise ValueError(
                "the method keeps keys without positions and needs the model's rotary encoding, "
                "got none; try a method with rotated_keys (TokenSelect: reindex_positions=False)"
            )
        return inverse(*self.rotary)


@dataclass(frozen=True)
class AttentionMethod:
    """Base of every attention method: override `select`, and `update_cache` if need be.

    A method is a frozen set of hyper-parameters; everything that changes lives in the
    `LayerState` it is handed. Where nothing but `select` and `select_ahead` is overridden, a
    model may decode natively.
    """

    @property
    def rotated_keys(self) -> bool:
        """Whether the cache holds keys with their positions encoded."""
        return True

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        """Choose what the queries attend to.

        Parameters
        ----------
        query : Tensor [B, H, q_len, D]
        key : Tensor [B, H_kv, k_len, D]
            The whole cache, this call's keys last.
        state : LayerState

        Returns
        -------
        Selection
        """
        return EVERYTHING

    def select_ahead(self, key: Tensor, state: LayerState) -> Selection | None:
        """Choose what the next token of each sequence attends to before its query is known.

        A model then goes through block after block in one native call. None (the default) where
        the choice needs the query; a `Selection.vote` may leave a part of it to native code, which
        meets the query as keys are kept. Where all that changed since the last token has been
        written into the tensors of the last selection, that is to be returned again.

        Parameters
        ----------
        key : Tensor [B, H_kv, k_len - 1, D] float32
            The cache of the earlier tokens.
        state : LayerState
        """
        return None

    def update_cache(self, key: Tensor, value: Tensor, state: LayerState) -> tuple[Tensor, Tensor]:
        """Return the keys and values [B, H_kv, n, D] to store for this call's tokens."""
        return (key if self.rotated_keys else state.without_positions(key)), value

    def choose(self, query: Tensor, key: Tensor, value: Tensor, state: LayerState) -> Selection:
        """Select, and let the meter know, if there is one."""
        state.value = value
        selection = self.select(query, key, state)
        state.value = None
        if state.meter is not None:
            state.meter.add(selection, tuple(query.shape), key)
        return selection

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, selection: Selection, state: LayerState
    ) -> Tensor:
        """Return exact attention [B, H, q_len, D] over the selection."""
        query = query if selection.query is None else selection.query
        pattern = selection.pattern
        if isinstance(pattern, TokenPattern | StripePattern):
            return gathered_attention(
                query,
                key,
                value,
                pattern,
                scale=state.scale,
                state=selection.resumed,
                rotary=selection.rotary,
                key_start=state.key_start,
            )
        return block_sparse_attention(
            query,
            key,
            value,
            pattern,
            scale=state.scale,
            window=selection.window,
            key_start=state.key_start,
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, state: LayerState) -> Tensor:
        """Select and attend: what a model calls for one layer."""
        with torch.no_grad():
            selection = self.choose(query, key, value, state)
            output = self.attend(query, key, value, selection, state)
        if torch.is_grad_enabled() and query.requires_grad:
            return _InferenceOnly.apply(output, query)
        return output

    def attach(self, model: Any) -> Attachment:
        """Make `model` attend with this method until the returned object's `detach()`."""
        from gossamer.adapters.transformers import Attachment

        return Attachment(model, self).__enter__()


class _InferenceOnly(torch.autograd.Function):
    """Pass the output on; training through it fails loudly instead of losing gradients."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, query: Tensor) -> Tensor:
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise ValueError(
            "expected inference, got a backward pass through sparse attention; try "
            "torch.no_grad(), or detach the method to train"
        )


def use(
    model: Any, method: AttentionMethod, *, lossless: bool = True
) -> AbstractContextManager[Attachment]:
    """Let a transformers causal language model attend with `method`; restored on exit.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any decoder built on transformers' attention interface.
    method : AttentionMethod
    lossless : bool, default=True
        Whether float32 linear layers on the CPU decode from a second copy of their weights, in as
        few bits as give each number back; Llama blocks then decode natively.

    Returns
    -------
    context manager that yields the `Attachment`

    Raises
    ------
    ValueError
        If the model has no attention layout that gossamer knows.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from gossamer.attention import StreamingAttention
    >>> model = LlamaForCausalLM(LlamaConfig(
    ...     vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=4, num_key_value_heads=2)).eval()
    >>> with use(model, StreamingAttention(sink=1, local=8)):
    ...     tokens = model.generate(torch.ones(1, 12, dtype=torch.int64), max_new_tokens=2,
    ...                             do_sample=False, pad_token_id=0, eos_token_id=None)
    >>> tokens.shape
    torch.Size([1, 14])
    """
    from gossamer.adapters.transformers import Attachment

    return Attachment(model, method, lossless=lossless)
