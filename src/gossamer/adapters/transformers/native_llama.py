"""Llama blocks that decode natively: in two calls, between which a method chooses, or ahead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
)

from gossamer.adapters.transformers.attention import attachment_of
from gossamer.attention.base import AttentionMethod, LayerState, Selection
from gossamer.kernels import backend
from gossamer.kernels.decoder_block import LINEARS, DecoderBlock
from gossamer.kernels.decoder_block.steps import BlockStep, block_step
from gossamer.kernels.lossless_gemv import LosslessWeight
from gossamer.kernels.packed import PackedWeight
from gossamer.layers import LosslessLinear, PackedLinear
from gossamer.layers.lossless_linear import is_decoding
from gossamer.layers.packed_storage import UNCLAMPED
from gossamer.patterns import TokenPattern

if TYPE_CHECKING:
    from gossamer.adapters.transformers.attachment import Attachment


@dataclass(frozen=True, eq=False)
class AheadStep:
    """A block's next token, and what the method chose for it before its query is known."""

    native: BlockStep
    selection: Selection
    key_start: Tensor | None
    made_of: tuple  # the rest; compared by identity or value


class NativeLlamaLayer(LlamaDecoderLayer):
    """A Llama block that decodes natively wherever that gives what its modules would.

    That is for up to 16 sequences of one new token, in float32 on CPU, with packed or lossless
    layers without bias. Else, or when a module that would be passed over is watched, the block
    runs as it did. Made by `quicken`: the same module of another class, so that names, states and
    files stay.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        parts: dict[str, Any] = self._modules  # whose attributes cost a lookup each
        attention = parts["self_attn"]
        attachment = attachment_of(attention)
        if attachment is not None:
            attachment.hear_positions(attention, position_embeddings)
        block = self._block() if self._decodes(hidden_states, position_embeddings) else None
        if block is None or position_embeddings is None:
            return super().forward(
                hidden_states,
                attention_mask,
                position_ids,
                past_key_values,
                use_cache,
                position_embeddings,
                **kwargs,
            )
        first, second = parts["input_layernorm"], parts["post_attention_layernorm"]
        before = hidden_states, first.weight, first.variance_epsilon, *position_embeddings
        after = hidden_states, second.weight, second.variance_epsilon
        layer = None
        if attachment is not None and (attention_mask is None or attention_mask.ndim == 1):
            batch = hidden_states.shape[0]
            layer = attachment.step_layer(past_key_values, attention.layer_idx, batch)
        if attachment is not None and layer is not None:
            state = attachment.prepare(layer.state, attention.scaling, attention_mask)
            into, rotates = layer.extend(), attachment.method.rotated_keys
            query, key, value = block.before(*before, into=into, rotate_keys=rotates)
            return _attend(block, attachment.method, query, key, value, state, after)
        query, key, value = block.before(*before)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, attention.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention.config._attn_implementation, eager_attention_forward
        )
        attended, _ = attend(
            attention,
            query,
            key,
            value,
            attention_mask,
            dropout=0.0,
            scaling=attention.scaling,
            position_ids=position_ids,
            use_cache=use_cache,
            **kwargs,
        )
        return block.after(_flat(attended), *after)

    def step_ahead(
        self,
        attachment: Attachment,
        cache: Any,
        mask: Tensor | None,
        angles: tuple[Tensor, Tensor],
        batch: int,
    ) -> AheadStep | None:
        """Prepare the next token of each sequence; None where this block has to be called."""
        parts: dict[str, Any] = self._modules
        attention = parts["self_attn"]
        block = None if _watched(self) else self._block()
        if block is None or attachment_of(attention) is not attachment:
            return None
        layer = attachment.step_layer(cache, attention.layer_idx, batch)
        if layer is None or layer.keys is None:
            return None
        attachment.hear_positions(attention, angles)
        state = attachment.prepare(layer.state, attention.scaling, mask)
        chosen = attachment.method.select_ahead(layer.keys, state)
        pattern = None if chosen is None else chosen.pattern
        if chosen is None or not (pattern is None or isinstance(pattern, TokenPattern)):
            return None
        first, second = parts["input_layernorm"], parts["post_attention_layernorm"]
        norms = first.weight, second.weight
        eps = first.variance_epsilon, second.variance_epsilon
        made_of = (block, chosen, norms[0].data_ptr(), norms[1].data_ptr(), eps, state.scale)
        key, value = layer.extend()
        last = layer.ahead
        same = last is not None and last.key_start is mask and last.made_of == made_of
        if last is not None and same and last.native.follow(key, value):
            return last
        if pattern is not None and pattern.k_len != key.shape[2]:
            pattern = replace(pattern, k_len=key.shape[2])
        native = block_step(
            block,
            key,
            value,
            norms,
            eps,
            scale=state.scale,
            rotate_keys=attachment.method.rotated_keys,
            pattern=pattern,
            window=chosen.window,
            rotary=chosen.rotary,
            key_start=mask,
            vote=chosen.vote,
        )
        layer.ahead = AheadStep(native, chosen, mask, made_of)
        return layer.ahead

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without what was taken over."""
        return {name: value for name, value in self.__dict__.items() if name != "_taken"}

    def _decodes(self, hidden_states: Tensor, angles: tuple[Tensor, Tensor] | None) -> bool:
        """Whether these tokens can go through a native block."""
        return (
            angles is not None
            and decodes(hidden_states, angles)
            and not self.training
            and not (torch.is_grad_enabled() and self._trains())
        )

    def _trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def _block(self) -> DecoderBlock | None:
        """The native block for the modules as they are now; None where a module must be called."""
        parts: dict[str, Any] = self._modules
        modules = [*parts.values()]
        modules += parts["self_attn"]._modules.values()
        modules += parts["mlp"]._modules.values()
        taken = self.__dict__.get("_taken")
        if taken is None or taken.modules != modules or not taken.current():
            taken = self.__dict__["_taken"] = _Taken(self, modules)
        return None if any(map(_watched, modules)) else taken.block


