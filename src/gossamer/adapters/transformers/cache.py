"""The cache of an attached model: gossamer's key-value memory behind transformers' interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from gossamer.attention.caches import KeyValueStore

if TYPE_CHECKING:
    from gossamer.adapters.transformers.attachment import Attachment
    from gossamer.adapters.transformers.native_llama import AheadStep


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
        self.ahead: AheadStep | None = None  # the last token's, which the next may follow
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

    def extend(self) -> tuple[Tensor, Tensor]:
        """Make room for one token, which the caller writes; return views of all, it included."""
        self.keys, self.values = self.store.extend(1)
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
        self.state.memory = self.ahead = None
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
        """Return the bytes of the tokens stored, and of what a method keeps of them besides."""
        layers = _own_layers(self)
        return sum(one.store.nbytes() + getattr(one.state.memory, "nbytes", 0) for one in layers)


def _own_layers(cache: Cache) -> list[KVLayer]:
    layers = [layer for layer in cache.layers if isinstance(layer, KVLayer)]
    if len(layers) != len(cache.layers):
        raise ValueError(
            "expected a cache whose every layer is gossamer's, got sliding-window layers that "
            "cannot roll back or fork; try a model with full attention in every layer"
        )
    return layers
