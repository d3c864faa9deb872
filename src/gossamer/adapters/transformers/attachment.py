"""A method attached to a model: what is patched, kept for each forward, and given back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer

from gossamer.adapters.transformers import decode_ahead
from gossamer.adapters.transformers.attention import (
    SLOT,
    attachment_of,
    attend,
    attention_modules,
    mask,
)
from gossamer.adapters.transformers.cache import KVCache, KVLayer
from gossamer.adapters.transformers.native_llama import (
    blocks_that_tell,
    quicken_dense,
    restore,
)
from gossamer.attention.base import AttentionMethod, LayerState, Meter

NAME = "gossamer"


@dataclass
class Attachment:
    """A model that attends with a method; a context manager, or `detach()` by hand.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    method : AttentionMethod
    lossless : bool, default=True
        Whether float32 linear layers on the CPU decode from a second copy of their weights, in as
        few bits as give each number back; Llama blocks then decode natively.

    Raises
    ------
    ValueError
        If the model has no attention layout that gossamer knows.
    """

    model: Any
    method: AttentionMethod
    lossless: bool = True
    meter: Meter | None = None
    modules: list[nn.Module] = field(init=False, repr=False)
    reserve: int = field(init=False)
    updated: dict[int, KVLayer] = field(init=False, default_factory=dict, repr=False)
    chooses_ahead: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.method, AttentionMethod):
            raise TypeError(
                f"expected an attention method, got {type(self.method).__name__}; "
                "try gossamer.attention.DenseAttention()"
            )
        self.modules = attention_modules(self.model)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 0
        # CPU pages that are never written cost nothing; CUDA memory does.
        self.reserve = limit if next(self.model.parameters()).device.type == "cpu" else 256
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._embeddings: tuple[Tensor, Tensor] | None = None
        self._halves: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._tables: tuple[Tensor, Tensor] | None = None
        self._steers = False  # the forward that runs now
        kind = type(self.method)
        self._only_selects = all(
            getattr(kind, name) is getattr(AttentionMethod, name)
            for name in ("__call__", "choose", "attend", "update_cache")
        )
        self.chooses_ahead = self._only_selects and _defined_with(kind, "select_ahead", "select")
        self._hooks: list[Any] = []
        self._quickened: list[nn.Module] = []
        self._leads = False
        self._before: tuple[str, Attachment | None] | None = None

    @property
    def attached(self) -> bool:
        """Whether the model has the method, alone or under one attached later."""
        return self._before is not None

    def __enter__(self) -> Attachment:
        if self.attached:
            return self
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, mask)
        decoder = self.model.get_decoder()  # not the model: its vision tower attends as before
        self._before = (decoder.config._attn_implementation, attachment_of(self.modules[0]))
        decoder.set_attn_implementation(NAME)
        for module in self.modules:
            setattr(module, SLOT, self)
        self._hooks = [decoder.register_forward_pre_hook(self._enter_forward, with_kwargs=True)]
        if self.lossless:
            self._quickened = quicken_dense(self.model)
        self._leads = decode_ahead.lead(decoder)
        if not self.method.rotated_keys:
            told = blocks_that_tell(self.model)
            self._hooks += [
                module.register_forward_pre_hook(self._hear_positions, with_kwargs=True)
                for module in self.modules
                if module not in told
            ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Give the model back as it was, without what was attached since; twice is once."""
        if self._before is None:
            return
        while (latest := attachment_of(self.modules[0])) is not None and latest is not self:
            latest.detach()
        implementation, earlier = self._before
        self._before = None
        for hook in self._hooks:
            hook.remove()
        restore(self._quickened)
        if self._leads:
            decode_ahead.follow(self.model.get_decoder())
        for module in self.modules:
            if earlier is None:
                delattr(module, SLOT)
            else:
                setattr(module, SLOT, earlier)
        self.model.get_decoder().set_attn_implementation(implementation)
        self.updated.clear()

    def new_cache(self) -> KVCache:
        """Return an empty cache for the model, to pass as `past_key_values`."""
        return KVCache(self)

    @contextmanager
    def metered(self) -> Iterator[Meter]:
        """Count the work of every call inside; yields the `Meter`."""
        before, self.meter = self.meter, Meter()
        try:
            yield self.meter
        finally:
            self.meter = before

    def adopt(self, cache: Cache) -> None:
        """Replace the empty full-attention layers of a transformers cache by gossamer's.

        Raises
        ------
        ValueError
            If the cache holds tokens in a form this method cannot read.
        """
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = None
            cache.layers += [DynamicLayer() for _ in self.modules[len(cache.layers) :]]
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, KVLayer):
                if layer.store.length and layer.rotated_keys != self.method.rotated_keys:
                    raise ValueError(
                        f"the cache was filled by a method that stores keys differently from "
                        f"{type(self.method).__name__}; start with an empty cache"
                    )
                if layer.attachment is not self:
                    layer.attachment, layer.state, layer.ahead = self, self.new_state(index), None
                    layer.rotated_keys = self.method.rotated_keys
            elif type(layer) is DynamicLayer:
                if layer.get_seq_length():
                    raise ValueError(
                        "the cache already holds tokens that gossamer did not store; start with "
                        "an empty cache"
                    )
                cache.layers[index] = KVLayer(self, index)
            elif not getattr(layer, "is_sliding", False):
                raise ValueError(
                    f"expected a dynamic cache, got a layer of type {type(layer).__name__}; try "
                    "past_key_values=None or the attachment's new_cache()"
                )

    def new_state(self, layer: int) -> LayerState:
        """Return a fresh state for attention layer `layer`."""
        return LayerState(layer=layer, layers=len(self.modules), rank_rotary=self._rank_rotary)

    def prepare(self, state: LayerState, scale: float, key_start: Tensor | None) -> LayerState:
        """Tell a layer's state of the call that it is about to serve."""
        state.rotary = self.rotary_of(state.layer)
        state.scale, state.key_start, state.meter = scale, key_start, self.meter
        return state

    def rotary_of(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the position encoding of this call's tokens, halves only."""
        return self._rotary.get(layer)

    def _enter_forward(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the decoder a gossamer cache before its forward."""
        self._steers = False
        if attachment_of(self.modules[0]) is not self:  # another method is attached on top
            return args, kwargs
        self._steers = module.config._attn_implementation == NAME
        self.updated.clear()
        cache = kwargs.get("past_key_values")
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = self.model.config.get_text_config().use_cache
        if cache is None and use_cache and not self.model.training:
            kwargs["past_key_values"] = self.new_cache()
        elif isinstance(cache, Cache):
            self.adopt(cache)
        return args, kwargs

    def _hear_positions(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.hear_positions(module, kwargs.get("position_embeddings"))

    def hear_positions(self, module: Any, embeddings: tuple[Tensor, Tensor] | None) -> None:
        """Note the position encoding that an attention module is about to apply."""
        if embeddings is None or self.method.rotated_keys:
            return
        cosine, sine = embeddings
        if embeddings is not self._embeddings:  # layers mostly share them
            dim = module.head_dim
            if cosine.shape[-1] != dim:
                raise ValueError(
                    f"expected rotary encoding over the whole head dim {dim}, got "
                    f"{cosine.shape[-1]}; try a method that keeps encoded keys"
                )
            half = dim // 2
            self._embeddings = embeddings
            self._halves = (cosine[..., :half].float(), sine[..., :half].float())
        self._rotary[module.layer_idx] = self._halves

    def step_layer(self, cache: Any, index: int, batch: int) -> KVLayer | None:
        """Return the layer of a cache that a native block may write its next token to itself.

        None where the token has to go through the cache's and the method's own functions.
        """
        if not (self._steers and self._only_selects) or not isinstance(cache, Cache):
            return None
        layer = cache.layers[index]
        if not isinstance(layer, KVLayer) or layer.attachment is not self or cache.offloading:
            return None
        stored = layer.keys
        if stored is None or stored.dtype is not torch.float32 or stored.shape[0] != batch:
            return None
        return layer

    def _rank_rotary(self, n: int) -> tuple[Tensor, Tensor]:
        """Return float32 (cosine, sine) [n, D / 2] of positions 0 .. n - 1."""
        if self._tables is None or len(self._tables[0]) < n:
            encoder = next(
                (part for name, part in self.model.named_modules() if name.endswith("rotary_emb")),
                None,
            )
            if encoder is None:
                raise ValueError("expected a model with a rotary_emb module, found none")
            reference = next(self.model.parameters())
            positions = torch.arange(max(n, 4096), device=reference.device)[None]
            x = torch.empty(0, dtype=torch.float32, device=reference.device)
            takes_type = "layer_type" in inspect.signature(encoder.forward).parameters
            tables = encoder(x, positions, *(["full_attention"] if takes_type else []))
            half = tables[0].shape[-1] // 2
            if not torch.equal(tables[0][..., :half], tables[0][..., half:]):
                raise ValueError(
                    "expected rotary encoding of dims d and d + D / 2 together, got another "
                    "layout; try a method that keeps encoded keys"
                )
            self._tables = tuple(table[0, :, :half].contiguous() for table in tables)
        cosine, sine = self._tables
        return cosine[:n], sine[:n]


def _defined_with(kind: type, name: str, other: str) -> bool:
    """Whether a class says `name` no farther up than `other`, so that both mean the same."""
    holds = [one for one in kind.__mro__ if name in vars(one) or other in vars(one)]
    return name in vars(holds[0])
