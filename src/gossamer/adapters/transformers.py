"""Gossamer attention inside transformers models: attention and mask functions, and the cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.attention.base import AttentionMethod, LayerState, Meter
from gossamer.attention.caches import KeyValueStore

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import causal_mask_function, sdpa_mask
except ImportError as missing:
    raise ImportError(
        "gossamer attention for language models needs transformers: pip install gossamer[llm]"
    ) from missing

NAME = "gossamer"
SLOT = "_gossamer_attachment"  # attribute of the attention modules of an attached model


class KVLayer(CacheLayerMixin):
    """One layer of a transformers cache on a `KeyValueStore`, with its method's memory."""

    is_croppable = True
    is_sliding = False

    def __init__(self, attachment: Attachment, index: int) -> None:
        super().__init__()
        self.attachment = attachment
        self.state = attachment.new_state(index)
        self.rotated_keys = attachment.method.rotated_keys
        self.store = KeyValueStore(attachment.reserve)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the store allocates when it is first written."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store this call's tokens; return views of all of them."""
        attachment = self.attachment
        if not attachment.attached:
            raise ValueError(
                "the cache belongs to a method that is no longer attached to the model; use it "
                "inside the context, or start with past_key_values=None"
            )
        self.state.rotary = attachment.rotary_of(self.state.layer)
        with torch.no_grad():  # else the buffer would hold the graph of every step
            stored = attachment.method.update_cache(key_states, value_states, self.state)
            self.keys, self.values = self.store.append(*stored)
        attachment.updated[self.state.layer] = self
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.store.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.store.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.store = KeyValueStore(self.attachment.reserve)  # the next batch may differ in size
        self._refresh()

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"expected a negative number to remove, got {tokens_to_remove}")
        self.rollback(max(0, self.store.length + tokens_to_remove))

    def rollback(self, mark: int) -> None:
        """Forget every token after `mark`, and what the method remembered of them."""
        self.store.rollback(mark)
        self._refresh()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.store.select(indices)
        self._refresh()

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.store.length:
            rows = torch.arange(self.store.view()[0].shape[0])
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def fork(self) -> KVLayer:
        """Return a layer with the same tokens that grows apart from here."""
        branch = KVLayer(self.attachment, self.state.layer)
        branch.store = self.store.fork()
        branch._refresh()
        return branch

    def __deepcopy__(self, memo: dict[int, Any]) -> KVLayer:
        return self.fork()  # how transformers users branch a prefix; the model is not copied

    def _refresh(self) -> None:
        self.state.memory = None
        self.keys, self.values = self.store.view() if self.store.length else (None, None)


class KVCache(Cache):
    """A cache for an attached model: `mark`, `rollback` and `fork` on top of transformers' own.

    Sliding-window layers, where a model has them, stay transformers' own and do not fork.

    Parameters
    ----------
    attachment : Attachment
    """

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(layers=DynamicCache(config=attachment.model.config).layers)
        attachment.adopt(self)

    def mark(self) -> int:
        """Return a point to roll back to."""
        return self.get_seq_length()

    def rollback(self, mark: int) -> None:
        """Forget every token after `mark`."""
        for layer in _own_layers(self):
            layer.rollback(mark)

    def fork(self) -> KVCache:
        """Return a cache with the same tokens; nothing is copied until both have grown."""
        branch = KVCache.__new__(KVCache)
        Cache.__init__(branch, layers=[layer.fork() for layer in _own_layers(self)])
        return branch

    def nbytes(self) -> int:
        """Return the bytes of the tokens stored."""
        return sum(layer.store.nbytes() for layer in _own_layers(self))


def _own_layers(cache: Cache) -> list[KVLayer]:
    layers = [layer for layer in cache.layers if isinstance(layer, KVLayer)]
    if len(layers) != len(cache.layers):
        raise ValueError(
            "expected a cache whose every layer is gossamer's, got sliding-window layers that "
            "cannot roll back or fork; try a model with full attention in every layer"
        )
    return layers


