"""Batch-norm statistics of a network whose weights were changed without training."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of all batch norms by their mean over `batches`, in place.

    No weight is trained, but results are no longer those of the pruned weights alone: say so.

    Parameters
    ----------
    model : nn.Module
        Its mode is kept; dropout stays off.
    batches : iterable of Tensor
        Inputs, at least one.

    Raises
    ------
    ValueError
        If there are no batches.

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