def decodes(x: Tensor, angles: tuple[Tensor, Tensor]) -> bool:
    """Whether there is one token a sequence, in a form that native blocks take."""
    return x.shape[1] == 1 and angles[0].dtype is torch.float32 and is_decoding(x)


def _watched(module: nn.Module) -> bool:
    """Whether someone may want a module called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _attend(
    block: DecoderBlock,
    method: AttentionMethod,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: LayerState,
    after: tuple[Tensor, Tensor, float],
) -> Tensor:
    """Return what a block puts out for one new token a sequence [n, 1, width]."""
    chosen = method.choose(query, key, value, state)
    pattern = chosen.pattern
    if chosen.resumed is not None or not (pattern is None or isinstance(pattern, TokenPattern)):
        attended = method.attend(query, key, value, chosen, state)
        return block.after(_flat(attended.transpose(1, 2)), *after)
    return block.attend(
        query if chosen.query is None else chosen.query,
        key,
        value,
        *after,
        scale=state.scale,
        pattern=pattern,
        window=chosen.window,
        rotary=chosen.rotary,
        key_start=state.key_start,
    )


def _flat(attended: Tensor) -> Tensor:
    """What attention returned, [n, 1, heads, head], as the block's [n, heads * head]."""
    return attended.reshape(len(attended), -1).contiguous()


class _Taken:
    """A block's native twin, and the modules and weights that it was taken from."""

    def __init__(self, layer: NativeLlamaLayer, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.packed = [part for part in modules if isinstance(part, PackedLinear)]
        self.dense = [part for part in modules if isinstance(part, LosslessLinear)]
        self.marks = self._marks()
        self.weights = [part.weight for part in (*self.packed, *self.dense)]  # keep their ids
        self.block = _decoder_block(layer)

    def current(self) -> bool:
        """Whether the layers still hold the same weights."""
        return self._marks() == self.marks

    def _marks(self) -> list[tuple]:
        """Return what changes whenever a layer's product does."""
        packed = [(id(part.weight), part.bias is None, part.clamp) for part in self.packed]
        return packed + [part.mark() for part in self.dense]


Linear = PackedLinear | LosslessLinear


def _weight(linear: Linear) -> PackedWeight | LosslessWeight | None:
    """Return a weight that native kernels read; None where the layer does more than multiply."""
    if linear.bias is not None:
        return None
    if isinstance(linear, LosslessLinear):
        return linear.lossless_weight()
    return linear.weight if linear.clamp == UNCLAMPED else None


def _decoder_block(layer: NativeLlamaLayer) -> DecoderBlock | None:
    """Take over the weights of a block, if it has nothing but what `DecoderBlock` computes."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    linears = *projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    weights = [_weight(linear) for linear in linears if isinstance(linear, Linear)]
    held = {
        name: weight for name, weight in zip(LINEARS, weights, strict=False) if weight is not None
    }
    plain = (
        len(held) == len(LINEARS)
        and (type(attention), type(mlp)) == (LlamaAttention, LlamaMLP)
        and type(layer.input_layernorm) is type(layer.post_attention_layernorm) is LlamaRMSNorm
        and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
    )
    return DecoderBlock(held, attention.head_dim) if plain else None


def quicken(model: Any) -> list[nn.Module]:
    """Let the Llama blocks of a model decode natively, where their linear layers can.

    Other blocks, and blocks of other models, stay as they are.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place: its blocks change class.

    Returns
    -------
    list of torch.nn.Module
        What has changed, for `restore`.
    """
    return _changed(model.modules(), LlamaDecoderLayer, NativeLlamaLayer)


def quicken_dense(model: Any) -> list[nn.Module]:
    """Let the dense float32 layers of a model on the CPU decode from a lossless form, too.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place: linear layers of its decoder and head, and Llama blocks, change class.

    Returns
    -------
    list of torch.nn.Module
        What has changed, for `restore`.
    """
    if backend.native() is None:
        return []
    modules = [*model.get_decoder().modules(), model.get_output_embeddings()]
    linears = [
        module
        for module in modules
        if type(module) is nn.Linear
        and module.weight.is_cpu
        and module.weight.dtype is torch.float32
    ]
    return _changed(linears, nn.Linear, LosslessLinear) + quicken(model)


def blocks_that_tell(model: Any) -> set[nn.Module]:
    """Return the attention modules whose block says itself which positions it encodes."""
    return {part.self_attn for part in model.modules() if isinstance(part, NativeLlamaLayer)}


def restore(modules: list[nn.Module]) -> None:
    """Give modules back the class that they had."""
    for module in modules:
        module.__dict__.pop("_taken", None)
        (module.__class__,) = type(module).__bases__


def _changed(modules: Iterable[nn.Module], old: type, new: type) -> list[nn.Module]:
    found = [module for module in modules if type(module) is old]
    for module in found:
        module.__class__ = new
    return found
