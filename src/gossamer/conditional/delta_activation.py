"""Delta activations: values so coarsely quantised that from frame to frame few of them change."""

from typing import Any

import torch
from torch import Tensor, nn


class _Quantize(torch.autograd.Function):
    """levels = round(x / step), y = levels * step, with step = max(|threshold|, floor).

    Backward: dL/dx = dL/dy, and dL/dstep = -sum(dL/dy * levels). The sign is reversed on purpose:
    fewer and smaller changes are reached by a coarser step, but a step that followed the true
    gradient of sum |y_t - y_t-1| would shrink, since every change is a multiple of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, floor: Tensor) -> Tensor:
        step = threshold.abs().maximum(floor)
        levels = (x / step).round_()
        ctx.save_for_backward(levels, threshold)
        return levels * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        levels, threshold = ctx.saved_tensors
        step = -(gradients[0] * levels).sum_to_size(threshold.shape)
        return gradients[0], torch.where(threshold < 0, -step, step), None


class PenalisedActivation(nn.Module):
    """What both layers share: a penalty on what costs work, and a count of it.

    Attributes
    ----------
    penalty : Tensor or None
        ``rate * fan_out * mean |cost|`` of the last call; `temporal_loss` adds them up.
    fan_out : int
        Weights that one activation feeds.
    """

    def __init__(self, rate: float, fan_out: int) -> None:
        super().__init__()
        if not rate >= 0 or fan_out < 1:
            raise ValueError(
                f"expected rate >= 0 and fan_out >= 1, got {rate} and {fan_out}; try rate=1e-6"
            )
        self.rate, self.fan_out = rate, fan_out
        self.penalty: Tensor | None = None
        self.nonzero: Tensor | None = None
        self.entries = 0

    @property
    def density(self) -> float:
        """Share of the last call's entries that cost work; NaN before there are any."""
        return float(self.nonzero) / self.entries if self.nonzero is not None else float("nan")

    def _record(self, costs: Tensor) -> None:
        """Note the activations [B, T, ...] that each cost `fan_out` multiply-adds."""
        self.entries = costs.numel()
        self.nonzero = costs.detach().count_nonzero() if self.entries else None
        self.penalty = self.rate * self.fan_out * costs.abs().mean() if self.entries else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "penalty": None}  # a graph can be neither copied nor pickled


