"""DSnoT's swap loop: weights enter and leave a mask until expected errors cancel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.kernels import backend
from gossamer.kernels.library import register
from gossamer.kernels.mask_swaps import reference
from gossamer.patterns import NM, WeightPattern

LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Refinement:
    """What the swap loop did to a mask.

    Parameters
    ----------
    mask : Tensor [out, in] bool
    swaps : Tensor [out] int64
        Of each row.
    before, after : Tensor [out] float64
        Expected error of each row's output, summed over a sequence.
    """

    mask: Tensor
    swaps: Tensor
    before: Tensor
    after: Tensor


def dsnot_refine(
    weight: Tensor,
    mask: Tensor,
    *,
    total: Tensor,
    norm: Tensor,
    variance: Tensor,
    max_cycles: int,
    threshold: float = 0.1,
    var_power: float = 1.0,
    same_sign: bool = True,
    pattern: WeightPattern | None = None,
    scores: Tensor | None = None,
    impl: backend.Impl = "auto",
) -> Refinement:
    """Swap weights in and out of a mask, every row by itself, to cancel expected errors (DSnoT).

    `gossamer.compression.DSnoT` says by what rule.

    Parameters
    ----------
    weight : Tensor [out, in] float32
    mask : Tensor [out, in] bool
        Neither is changed.
    total, norm, variance : Tensor [in]
        Of the inputs: sum over a sequence, L2 norm over a sequence, variance over tokens.
    max_cycles : int
        Swaps a row, at most.
    threshold : float, default=0.1
        Rows stop at ``|error| <= threshold``.
    var_power : float, default=1.0
        Entering weights are ranked by ``weight * total / variance ** var_power``.
    same_sign : bool, default=True
        Stop before a swap that turns the sign of a row's error; N:M always does.
    pattern : WeightPattern, optional
        ``NM(n, m)`` swaps within groups.
    scores : Tensor [out, in], optional
        By which N:M chooses what leaves; ``|weight| * norm`` by default.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    Refinement

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, or groups do not divide the inputs.
    BackendError
        If `impl` cannot run here.

    Examples
    --------
    >>> one = torch.ones(4)
    >>> weight, mask = torch.tensor([[2.0, 1.0, -0.5, 3.0]]), torch.tensor([[0, 0, 1, 1]]).bool()
    >>> found = dsnot_refine(weight, mask, total=one, norm=one, variance=one, max_cycles=4)
    >>> found.mask.tolist(), found.before.tolist(), found.after.tolist()
    ([[True, False, False, True]], [3.0], [0.5])
    """
    for name, tensor in {"weight": weight, "mask": mask, "scores": scores}.items():
        if tensor is not None and (tensor.ndim != 2 or tensor.shape != weight.shape):
            raise ValueError(
                f"expected {name} [out, in] as weight, got {list(tensor.shape)} and "
                f"{list(weight.shape)}"
            )
    if weight.dtype != torch.float32 or mask.dtype != torch.bool:
        raise TypeError(
            f"expected float32 weight and bool mask, got {weight.dtype} and {mask.dtype}"
        )
    for name, moment in {"total": total, "norm": norm, "variance": variance}.items():
        if moment.shape != weight.shape[1:]:
            raise ValueError(f"expected {name} of [{weight.shape[1]}], got {list(moment.shape)}")
    if max_cycles < 0:
        raise ValueError(f"expected max_cycles of at least 0, got {max_cycles}")
    group = pattern.m if isinstance(pattern, NM) else 0
    if group and weight.shape[1] % group:
        raise ValueError(f"expected inputs in groups of {group}, got {weight.shape[1]}")
    steady = variance.clamp(min=LEAST_VARIANCE).pow(-var_power)
    if scores is None:
        scores = weight.abs() * norm.to(weight) if group else weight
    return Refinement(
        *torch.ops.gossamer.mask_swaps(
            weight.contiguous(),
            mask.contiguous(),
            total.to(weight),
            norm.to(weight),
            steady.to(weight),
            scores.to(weight).contiguous(),
            min(max_cycles, weight.shape[1]),
            threshold,
            same_sign or group > 0,
            group,
            backend.choose(impl, weight.device, backend.WITHOUT_TRITON),
        )
    )


def _run(
    weight: Tensor,
    mask: Tensor,
    total: Tensor,
    norm: Tensor,
    steady: Tensor,
    scores: Tensor,
    cycles: int,
    threshold: float,
    guarded: bool,
    group: int,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if impl != "cpu":
        return reference.swap(
            weight, mask, total, norm, steady, scores, cycles, threshold, guarded, group
        )
    out = _empty(weight, mask)
    backend.launch(
        "mask_swaps",
        weight,
        mask.view(torch.uint8),
        total,
        norm,
        steady,
        scores,
        out[0].view(torch.uint8),
        *out[1:],
        cycles,
        threshold,
        guarded,
        group,
        torch.get_num_threads(),
    )
    return out


def _empty(weight: Tensor, mask: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    before = weight.new_empty(len(weight), dtype=torch.float64)
    swaps = torch.empty_like(before, dtype=torch.int64)
    return torch.empty_like(mask), swaps, before, torch.empty_like(before)


register(
    "mask_swaps(Tensor weight, Tensor mask, Tensor total, Tensor norm, Tensor steady, "
    "Tensor scores, int cycles, float threshold, bool guarded, int group, str impl) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _empty,
)
