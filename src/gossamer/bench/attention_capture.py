"""A model's own queries and keys, and how much of its attention a selection keeps of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.attention import AttentionMethod, LayerState, Selection, use
from gossamer.attention.rotary import unrotate
from gossamer.kernels import rotate
from gossamer.patterns import BlockPattern, StripePattern, TokenPattern, Window
from gossamer.scores import similarity

Pattern = BlockPattern | TokenPattern | StripePattern | Window | None
RowMask = Callable[[int, int], Tensor]
"""``mask(first, end)`` tells which keys the queries first .. end - 1 keep: bool, broadcast to
[B, H, end - first, keys], where the keys stop at the position of the last of these queries."""


@dataclass(frozen=True, eq=False)
class Captured:
    """What one layer of a model attended with.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
        With positions encoded; the last query sits at the last key.
    key, value : Tensor [B, H_kv, k_len, D]
    scale : float
        Softmax scale of the layer.
    rotary : callable
        ``rotary(n)`` returns the (cosine, sine) [n, D / 2] of positions 0 .. n - 1.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    rotary: Callable[[int], tuple[Tensor, Tensor]]

    def heads(self, chosen: Iterable[int]) -> "Captured":
        """Return some query heads [B, n, q_len, D], each with a copy of the key head it reads."""
        query_heads = list(chosen)
        ratio = self.query.shape[1] // self.key.shape[1]
        key_heads = [head // ratio for head in query_heads]
        return replace(
            self,
            query=self.query[:, query_heads],
            key=self.key[:, key_heads],
            value=self.value[:, key_heads],
        )

    def upto(self, position: int) -> "Captured":
        """Return the decode step at `position`: its one query, and the keys 0 .. position."""
        last = position - self.key.shape[2] + self.query.shape[2]
        return replace(
            self,
            query=self.query[:, :, last : last + 1],
            key=self.key[:, :, : position + 1],
            value=self.value[:, :, : position + 1],
        )

    def with_raw_keys(self) -> "Captured":
        """Return the same with keys that carry no position, as some methods store them."""
        return replace(self, key=unrotate(self.key, *self.rotary(self.key.shape[2])))

    def tiled(self, tokens: int) -> "Captured":
        """Return `tokens` keys that repeat these, every position encoded anew.

        A query for every key is repeated likewise; fewer queries move to the end.
        """
        q_len, k_len = self.query.shape[2], self.key.shape[2]
        there, here = self.rotary(k_len), self.rotary(tokens)

        def repeat(x: Tensor) -> Tensor:
            return x.repeat(1, 1, -(-tokens // k_len), 1)[:, :, :tokens].contiguous()

        query = unrotate(self.query, *(table[k_len - q_len :] for table in there))
        query = repeat(query) if q_len == k_len else query
        return replace(
            self,
            query=rotate(query, *(table[tokens - query.shape[2] :] for table in here)),
            key=rotate(repeat(unrotate(self.key, *there)), *here),
            value=repeat(self.value),
        )

    def to(self, dtype: torch.dtype) -> "Captured":
        """Return the same in another floating-point type."""
        vectors = (self.query.to(dtype), self.key.to(dtype), self.value.to(dtype))
        return replace(self, query=vectors[0], key=vectors[1], value=vectors[2])

    def state(self) -> LayerState:
        """Return a layer state for a method's `select`, past every layer that stays dense."""
        q_len, k_len = self.query.shape[2], self.key.shape[2]
        cosine, sine = (table[k_len - q_len :][None] for table in self.rotary(k_len))
        return LayerState(
            layer=1_000,
            layers=1_001,
            scale=self.scale,
            rotary=(cosine, sine),
            rank_rotary=self.rotary,
            value=self.value,
        )


class _AllCaptured(Exception):
    """Ends a forward pass of which nothing more is needed."""


@dataclass(frozen=True)
class _Recorder(AttentionMethod):
    """Dense attention that notes what some layers attend with."""

    layers: frozenset[int]
    found: dict[int, Captured] = field(default_factory=dict)

    def select(self, query: Tensor, key: Tensor, state: LayerState) -> Selection:
        if state.layer in self.layers and state.value is not None and state.rank_rotary is not None:
            vectors = (query, key, state.value)
            self.found[state.layer] = Captured(*vectors, state.scale, state.rank_rotary)
        if self.found.keys() == self.layers:
            raise _AllCaptured
        return Selection()


def capture(model: Any, input_ids: Tensor, layers: Iterable[int]) -> dict[int, Captured]:
    """Run a model densely over a prompt and return what some of its layers attended with.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    input_ids : Tensor [B, T] int64
    layers : iterable of int

    Returns
    -------
    dict of int to Captured
        By layer, ascending.

    Raises
    ------
    ValueError
        If the model has no such layer, or no attention layout that gossamer knows.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(
    ...     vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=4, num_key_value_heads=2)).eval()
    >>> capture(model, torch.ones(1, 12, dtype=torch.int64), [1])[1].key.shape
    torch.Size([1, 2, 12, 8])
    """
    recorder = _Recorder(frozenset(layers))
    with torch.no_grad(), suppress(_AllCaptured), use(model, recorder):
        model.get_decoder()(input_ids=input_ids, use_cache=False)
    if missing := recorder.layers - recorder.found.keys():
        raise ValueError(f"expected layers of the model, got {sorted(missing)}")
    return dict(sorted(recorder.found.items()))


def widened(layers: Sequence[Captured], *, key_heads: int, ratio: int) -> Captured:
    """Return one layer of a larger model's shape, made of the heads of several small layers.

    Two heads side by side make one of twice the width: its logits are sums of real logits, sinks
    and locality included, which random vectors lack.

    Parameters
    ----------
    layers : sequence of Captured
        Of one model and prompt.
    key_heads, ratio : int
        Key heads of the result, and query heads a key head.

    Returns
    -------
    Captured
        Query [B, key_heads * ratio, q_len, 2 D], key and value [B, key_heads, k_len, 2 D].
    """
    first = layers[0]
    small = first.query.shape[1] // first.key.shape[1]
    sources = [(layer, head) for layer in layers for head in range(layer.key.shape[1])]
    pairs = [
        (sources[2 * head % len(sources)], sources[(2 * head + 1) % len(sources)])
        for head in range(key_heads)
    ]

    def side_by_side(a: Tensor, b: Tensor) -> Tensor:
        """Rotate-half layout: the first halves of both, then the second halves."""
        return torch.cat(
            [half for two in zip(a.chunk(2, -1), b.chunk(2, -1), strict=True) for half in two], -1
        )

    def rotary(n: int) -> tuple[Tensor, Tensor]:
        cosine, sine = first.rotary(n)
        return torch.cat([cosine, cosine], -1), torch.cat([sine, sine], -1)

    query = [
        side_by_side(
            a.query[:, i * small + r % small], b.query[:, j * small + (r + r // small) % small]
        )
        for (a, i), (b, j) in pairs
        for r in range(ratio)
    ]
    key = [side_by_side(a.key[:, i], b.key[:, j]) for (a, i), (b, j) in pairs]
    value = [torch.cat([a.value[:, i], b.value[:, j]], -1) for (a, i), (b, j) in pairs]
    vectors = (torch.stack(query, 1), torch.stack(key, 1), torch.stack(value, 1))
    return Captured(*vectors, scale=first.scale * 0.5**0.5, rotary=rotary)


def first_tokens(tokenizer: Any, text: str, count: int) -> Tensor:
    """Return the first `count` tokens of a text, int64 [1, count].

    Raises
    ------
    ValueError
        If the text is shorter.
    """
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=count).input_ids
    if len(ids) < count:
        raise ValueError(f"expected a text of at least {count} tokens, got {len(ids)}")
    return torch.tensor([ids])


@dataclass(frozen=True)
class Kept:
    """What a selection keeps.

    Parameters
    ----------
    recall : float
        Share of the dense softmax mass, the mean over rows and heads.
    density : float
        Share of the causal pairs of the same rows.
    """

    recall: float
    density: float


def mass_recall(
    captured: Captured, masks: Mapping[str, RowMask], *, start: int = 0, rows: int = 128
) -> dict[str, Kept]:
    """Measure selections against the dense attention that they approximate.

    Goes by blocks of rows: no buffer is larger than [B, H, rows, k_len].

    Parameters
    ----------
    captured : Captured
    masks : mapping of str to RowMask
        What to measure, by name; see `row_mask`. Keys after a query never count.
    start : int
        First query measured: early ones keep nearly every key under any budget.
    rows : int
        Queries a block.

    Returns
    -------
    dict of str to Kept

    Examples
    --------
    >>> tables = lambda n: (torch.ones(n, 8), torch.zeros(n, 8))
    >>> same = torch.zeros(1, 1, 4, 16)  # every key weighs the same
    >>> layer = Captured(same, same, same, 1.0, tables)
    >>> mass_recall(layer, {"sink": row_mask(layer, Window(1, 1))}, start=3)["sink"].recall
    0.5
    """
    (batch, heads, q_len, _), k_len = captured.query.shape, captured.key.shape[2]
    shift = k_len - q_len
    mass = dict.fromkeys(masks, 0.0)
    pairs = dict.fromkeys(masks, 0)
    causal_pairs = 0
    for first in range(start, q_len, rows):
        end = min(first + rows, q_len)
        keys = captured.key[:, :, : end + shift]
        logits = similarity(
            captured.query[:, :, first:end].float(), keys.float(), scale=captured.scale
        )
        causal = torch.ones(logits.shape[2:], dtype=torch.bool, device=logits.device)
        causal = causal.tril(first + shift)
        weights = logits.masked_fill_(~causal, -torch.inf).softmax(-1)
        causal_pairs += batch * heads * int(causal.sum())
        for name, mask in masks.items():
            kept = (mask(first, end) & causal).expand_as(weights)
            kept = kept.view(torch.uint8).float()  # bool itself converts many times slower
            mass[name] += float((weights * kept).sum(-1).sum(dtype=torch.float64))
            pairs[name] += int(kept.sum(-1).sum(dtype=torch.float64))
    total = batch * heads * (q_len - start)
    return {name: Kept(mass[name] / total, pairs[name] / causal_pairs) for name in masks}


def mean_kept(measured: Iterable[Mapping[str, Kept]]) -> dict[str, Kept]:
    """Average what `mass_recall` returned for several layers or texts, name by name."""
    found = list(measured)
    return {
        name: Kept(
            fmean(kept[name].recall for kept in found), fmean(kept[name].density for kept in found)
        )
        for name in found[0]
    }


@dataclass(frozen=True)
class RecallCurve:
    """What one family of selections keeps at several settings, read between the points.

    Parameters
    ----------
    points : tuple of (float, Kept)
        Settings, and what each keeps; recall grows with density.

    Examples
    --------
    >>> curve = RecallCurve(((16, Kept(0.5, 0.1)), (64, Kept(0.9, 0.3))))
    >>> round(curve.recall_at(0.2), 3), round(curve.setting_at(0.2), 3), curve.density_at(0.95)
    (0.7, 40.0, nan)
    """

    points: tuple[tuple[float, Kept], ...]

    def recall_at(self, density: float) -> float:
        """Return the recall at a density, NaN outside the curve."""
        return self._between(density, "density", [kept.recall for _, kept in self._rising()])

    def density_at(self, recall: float) -> float:
        """Return the density that a recall takes, NaN outside the curve."""
        return self._between(recall, "recall", [kept.density for _, kept in self._rising()])

    def setting_at(self, density: float) -> float:
        """Return the setting for a density, NaN outside the curve."""
        return self._between(density, "density", [setting for setting, _ in self._rising()])

    def mean_recall(self, least: float, most: float) -> float:
        """Return the mean recall over a range of densities: area under the curve over width."""
        steps = 200
        return fmean(
            self.recall_at(least + (most - least) * step / steps) for step in range(steps + 1)
        )

    def _rising(self) -> list[tuple[float, Kept]]:
        return sorted(self.points, key=lambda point: point[1].density)

    def _between(self, x: float, axis: str, values: Sequence[float]) -> float:
        places = [getattr(kept, axis) for _, kept in self._rising()]
        return float(np.interp(x, places, values, left=np.nan, right=np.nan))


def row_mask(captured: Captured, *patterns: Pattern) -> RowMask:
    """Return the mask of the keys that any of some patterns keeps, to be read row by row.

    Parameters
    ----------
    captured : Captured
        Gives the number of heads and the lengths.
    patterns : BlockPattern, TokenPattern, StripePattern, Window or None
        None keeps every key, as in a `Selection`.

    Returns
    -------
    RowMask
    """
    (batch, heads, q_len, _), k_len = captured.query.shape, captured.key.shape[2]
    device, shift = captured.query.device, k_len - q_len
    lists = [
        None if part is None or isinstance(part, Window) else part.to_mask() for part in patterns
    ]

    def mask(first: int, end: int) -> Tensor:
        row = torch.arange(first, end, device=device)
        kept = torch.zeros(batch, heads, len(row), end + shift, dtype=torch.bool, device=device)
        for part, units in zip(patterns, lists, strict=True):
            if part is None:
                kept.fill_(True)
            elif isinstance(part, Window):
                kept |= part.to_mask(len(row), end + shift).to(device)
            elif units is not None:
                block = isinstance(part, BlockPattern)
                found = units[:, :, row // (part.block if block else part.group)]
                if block:
                    found = found.repeat_interleave(part.block, 3)
                kept |= found[..., : end + shift].repeat_interleave(heads // units.shape[1], 1)
        return kept

    return mask
