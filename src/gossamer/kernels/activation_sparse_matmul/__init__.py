"""A product with activations that are mostly zero: their weight rows are never read."""

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.activation_sparse_matmul import reference
from gossamer.kernels.library import register

DTYPES = (torch.float32, torch.bfloat16)


def activation_sparse_matmul(
    activations: Tensor, weight_t: Tensor, *, impl: backend.Impl = "auto"
) -> Tensor:
    """Return ``activations @ weight_t``, of the activations that are not exactly zero.

    A zero multiplies nothing, whatever the weight holds there, and a row of the weight that only
    zeros meet is not read. With one row of activations (decode) the time is that of reading the
    rows that are left.

    Parameters
    ----------
    activations : Tensor [n, K] float32 or bfloat16
        Any number of rows, each with zeros of its own.
    weight_t : Tensor [K, M] float32 or bfloat16
        Input-major: ``linear.weight.T.contiguous()``. Products and sums are float32.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor [n, M] float32

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes, layout or devices do not fit, or a gradient would be needed.
    BackendError
        If `impl` cannot run here.

    Examples
    --------
    >>> weight_t = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [3.0, 4.0]])
    >>> activation_sparse_matmul(torch.tensor([[10.0, 0.0, 1.0]]), weight_t).tolist()
    [[13.0, 24.0]]
    """
    _check(activations, weight_t)
    return torch.ops.gossamer.activation_sparse_matmul(
        activations, weight_t, backend.choose(impl, weight_t.device, backend.WITHOUT_TRITON)
    )


def _check(activations: Tensor, weight_t: Tensor) -> None:
    for name, tensor in (("activations", activations), ("weight_t", weight_t)):
        if tensor.ndim != 2:
            raise ValueError(f"expected {name} to be a matrix, got {list(tensor.shape)}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"expected {name} to be float32 or bfloat16, got {tensor.dtype}")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but this kernel is for inference; "
                "try torch.no_grad() or .detach()"
            )
    if activations.shape[1] != weight_t.shape[0]:
        raise ValueError(
            f"expected activations [n, K] and weight_t [K, M], got {list(activations.shape)} and "
            f"{list(weight_t.shape)}; try weight.T.contiguous()"
        )
    if not weight_t.is_contiguous():
        raise ValueError(
            "expected weight_t to be contiguous, one row an input, got strides "
            f"{weight_t.stride()}; try .contiguous() once, when the weight is loaded"
        )
    if activations.device != weight_t.device:
        raise ValueError(
            f"expected one device, got activations on {activations.device}, weight_t on "
            f"{weight_t.device}"
        )


def _activation_sparse_matmul(activations: Tensor, weight_t: Tensor, impl: str) -> Tensor:
    if impl != "cpu":
        return reference.activation_sparse_matmul(activations, weight_t)
    out = _empty_output(activations, weight_t, impl)
    activations = activations.float().contiguous()
    backend.launch("activation_sparse_matmul", activations, weight_t, out, torch.get_num_threads())
    return out


def _empty_output(activations: Tensor, weight_t: Tensor, impl: str) -> Tensor:
    shape = (activations.shape[0], weight_t.shape[1])
    return torch.empty(shape, dtype=torch.float32, device=weight_t.device)


register(
    "activation_sparse_matmul(Tensor activations, Tensor weight_t, str impl) -> Tensor",
    _activation_sparse_matmul,
    _empty_output,
)