class DeltaActivation(PenalisedActivation):
    """Quantise activations with a learned step, and charge for those that change in time.

    With step s: ``y = s * round(x / s)``, ``penalty = rate * fan_out * mean |y_t - y_t-1|`` over
    t >= 1. The state is quantised, not its difference, so a linear layer that adds up products
    with the few changes (`DeltaInference`) has exactly the output of one that sees all of y.

    Based on "Training for temporal sparsity in deep neural networks, application in video
    processing" (arXiv 2107.07305), the Delta Activation Layer. Gradients: straight through to x,
    and reversed in sign to the step (see `_Quantize`). What the released layer can also do
    inside itself is left to torch: ReLU, pooling and bias before it, `diff` and `cumsum` behind.

    Parameters
    ----------
    shape : int or tuple of int
        Of the learned steps: ``channels`` for one a channel (the paper's choice), the frame's
        shape without its batch for one a neuron, ``()`` for one in all.
    init : float
        First step, in units of x (code default 0.1).
    rate : float
        Weight of the penalty (1e-4, then 1e-6, in the authors' ResNet-50 runs).
    fan_out : int
        Weights that each activation feeds; makes the penalty approximate multiply-adds.
    learn_threshold : bool
        Whether the steps are trained.

    Examples
    --------
    >>> layer = DeltaActivation(1, init=0.5)
    >>> layer(torch.tensor([[[0.9], [1.1], [2.1]]])).flatten().tolist()
    [1.0, 1.0, 2.0]
    >>> layer.density
    0.5
    """

    floor: Tensor

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        init: float = 0.1,
        rate: float = 1e-6,
        fan_out: int = 1,
        learn_threshold: bool = True,
    ) -> None:
        super().__init__(rate, fan_out)
        if not 0 < init < float("inf"):
            raise ValueError(f"expected init to be positive and finite, got {init}; try 0.1")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if any(size < 1 for size in shape):
            raise ValueError(
                f"expected positive sizes, got shape {list(shape)}; try the number of channels"
            )
        self.threshold = nn.Parameter(torch.full(shape, init), requires_grad=learn_threshold)
        self.register_buffer("floor", torch.tensor(1e-6 * init))

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, T, C, ...] in steps of the threshold."""
        shape = self.threshold.shape
        if x.ndim < 3 or not x.is_floating_point() or x.shape[2 : 2 + len(shape)] != shape:
            raise ValueError(
                f"expected a floating-point video [B, T, C, ...] whose frames start with "
                f"{list(shape)}, got {x.dtype} {list(x.shape)}; try x.unsqueeze(1) for one frame"
            )
        if self.training and x.shape[1] < 2:
            raise ValueError(
                f"expected at least 2 frames to train on, got {x.shape[1]}; try longer clips"
            )
        threshold = self.threshold.reshape(shape + (1,) * (x.ndim - 2 - len(shape)))
        y: Tensor = _Quantize.apply(x, threshold, self.floor)  # pyright: ignore
        self._record(y.diff(dim=1))
        return y

    @torch.no_grad()
    def set_threshold(self, threshold: Tensor) -> None:
        """Replace the steps by `threshold`, broadcast to their shape; zeros keep the old step."""
        wanted = threshold.to(self.threshold).expand_as(self.threshold)
        self.threshold.copy_(torch.where(wanted > 0, wanted, self.threshold))
        self.floor.fill_(1e-6 * float(self.threshold.abs().mean()))

    def extra_repr(self) -> str:
        return f"{list(self.threshold.shape)}, rate={self.rate:g}, fan_out={self.fan_out}"


class L1Activation(PenalisedActivation):
    """Charge for every activation that is not zero: sparsity in space, the paper's baseline.

    ``penalty = rate * fan_out * mean |x|``; x passes unchanged and frames do not meet.

    Parameters
    ----------
    rate : float
        Weight of the penalty (4e-4 in the authors' runs).
    fan_out : int
        Weights that each activation feeds.

    Examples
    --------
    >>> layer = L1Activation(rate=1.0)
    >>> layer(torch.tensor([[[0.0, 2.0]]])).tolist(), layer.density, layer.penalty.item()
    ([[[0.0, 2.0]]], 0.5, 1.0)
    """

    def __init__(self, *, rate: float = 4e-4, fan_out: int = 1) -> None:
        super().__init__(rate, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        self._record(x)
        return x


def temporal_loss(model: nn.Module) -> Tensor:
    """Return the sum of all penalties of the model's last call, to be added to the loss.

    Raises
    ------
    ValueError
        If no layer has a penalty, or one is not finite.

    Examples
    --------
    >>> model = nn.Sequential(DeltaActivation(1, init=0.5, rate=2.0))
    >>> output = model(torch.tensor([[[1.0], [1.5]]]))
    >>> temporal_loss(model).item()
    1.0
    """
    penalties = [layer.penalty for layer in _layers(model) if layer.penalty is not None]
    if not penalties:
        raise ValueError("expected a model that was called with delta layers; try insert_delta")
    total = torch.stack(penalties).sum()
    if not torch.isfinite(total):
        raise ValueError("expected finite activations, got NaN or inf; try a lower learning rate")
    return total


def operations_density(model: nn.Module) -> float:
    """Return the share of multiply-adds that the last call's activations ask for.

    ``sum(fan_out * nonzero) / sum(fan_out * entries)`` over layers: of changes for
    `DeltaActivation`, of activations for `L1Activation`. The first frame is not counted.

    Examples
    --------
    >>> model = nn.Sequential(DeltaActivation(1, init=0.5, fan_out=3), DeltaActivation(1, init=4.0))
    >>> output = model(torch.tensor([[[1.0], [1.5]]]))
    >>> operations_density(model)
    0.75
    """
    layers = [layer for layer in _layers(model) if layer.nonzero is not None]
    asked = sum(layer.fan_out * int(layer.nonzero or 0) for layer in layers)
    return asked / sum(layer.fan_out * layer.entries for layer in layers) if layers else 1.0


def _layers(model: nn.Module) -> list[PenalisedActivation]:
    return [layer for layer in model.modules() if isinstance(layer, PenalisedActivation)]
