"""The attention and mask functions that transformers calls, and the models that they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

if TYPE_CHECKING:
    from gossamer.adapters.transformers.attachment import Attachment

SLOT = "_gossamer_attachment"  # attribute of the attention modules of an attached model


def attachment_of(module: nn.Module) -> Attachment | None:
    """Return the attachment that an attention module attends with at present."""
    return getattr(module, SLOT, None)


def attention_modules(model: Any) -> list[Any]:
    """Return the decoder's attention modules, in layer order.

    Raises
    ------
    ValueError
        If one of them, or the model, is nothing that gossamer can attend for.
    """
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


def mask(
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


def attend(
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
    """Attend as transformers asks: [B, H, q_len, D] in, [B, q_len, H, D] out."""
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
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    state = attachment.new_state(index) if layer is None else layer.state
    attachment.prepare(state, scale, attention_mask)
    if layer is None:  # no cache: this call's keys are all there is
        with torch.no_grad():
            key, value = attachment.method.update_cache(key, value, state)
    return attachment.method(query, key, value, state).transpose(1, 2), None
