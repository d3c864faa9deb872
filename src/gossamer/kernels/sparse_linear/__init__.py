"""A linear layer whose weight stores its non-zeros only: forward, and both gradients at once."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gossamer.kernels import backend
from gossamer.kernels.features import as_images, choose, empty_dots, empty_features, readable
from gossamer.kernels.library import register
from gossamer.kernels.sparse_linear import reference
from gossamer.kernels.sparse_weight import SparseWeight


def sparse_linear(
    input: Tensor,
    weight: SparseWeight | Tensor,
    bias: Tensor | None = None,
    *,
    impl: backend.Impl = "auto",
) -> Tensor:
    """Return ``input @ weight.T + bias`` and be differentiable, at the non-zeros only.

    The gradient of the weight is that of its non-zeros: nothing of the size of the dense weight
    is ever made. The gradient is differentiable once.

    Parameters
    ----------
    input : Tensor [..., K] float32
        Features or, for three dimensions, the one before them contiguous; else it is copied.
    weight : SparseWeight or torch.sparse_csr Tensor, [M, K] float32
        A CSR tensor is checked and its indices are converted at every call, and its gradient is
        not passed on; make a SparseWeight of it once.
    bias : Tensor [M] float32, optional
    impl : {"auto", "reference", "cpu"}
        float64 runs the reference, to check gradients with.

    Returns
    -------
    Tensor [..., M]
        Laid out in memory as the input is.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit.
    BackendError
        If `impl` cannot run here.

    Examples
    --------
    >>> weight = SparseWeight.from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> sparse_linear(torch.tensor([[1.0, 10.0]]), weight, torch.tensor([0.5, 0.0])).tolist()
    [[20.5, 3.0]]
    """
    weight = _as_weight(weight)
    pattern = weight.pattern
    _check(input, weight, bias)
    columns = None, None, None
    if torch.is_grad_enabled() and input.requires_grad:
        columns = pattern.columns
    output = torch.ops.gossamer.sparse_linear(
        as_images(input),
        weight.values,
        bias,
        pattern.offsets,
        pattern.indices,
        *columns,
        choose(impl, input),
    )
    return output.reshape(*input.shape[:-1], pattern.shape[0])


def _as_weight(weight: SparseWeight | Tensor) -> SparseWeight:
    if isinstance(weight, SparseWeight):
        return weight
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"expected a SparseWeight or a torch.sparse_csr tensor, got {type(weight).__name__}"
        )
    if torch.is_grad_enabled() and weight.requires_grad:
        raise ValueError(
            "weight is a CSR tensor that requires a gradient, which would be lost; "
            "try SparseWeight.from_csr(weight.detach()) and its values"
        )
    return SparseWeight.from_csr(weight)


def _check(input: Tensor, weight: SparseWeight, bias: Tensor | None) -> None:
    rows, columns = weight.pattern.shape
    if input.ndim < 1 or input.shape[-1] != columns:
        raise ValueError(f"expected input of [..., {columns}], got {list(input.shape)}")
    if bias is not None and tuple(bias.shape) != (rows,):
        raise ValueError(f"expected bias of [{rows}], got {list(bias.shape)}")
    for name, tensor in (("input", input), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != weight.values.dtype:
            raise TypeError(
                f"expected {name} to be {weight.values.dtype} as the weight is, got "
                f"{tensor.dtype}; try .to({weight.values.dtype})"
            )
        if tensor.device != weight.values.device:
            raise ValueError(
                f"expected one device, got {name} on {tensor.device}, weight on "
                f"{weight.values.device}"
            )


def _sparse_linear(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    indices: Tensor,
    column_offsets: Tensor | None,
    row_indices: Tensor | None,
    order: Tensor | None,
    impl: str,
) -> Tensor:
    input = readable(input)
    output = empty_features(input, len(offsets) - 1)
    if impl != "cpu":
        return output.copy_(reference.sparse_linear(input, values, bias, offsets, indices))
    bias = None if bias is None else bias.contiguous()
    parts = offsets, indices, None, values.contiguous(), bias, output, None, None
    backend.launch("sparse_linear", input, *parts, torch.get_num_threads())
    return output


def _empty_output(
    input: Tensor, values: Tensor, bias: Tensor | None, offsets: Tensor, *rest: object
) -> Tensor:
    return empty_features(readable(input), offsets.shape[0] - 1)


def _sparse_linear_backward(
    grad: Tensor,
    input: Tensor,
    values: Tensor,
    offsets: Tensor,
    indices: Tensor,
    order: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor]:
    grad, input = readable(grad), readable(input)
    dense, sparse = empty_features(grad, len(offsets) - 1), empty_dots(grad, len(values))
    if impl != "cpu":
        parts = reference.sparse_linear_backward(grad, input, values, offsets, indices, order)
        return dense.copy_(parts[0]), sparse.copy_(parts[1])
    parts = offsets, indices, order, values.contiguous(), None, dense, input, sparse
    backend.launch("sparse_linear", grad, *parts, torch.get_num_threads())
    return dense, sparse


def _empty_gradients(
    grad: Tensor, input: Tensor, values: Tensor, offsets: Tensor, *rest: object
) -> tuple[Tensor, Tensor]:
    return empty_features(readable(grad), offsets.shape[0] - 1), torch.empty_like(values)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2], *inputs[3:8])
    ctx.impl = inputs[8]


@once_differentiable
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, values, offsets, indices, *columns = ctx.saved_tensors
    needs_input, needs_values, needs_bias = ctx.needs_input_grad[:3]
    dense = sparse = None
    if needs_input and needs_values:
        dense, sparse = torch.ops.gossamer.sparse_linear_backward(
            grad, input, values, *columns, ctx.impl
        )
    elif needs_input:
        column_offsets, row_indices, order = columns
        dense = torch.ops.gossamer.sparse_linear(
            grad, values[order], None, column_offsets, row_indices, None, None, None, ctx.impl
        )
    elif needs_values:
        sparse = torch.ops.gossamer.sddmm(grad, input, offsets, indices, ctx.impl)
    bias = grad.sum((0, 1)) if needs_bias else None
    return dense, sparse, bias, None, None, None, None, None, None


register(
    "sparse_linear(Tensor input, Tensor values, Tensor? bias, Tensor offsets, Tensor indices, "
    "Tensor? column_offsets, Tensor? row_indices, Tensor? order, str impl) -> Tensor",
    _sparse_linear,
    _empty_output,
)
register(
    "sparse_linear_backward(Tensor grad, Tensor input, Tensor values, Tensor offsets, "
    "Tensor indices, Tensor order, str impl) -> (Tensor, Tensor)",
    _sparse_linear_backward,
    _empty_gradients,
)
torch.library.register_autograd("gossamer::sparse_linear", _backward, setup_context=_setup)