@dataclass
class Attachment:
    """A model that attends with a method; a context manager, or `detach()` by hand.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    method : AttentionMethod

    Raises
    ------
    ValueError
        If the model has no attention layout that gossamer knows.
    """

    model: Any
    method: AttentionMethod
    meter: Meter | None = None
    modules: list[nn.Module] = field(init=False, repr=False)
    reserve: int = field(init=False)
    updated: dict[int, KVLayer] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.method, AttentionMethod):
            raise TypeError(
                f"expected an attention method, got {type(self.method).__name__}; "
                "try gossamer.attention.DenseAttention()"
            )
        self.modules = _attention_modules(self.model)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 0
        # CPU pages that are never written cost nothing; CUDA memory does.
        self.reserve = limit if next(self.model.parameters()).device.type == "cpu" else 256
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._embeddings: tuple[Tensor, Tensor] | None = None
        self._halves: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._tables: tuple[Tensor, Tensor] | None = None
        self._hooks: list[Any] = []
        self._before: tuple[str, Attachment | None] | None = None

    @property
    def attached(self) -> bool:
        """Whether the model has the method, alone or under one attached later."""
        return self._before is not None

    def __enter__(self) -> Attachment:
        if self.attached:
            return self
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, _mask)
        decoder = self.model.get_decoder()  # not the model: its vision tower attends as before
        self._before = (decoder.config._attn_implementation, _attachment_of(self.modules[0]))
        decoder.set_attn_implementation(NAME)
        for module in self.modules:
            setattr(module, SLOT, self)
        self._hooks = [decoder.register_forward_pre_hook(self._enter_forward, with_kwargs=True)]
        if not self.method.rotated_keys:
            self._hooks += [
                module.register_forward_pre_hook(self._keep_rotary, with_kwargs=True)
                for module in self.modules
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
        while (latest := _attachment_of(self.modules[0])) is not None and latest is not self:
            latest.detach()
        implementation, earlier = self._before
        self._before = None
        for hook in self._hooks:
            hook.remove()
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
                    layer.attachment, layer.state = self, self.new_state(index)
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

    def rotary_of(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the position encoding of this call's tokens, halves only."""
        return self._rotary.get(layer)

    def _enter_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the decoder a gossamer cache before its forward."""
        if _attachment_of(self.modules[0]) is not self:  # another method is attached on top
            return args, kwargs
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

    def _keep_rotary(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the position encoding that an attention module is about to apply."""
        embeddings = kwargs.get("position_embeddings")
        if embeddings is None:
            return
        cosine, sine = embeddings
        dim = module.head_dim
        if cosine.shape[-1] != dim:
            raise ValueError(
                f"expected rotary encoding over the whole head dim {dim}, got "
                f"{cosine.shape[-1]}; try a method that keeps encoded keys"
            )
        if embeddings is not self._embeddings:  # layers mostly share them
            half = dim // 2
            self._embeddings = embeddings
            self._halves = (cosine[..., :half].float(), sine[..., :half].float())
        self._rotary[module.layer_idx] = self._halves

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


def _attachment_of(module: nn.Module) -> Attachment | None:
    return getattr(module, SLOT, None)


def _attention_modules(model: Any) -> list[Any]:
    """The decoder's attention modules, in layer order."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"expected a transformers model, got {type(model).__name__}; load one with "
            "gossamer.models.load or AutoModelForCausalLM"
        )
    wanted = ("layer_idx", "num_key_value_groups", "scaling")
    modules: list[Any] = [
        part for part in model.modules() if all(hasattr(part, name) for name in wanted)
    ]
    if not modules or not getattr(model, "_supports_attention_backend", False):
        raise ValueError(
            f"{type(model).__name__} has no attention layout that gossamer knows (modules with "
            f"{', '.join(wanted)} behind transformers' attention interface)"
        )
    for part in modules:
        if not getattr(part, "is_causal", True):
            raise ValueError(f"expected causal attention, got {type(part).__name__} without it")
        _refuse_terms(
            softcap=getattr(part, "attn_logit_softcapping", None),
            s_aux=getattr(part, "sinks", None),
        )
    if all(DynamicCache(config=model.config).is_sliding):
        raise ValueError(
            f"every layer of {type(model).__name__} has a sliding window, which stays the model's "
            "own; try a model with full attention, or sliding_window=None in its configuration"
        )
    return sorted(modules, key=lambda part: part.layer_idx)


def _refuse_terms(softcap: float | None, s_aux: Tensor | None) -> None:
    if softcap is not None:
        raise ValueError(f"expected attention without logit soft-capping, got softcap {softcap}")
    if s_aux is not None:
        raise ValueError("expected a softmax over keys alone, got learned attention sinks (s_aux)")


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **options: Any,
) -> Tensor | None:
    """Return the first real key of each sequence [B], or None without padding.

    Sliding-window layers keep transformers' own mask; nothing here is q_length x kv_length.
    """
    if local_size is not None:
        return sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask,
            local_size, **options,
        )  # fmt: skip
    if mask_function is not causal_mask_function:
        raise ValueError(
            "expected plain causal attention, got a custom mask or packed sequences; try one "
            "sequence a batch row with a 2-D attention_mask"
        )
    if attention_mask is None:
        return None
    real = attention_mask[:, :kv_length].bool()
    start = real.shape[1] - real.sum(1)
    suffix = torch.arange(real.shape[1], device=real.device) >= start[:, None]
    if not torch.equal(real, suffix):
        raise ValueError("expected padding on the left only; try tokenizer.padding_side = 'left'")
    return None if not bool(start.any()) else start


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function: [B, H, q_len, D] in, [B, q_len, H, D] out."""
    _refuse_terms(softcap, s_aux)
    if sliding_window is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    if attention_mask is not None and attention_mask.ndim == 4:
        raise ValueError("expected a 2-D attention_mask (padding), got a 4-D one")
    attachment: Attachment = getattr(module, SLOT)
    index = module.layer_idx
    layer = attachment.updated.pop(index, None)
    if layer is None:  # no cache: this call's keys are all there is
        state = attachment.new_state(index)
        state.rotary = attachment.rotary_of(index)
        key, value = attachment.method.update_cache(key, value, state)
    else:
        state = layer.state
    state.scale = query.shape[3] ** -0.5 if scaling is None else scaling
    state.key_start = attention_mask
    state.meter = attachment.meter
    return attachment.method(query, key, value, state).transpose(1, 2), None
