"""Allocations: one density budget spread over layers.

Each function takes the layers' weight shapes and the density of all their weights together, and
returns a density for every layer. The layer sizes times their densities add up to the budget, and
every density is in (0, 1]: a layer that would need more than its size becomes dense and the rest
is solved again. `shuffled` draws another mask of the same allocation.
"""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """Give every layer the same density.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Weight shape of every layer.
    density : float
        Share of all weights kept, in (0, 1].

    Raises
    ------
    ValueError
        If `density` is out of range or a shape has a size below 1.

    Examples
    --------
    >>> uniform({"up": (8, 4), "down": (4, 8)}, 0.25)
    {'up': 0.25, 'down': 0.25}
    """
    return _proportional(shapes, density, lambda shape: 1.0)


def erdos_renyi(shapes: Shapes, density: float) -> dict[str, float]:
    """Give a layer a density in proportion to ``(in + out) / (in * out)``.

    The Erdos-Renyi rule of SET (Mocanu et al. 2018, arXiv 1707.04780), so that wide layers are
    sparser. Kernel dimensions of a convolution are left out; see `erk`.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Weight shape (out, in, ...) of every layer, at least two sizes.
    density : float
        Share of all weights kept, in (0, 1].

    Raises
    ------
    ValueError
        If `density` is out of range or a shape has fewer than two sizes or one below 1.

    Examples
    --------
    >>> erdos_renyi({"wide": (32, 32), "narrow": (16, 16)}, 0.09375)
    {'wide': 0.078125, 'narrow': 0.15625}
    """
    return _proportional(shapes, density, lambda shape: sum(shape[:2]) / prod(shape[:2]), 2)


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Give a layer a density in proportion to ``sum(shape) / prod(shape)``.

    The Erdos-Renyi-Kernel rule of RigL (Evci et al. 2020, arXiv 1911.11134): `erdos_renyi` with
    the kernel's height and width counted in.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Weight shape (out, in, *kernel) of every layer, at least two sizes.
    density : float
        Share of all weights kept, in (0, 1].

    Raises
    ------
    ValueError
        If `density` is out of range or a shape has fewer than two sizes or one below 1.

    Examples
    --------
    >>> erk({"conv": (32, 32, 3, 3), "head": (10, 32)}, 0.1)["head"]
    1.0
    """
    return _proportional(shapes, density, lambda shape: sum(shape) / prod(shape), 2)


def shuffled(mask: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Keep as many as a mask does, anywhere: what the allocation alone is worth.

    Parameters
    ----------
    mask : bool Tensor, any shape
    generator : torch.Generator, optional
        On the CPU.

    Returns
    -------
    bool Tensor
        Of the mask's shape and device.

    Raises
    ------
    TypeError
        If the mask is not bool.

    Examples
    --------
    >>> int(shuffled(torch.arange(10).view(2, 5) < 3).sum())
    3
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"expected mask to be bool, got {mask.dtype}")
    order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
    return mask.flatten()[order].view(mask.shape)


def _proportional(
    shapes: Shapes,
    density: float,
    proportion: Callable[[tuple[int, ...]], float],
    least_sizes: int = 1,
) -> dict[str, float]:
    """Solve ``sum of n * min(1, scale * p) = density * sum of n`` for the scale."""
    if not 0 < density <= 1:
        raise ValueError(f"expected density in (0, 1], got {density}")
    for name, shape in shapes.items():
        if len(shape) < least_sizes or min(shape) < 1:
            raise ValueError(
                f"expected a weight shape of at least {least_sizes} positive sizes for {name!r}, "
                f"got {tuple(shape)}"
            )
    if density == 1:
        return dict.fromkeys(shapes, 1.0)  # exactly, whatever the rounding below
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    densities: dict[str, float] = {}
    free = {name: proportion(shape) for name, shape in shapes.items()}
    while free:
        scale = budget / sum(sizes[name] * p for name, p in free.items())
        full = [name for name, p in free.items() if scale * p > 1]
        if not full:
            break
        for name in full:
            densities[name] = 1.0
            budget -= sizes[name]
            del free[name]
    densities |= {name: scale * p for name, p in free.items()}
    return {name: densities[name] for name in shapes}
