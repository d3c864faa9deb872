"""Softmax attention inside sets of tokens: gather, attend and scatter in one pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.set_attention import reference
from gossamer.kernels.validation import MAX_DIM, check_scale, unit_stride
from gossamer.patterns import TokenSets

HALVES = (torch.bfloat16, torch.float16)


def set_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sets: TokenSets,
    *,
    scale: float | None = None,
    impl: backend.Impl = "auto",
) -> Tensor:
    """Let every token attend to the tokens of its own set.

    Each token is read and written once; slots that repeat a token compute nothing. The gradient is
    differentiable once. While a model is exported the reference runs, in standard operators.

    Parameters
    ----------
    query, key, value : Tensor [heads, tokens, D]
        Any strides; a [tokens, heads, D] projection seen through ``transpose(0, 1)`` is not copied.
        float32 for "cpu"; bfloat16 and float16, too, for the others; float64 for the reference.
    sets : TokenSets
        Of as many tokens. Its content is trusted; `TokenSets.validate` checks it.
    scale : float, optional
        Default 1 / sqrt(D).
    impl : {"auto", "reference", "cpu", "triton"}

    Returns
    -------
    Tensor [heads, tokens, D]
        Laid out in memory as [tokens, heads, D].

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit.
    BackendError
        If `impl` names an implementation that cannot run here.

    Examples
    --------
    >>> q, k, v = torch.randn(3, 2, 5, 8)
    >>> sets = TokenSets.from_lists([[0, 2, 4], [1, 3]], size=3)
    >>> alone = set_attention(q[:, [1, 3]], k[:, [1, 3]], v[:, [1, 3]],
    ...                       TokenSets.from_lists([[0, 1]], size=2))
    >>> torch.allclose(set_attention(q, k, v, sets)[:, [1, 3]], alone, atol=1e-6)
    True
    """
    _check(query, key, value, sets)
    scale = check_scale(scale, query.shape[2])
    if torch.compiler.is_exporting():
        return reference.attend(query, key, value, sets.indices, sets.repeated, scale)
    parts = (unit_stride(part) for part in (query, key, value))
    return torch.ops.gossamer.set_attention(
        *parts, sets.indices, sets.repeated, scale, _choose(impl, query)
    )


def _choose(impl: str, query: Tensor) -> str:
    if query.dtype == torch.float32 or (query.dtype in HALVES and impl == "triton"):
        return backend.choose(impl, query.device)
    if query.dtype == torch.float64 and impl == "triton":
        raise TypeError("expected float32 or less for impl='triton', got float64; try impl='auto'")
    if impl == "cpu":
        raise TypeError(f"expected float32 for impl='cpu', got {query.dtype}; try impl='auto'")
    chosen = backend.choose(impl, query.device)
    return "triton" if chosen == "triton" and query.dtype in HALVES else "reference"


def _check(query: Tensor, key: Tensor, value: Tensor, sets: TokenSets) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 3 or tensor.shape[1] != sets.tokens:
            raise ValueError(
                f"expected {name} to be [heads, {sets.tokens} tokens, dim], got "
                f"{list(tensor.shape)}"
            )
        if tensor.shape != query.shape or tensor.dtype != query.dtype:
            raise ValueError(
                f"expected one shape and dtype, got query {query.dtype} {list(query.shape)} and "
                f"{name} {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.device != sets.indices.device:
            raise ValueError(
                f"expected one device, got {name} on {tensor.device}, sets on {sets.indices.device}"
            )
    if query.dtype not in (torch.float32, torch.float64, *HALVES):
        raise TypeError(f"expected a floating-point query, got {query.dtype}; try .float()")
    if not 1 <= query.shape[2] <= MAX_DIM:
        raise ValueError(f"expected a head dim in 1..{MAX_DIM}, got {query.shape[2]}")


def _by_token(like: Tensor) -> Tensor:
    heads, tokens, dim = like.shape
    return like.new_empty(tokens, heads, dim).transpose(0, 1)


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    repeated: Tensor,
    scale: float,
    impl: str,
) -> Tensor:
    output = _by_token(query)
    parts = query, key, value, indices.contiguous(), repeated.contiguous()
    if impl == "reference" or not query.numel():
        return output.copy_(reference.attend(*parts, scale))
    if impl == "triton":
        from gossamer.kernels.set_attention import triton

        triton.attend(*parts, scale, output)
        return output
    backend.launch("set_attention", *parts, scale, output, torch.get_num_threads())
    return output


def _run_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    repeated: Tensor,
    scale: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _by_token(query), _by_token(query), _by_token(query)
    parts = unit_stride(grad), query, key, value, indices.contiguous(), repeated.contiguous()
    if impl == "reference" or not query.numel():
        found = reference.attend_backward(*parts, scale)
        return grads[0].copy_(found[0]), grads[1].copy_(found[1]), grads[2].copy_(found[2])
    if impl == "triton":
        from gossamer.kernels.set_attention import triton

        triton.attend_backward(*parts, scale, *grads)
        return grads
    backend.launch("set_attention_backward", *parts, scale, *grads, torch.get_num_threads())
    return grads


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.scale, ctx.impl = inputs[5:]


@once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.gossamer.set_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.impl)
    return *grads, None, None, None, None


register(
    "set_attention(Tensor query, Tensor key, Tensor value, Tensor indices, Tensor repeated, "
    "float scale, str impl) -> Tensor",
    _run,
    lambda query, *rest: _by_token(query),
)
register(
    "set_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor indices, "
    "Tensor repeated, float scale, str impl) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda grad, query, *rest: (_by_token(query), _by_token(query), _by_token(query)),
)
torch.library.register_autograd("gossamer::set_attention", _backward, setup_context=_setup)
