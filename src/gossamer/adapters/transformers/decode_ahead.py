"""A Llama decoder's step in one native call, where a method chooses before it sees a query.

`lead` puts `forward` over a decoder's own, which stays behind it for all else. Where a block cannot
be prepared (its method searches, or one of its modules is watched), those before it run, and then
the block is called as ever.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel

from gossamer.adapters.transformers.attention import attachment_of
from gossamer.adapters.transformers.native_llama import AheadStep, NativeLlamaLayer, decodes
from gossamer.attention.base import Meter
from gossamer.kernels.decoder_block.steps import run_steps
from gossamer.patterns import TokenPattern


def lead(decoder: Any) -> bool:
    """Put `forward` over the decoder's own, if it is a plain Llama decoder; say whether it is."""
    if type(decoder) is not LlamaModel or "forward" in decoder.__dict__:
        return False
    decoder.forward = partial(forward, decoder)
    return True


def follow(decoder: Any) -> None:
    """Let a decoder that was led go its own way again."""
    del decoder.forward


def forward(
    decoder: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Take one new token a sequence natively through as many blocks at a time as can be."""
    attachment = attachment_of(decoder.layers[0].self_attn)
    given = input_ids if inputs_embeds is None else inputs_embeds
    one_each = given is not None and given.shape[1] == 1 and not torch.is_grad_enabled()
    if (
        attachment is None
        or not (one_each and attachment.chooses_ahead)
        or past_key_values is None
        or decoder.training
        or _asks_for_more(decoder.config, kwargs)
    ):
        own: Any = LlamaModel.forward
        return own(
            decoder,
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
    x = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    if position_ids is None:
        position_ids = torch.full((1, 1), past_key_values.get_seq_length(), device=x.device)
    mask = create_causal_mask(
        config=decoder.config,
        inputs_embeds=x,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
    )
    angles = decoder.rotary_emb(x, position_ids=position_ids)
    native = decodes(x, angles) and (mask is None or mask.ndim == 1)
    ahead: list[AheadStep] = []
    for layer in [*decoder.layers][: decoder.config.num_hidden_layers]:
        step = None
        if native and type(layer) is NativeLlamaLayer:
            step = layer.step_ahead(attachment, past_key_values, mask, angles, len(x))
        if step is not None:
            ahead.append(step)
            continue
        x, ahead = _run(ahead, x, angles, attachment.meter), []
        x = layer(
            x,
            attention_mask=mask,
            position_embeddings=angles,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
    x = decoder.norm(_run(ahead, x, angles, attachment.meter))
    return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)


def _asks_for_more(config: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a caller wants what transformers' own forward gives besides."""
    plain = config.return_dict and kwargs.get("return_dict") is not False
    if not plain or config.output_hidden_states or config.output_attentions:
        return True
    return any(
        value is not None and value is not False
        for name, value in kwargs.items()
        if name != "return_dict"
    )


def _run(
    ahead: list[AheadStep], x: Tensor, angles: tuple[Tensor, Tensor], meter: Meter | None
) -> Tensor:
    """Return what leaves the last of some blocks; x where there is none."""
    if not ahead:
        return x
    x, scored = run_steps([step.native for step in ahead], x, *angles)
    if meter is not None:
        for step, keys in zip(ahead, scored, strict=True):
            _count(meter, step, keys)
    return x


def _count(meter: Meter, step: AheadStep, scored: int) -> None:
    """Let a meter know of a block's token, whose vote, if there was one, scored so many keys."""
    block, key, selection = step.native.block, step.native.key, step.selection
    queries = key.shape[0], block.heads, 1, block.head
    if selection.vote is not None:
        meter.add_vote(selection.vote, scored, queries, key)
        return
    pattern = selection.pattern
    if isinstance(pattern, TokenPattern):  # made for an earlier token
        selection = replace(selection, pattern=replace(pattern, k_len=key.shape[2]))
    meter.add(selection, queries, key)
