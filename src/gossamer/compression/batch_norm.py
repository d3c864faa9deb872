"""Batch-norm statistics of a network whose weights were changed without training."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Tensor], *, like: nn.Module | None = None
) -> None:
    """Replace the running statistics of all batch norms by their mean over `batches`, in place.

    No weight is trained, but results are no longer those of the pruned weights alone: say so.

    Parameters
    ----------
    model : nn.Module
        Its mode is kept; dropout stays off.
    batches : iterable of Tensor
        Inputs, at least one.
    like : nn.Module, optional
        The network before its weights were changed. Only what differs from its statistics on the
        same batches is then moved: means by the difference, variances by the ratio, so that few
        batches, or others than it was trained on, do no harm.

    Raises
    ------
    ValueError
        If there are no batches, or `like` has other batch norms.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(1).eval()
    >>> reestimate_batch_norm(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    >>> norm.running_mean.item(), norm.training
    (4.0, False)
    """
    batches = list(batches)
    if not batches:
        raise ValueError("expected batches to estimate statistics from, got none")
    if like is None:
        _estimate(model, batches)
        return
    before, estimated = (_statistics(each) for each in (like, model))
    if [mean.shape for mean, _ in before] != [mean.shape for mean, _ in estimated]:
        raise ValueError("expected `like` to have the batch norms of the model, got others")
    dense = copy.deepcopy(like)
    for each in (dense, model):
        _estimate(each, batches)
    for (mean, variance), (old_mean, old_variance), (dense_mean, dense_variance) in zip(
        _statistics(model), before, _statistics(dense), strict=True
    ):
        mean.copy_(old_mean + mean - dense_mean)
        variance.copy_(old_variance * variance / dense_variance.clamp(min=1e-12))


def _statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The running mean and variance of each batch norm that keeps them."""
    return [
        (module.running_mean, module.running_var)
        for module in model.modules()
        if isinstance(module, _NORMS)
        and module.running_mean is not None
        and module.running_var is not None
    ]


def _estimate(model: nn.Module, batches: list[Tensor]) -> None:
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in modes if isinstance(module, _NORMS)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
        for batch in batches:
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
