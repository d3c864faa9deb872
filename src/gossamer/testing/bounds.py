"""What a result must satisfy: error bounds against float64, and the rules of key lists."""

import torch
from torch import Tensor

from gossamer.kernels import AttentionOutput
from gossamer.patterns import StripePattern, TokenPattern

OUTPUT_BOUND = 5e-6  # float32, in units of the largest |value|
LSE_BOUND = 1e-5
TINY = torch.finfo(torch.float32).tiny  # results below it may flush to zero


def budget(plain: Tensor, exact: Tensor) -> float:
    """Return the error allowed at `plain`'s precision.

    Twice the error of the plain PyTorch path at that precision, plus one rounding of the largest
    result: 2 (max |plain - exact| + epsilon max |exact|).

    Parameters
    ----------
    plain : Tensor
        The result of plain PyTorch operations in the dtype under test.
    exact : Tensor float64
        Of the same shape.

    Examples
    --------
    >>> budget(torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0]).double())
    0.015625
    """
    if not exact.numel():
        return 0.0
    error = float((plain.double() - exact).abs().max())
    return 2.0 * (error + torch.finfo(plain.dtype).eps * float(exact.abs().max()))


def check_close(actual: Tensor, exact: Tensor, bound: float, name: str = "output") -> float:
    """Check that `actual` is finite where `exact` is and nowhere further from it than `bound`.

    Parameters
    ----------
    actual : Tensor
    exact : Tensor float64
        Infinities must be met exactly.
    bound : float
        Largest absolute error allowed.
    name : str
        What to call `actual` in the message.

    Returns
    -------
    float
        The largest error as a share of `bound`.

    Raises
    ------
    AssertionError
        Naming the worst element.

    Examples
    --------
    >>> check_close(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]).double(), 1.0)
    0.5
    """
    if actual.shape != exact.shape:
        raise AssertionError(f"expected {name} of shape {exact.shape}, got {actual.shape}")
    if not exact.numel():
        return 0.0
    found = actual.double()
    error = torch.where(found == exact, 0.0, (found - exact).abs()).nan_to_num(nan=torch.inf)
    worst = float(error.max())
    if worst > bound:
        place = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
        raise AssertionError(
            f"expected {name} within {bound:.3g} of the oracle, got an error of {worst:.3g} at "
            f"{place}: {float(found[tuple(place)])!r} instead of {float(exact[tuple(place)])!r}"
        )
    return worst / bound if worst else 0.0


def check_attention(
    actual: AttentionOutput,
    exact: AttentionOutput,
    value: Tensor,
    plain: AttentionOutput | None = None,
) -> float:
    """Check output and log-sum-exp of an attention kernel against the float64 oracle.

    float32 output may be off by 5e-6 times the largest |value|; lower precisions by their
    `budget`. The log-sum-exp is float32 at any precision: 1e-5, or eight roundings of a large one.

    Parameters
    ----------
    actual, exact : AttentionOutput
    value : Tensor
        The values attended to.
    plain : AttentionOutput, optional
        The oracle's formula at the inputs' precision; needed below float32.

    Returns
    -------
    float
        The largest error of the output as a share of its bound.

    Raises
    ------
    AssertionError
        If a bound is exceeded, or something is not finite that should be.
    ValueError
        If `plain` is missing.

    Examples
    --------
    >>> output = AttentionOutput(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1))
    >>> check_attention(output, AttentionOutput(*(x.double() for x in output)), torch.ones(1))
    0.0
    """
    if actual.output.dtype == torch.float32:
        bound = OUTPUT_BOUND * (float(value.abs().max()) if value.numel() else 0.0)
    elif plain is None:
        raise ValueError(f"expected plain to judge {actual.output.dtype} by, got None")
    else:
        bound = budget(plain.output, exact.output)
    large = exact.lse[exact.lse.isfinite()].abs()
    rounding = 8 * torch.finfo(torch.float32).eps / 2 * float(large.max()) if large.numel() else 0.0
    check_close(actual.lse, exact.lse, max(LSE_BOUND, rounding), "log-sum-exp")
    return check_close(actual.output, exact.output, bound + TINY)


def check_key_lists(
    pattern: TokenPattern | StripePattern,
    q_len: int,
    *,
    window: int = 0,
    sink: int = 0,
    key_start: Tensor | None = None,
) -> None:
    """Check the lists of keys that a causal search selected for each group of queries.

    Each must be strictly ascending and in range, hold no key after its group or before the
    sequence's start, and hold the sinks and the last `window` keys up to the end of the group.

    Parameters
    ----------
    pattern : TokenPattern or StripePattern
    q_len : int
    window, sink : int
        Keys that every list must hold.
    key_start : Tensor [B] int, optional

    Raises
    ------
    AssertionError
        Naming what a list holds or lacks.

    Examples
    --------
    >>> lists = torch.tensor([[[[0, 1, -1], [0, 2, 3]]]], dtype=torch.int32)
    >>> check_key_lists(TokenPattern(lists, group=2, k_len=4), 4, window=2, sink=1)
    """
    try:
        held = pattern.validate().to_mask()
    except ValueError as error:
        raise AssertionError(str(error)) from None
    batch, _, groups, k_len = pattern.shape
    end = (torch.arange(1, groups + 1) * pattern.group).clamp(max=q_len) + k_len - q_len
    end = end[:, None]
    start = torch.zeros(batch) if key_start is None else key_start
    start = torch.minimum(start[:, None, None, None], end)
    key = torch.arange(k_len)
    allowed = (key >= start) & (key < end)
    due = allowed & ((key < start + sink) | (key >= end - window))
    for kind, wrong in (("holds", held & ~allowed), ("lacks", due & ~held)):
        if bool(wrong.any()):
            b, h, g, j = wrong.nonzero()[0].tolist()
            raise AssertionError(f"list (batch {b}, head {h}, group {g}) {kind} key {j}")
