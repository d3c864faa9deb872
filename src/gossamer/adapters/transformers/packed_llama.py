"""Llama blocks whose packed layers decode in two native calls, attention between them."""

from typing import Any

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

from gossamer.kernels import backend
from gossamer.kernels.decoder_block import LINEARS, DecoderBlock
from gossamer.kernels.library import dispatched
from gossamer.kernels.sparse_gemv import MAX_VECTORS
from gossamer.layers import PackedLinear
from gossamer.layers.packed_storage import UNCLAMPED


class PackedLlamaLayer(LlamaDecoderLayer):
    """A Llama block that decodes natively wherever that gives what its modules would.

    That is for up to 16 sequences of one new token, in float32 on CPU, with packed layers without
    bias. Else, or when a module that would be passed over is watched, the block runs as it did.
    Made by `quicken`: the same module of another class, so that names, states and files stay.
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
        attention: Any = self.self_attn
        first, second = self.input_layernorm, self.post_attention_layernorm
        tokens = hidden_states[:, 0]
        cos, sin = (part[:, 0] for part in position_embeddings)
        query, key, value = block.before(
            tokens, first.weight.detach(), first.variance_epsilon, cos, sin
        )
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
        attended = attended.reshape(len(tokens), -1).contiguous()
        out = block.after(attended, tokens, second.weight.detach(), second.variance_epsilon)
        return out[:, None]

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle without what was taken over."""
        return {name: value for name, value in self.__dict__.items() if name != "_taken"}

    def _decodes(self, hidden_states: Tensor, angles: tuple[Tensor, Tensor] | None) -> bool:
        """Whether these tokens can go through a native block."""
        return (
            angles is not None
            and hidden_states.shape[1] == 1
            and 1 <= len(hidden_states) <= MAX_VECTORS
            and hidden_states.dtype is torch.float32
            and angles[0].dtype is torch.float32
            and hidden_states.is_cpu
            and not (torch.is_grad_enabled() and hidden_states.requires_grad)
            and not self.training
            and not dispatched()
        )

    def _block(self) -> DecoderBlock | None:
        """The native block for the modules as they are now; None where a module must be called."""
        attention, mlp = self.self_attn, self.mlp
        inner = [*attention.children(), *mlp.children()]
        taken = self.__dict__.get("_taken")
        if taken is None or taken.inner != inner or not taken.current():
            taken = self.__dict__["_taken"] = _Taken(inner, _decoder_block(self))
        passed = (attention, mlp, self.input_layernorm, self.post_attention_layernorm, *inner)
        return None if any(map(_watched, passed)) else taken.block


def _watched(module: nn.Module) -> bool:
    """Whether someone wants this module called: by a hook, or with a forward of its own."""
    watchers = module._forward_hooks or module._forward_pre_hooks
    return bool(watchers) or "forward" in module.__dict__


class _Taken:
    """A block's native twin, and the modules and weights that it was taken from."""

    def __init__(self, inner: list[nn.Module], block: DecoderBlock | None) -> None:
        self.inner, self.block = inner, block
        packed = [module for module in inner if isinstance(module, PackedLinear)]
        self.weights = [(module, module.weight) for module in packed]

    def current(self) -> bool:
        """Whether the modules still hold the same weights."""
        return all(module.weight is weight for module, weight in self.weights)


def _decoder_block(layer: PackedLlamaLayer) -> DecoderBlock | None:
    """Take over the weights of a block, if it has nothing but what `DecoderBlock` computes."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    weights = [
        linear.weight
        for linear in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        if isinstance(linear, PackedLinear) and linear.bias is None and linear.clamp == UNCLAMPED
    ]
    plain = (
        backend.native() is not None
        and len(weights) == len(LINEARS)
        and (type(attention), type(mlp)) == (LlamaAttention, LlamaMLP)
        and type(layer.input_layernorm) is type(layer.post_attention_layernorm) is LlamaRMSNorm
        and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
    )
    if not plain:
        return None
    return DecoderBlock(dict(zip(LINEARS, weights, strict=True)), attention.head_dim)


def quicken(model: Any) -> Any:
    """Let the Llama blocks of a model with packed layers decode natively; return the model.

    Other blocks, and blocks of other models, stay as they are.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Changed in place: its blocks change class.
    """
    for module in model.modules():
        if type(module) is LlamaDecoderLayer:
            module.__class__ = PackedLlamaLayer
    return model
