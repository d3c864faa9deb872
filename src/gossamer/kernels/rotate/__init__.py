"""Rotary position encoding in the rotate-half layout: pairs are (d, d + D / 2)."""

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.rotate import reference
from gossamer.kernels.validation import DTYPES, unit_stride


def rotate(vectors: Tensor, cosine: Tensor, sine: Tensor, *, impl: backend.Impl = "auto") -> Tensor:
    """Encode positions: turn each pair of dims by the angle of its token.

    Parameters
    ----------
    vectors : Tensor [..., D]
        One to four dims, D even; float32 or bfloat16, turned in float32 either way.
    cosine, sine : Tensor [..., D / 2] float32
        Broadcast against the vectors.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Tensor like `vectors`

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit, or a gradient would be needed.

    Examples
    --------
    >>> rotate(torch.tensor([1.0, 0.0]), torch.tensor([0.0]), torch.tensor([1.0])).tolist()
    [0.0, 1.0]
    """
    if vectors.dtype not in DTYPES:
        raise TypeError(f"expected vectors to be float32 or bfloat16, got {vectors.dtype}")
    if not 1 <= vectors.ndim <= 4 or vectors.shape[-1] % 2:
        raise ValueError(
            f"expected vectors of one to four dims, the last one even, got {list(vectors.shape)}"
        )
    if torch.is_grad_enabled() and vectors.requires_grad:
        raise ValueError(
            "vectors requires a gradient, but this kernel is for inference; "
            "try torch.no_grad() or .detach()"
        )
    wanted = (*vectors.shape[:-1], vectors.shape[-1] // 2)
    return _rotate(
        vectors,
        _table("cosine", cosine, wanted, vectors.device),
        _table("sine", sine, wanted, vectors.device),
        backend.choose(impl, vectors.device, backend.WITHOUT_TRITON),
    )


def _table(name: str, table: Tensor, wanted: tuple[int, ...], device: torch.device) -> Tensor:
    """Spread a table over the vectors without a copy."""
    if table.dtype != torch.float32 or table.device != device:
        raise TypeError(
            f"expected {name} to be float32 on {device}, got {table.dtype} on {table.device}"
        )
    try:
        return table.expand(wanted)
    except RuntimeError:
        raise ValueError(
            f"expected {name} to broadcast to {list(wanted)}, got {list(table.shape)}"
        ) from None


def _run(vectors: Tensor, cosine: Tensor, sine: Tensor, impl: str) -> Tensor:
    if impl != "cpu":
        return reference.rotate(vectors, cosine, sine)
    out = torch.empty(vectors.shape, dtype=vectors.dtype)
    if out.numel():
        missing = (1,) * (4 - vectors.ndim)
        four = (unit_stride(part) for part in (vectors, cosine, sine, out))
        four = (part.view(*missing, *part.shape) if missing else part for part in four)
        backend.launch("rotate", *four, torch.get_num_threads())
    return out


_rotate = register(
    "rotate(Tensor vectors, Tensor cosine, Tensor sine, str impl) -> Tensor",
    _run,
    lambda vectors, *rest: torch.empty(vectors.shape, dtype=vectors.dtype, device=vectors.device),
)
