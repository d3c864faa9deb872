"""Voxels: the occupied cells of a grid over point clouds, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Reduce = Literal["mean", "max", "sum"]
_REDUCTIONS = {"mean": "mean", "max": "amax", "sum": "sum"}


@dataclass(frozen=True, eq=False)
class Voxels:
    """Occupied cells with a feature vector each.

    The fields are those of spconv's ``SparseConvTensor(features, indices, spatial_shape,
    batch_size)``, whose spatial_shape is ``shape[::-1]``.

    Parameters
    ----------
    features : Tensor [N, C]
    coords : Tensor [N, 4] int64
        (scene, z, y, x) of each cell, as in OpenPCDet.
    shape : (int, int, int)
        Cells along x, y and z: sizes are in this order, coordinates in the reverse one.
    batch_size : int
        Scenes.

    Raises
    ------
    TypeError, ValueError
        If the tensors do not fit each other.

    Examples
    --------
    >>> cells = Voxels(torch.ones(2, 8), torch.tensor([[0, 0, 1, 2], [0, 0, 3, 0]]), (4, 5, 1), 1)
    >>> cells.dense().shape, cells.density()
    (torch.Size([1, 8, 1, 5, 4]), 0.1)
    """

    features: Tensor = field(repr=False)
    coords: Tensor = field(repr=False)
    shape: tuple[int, int, int]
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.coords.shape != (len(self.features), 4):
            raise ValueError(
                f"expected features [N, C] and coords [N, 4], got {list(self.features.shape)} and "
                f"{list(self.coords.shape)}"
            )
        if self.coords.dtype != torch.int64:
            raise TypeError(f"expected coords to be int64, got {self.coords.dtype}; try .long()")
        check_triple("shape", self.shape, least=1)

    def dense(self) -> Tensor:
        """Return the whole grid [batch, C, Z, Y, X], zeros where there is no voxel."""
        x, y, z = self.shape
        grid = self.features.new_zeros(self.batch_size, z, y, x, self.features.shape[1])
        grid = grid.index_put(tuple(self.coords.unbind(1)), self.features)
        return grid.permute(0, 4, 1, 2, 3)

    def density(self) -> float:
        """Return the share of cells that is occupied."""
        x, y, z = self.shape
        return len(self.coords) / max(1, self.batch_size * x * y * z)


@dataclass(frozen=True, eq=False)
class Voxelized:
    """Voxels, and what became of each point.

    Parameters
    ----------
    voxels : Voxels
    voxel_of : Tensor [P] int64
        The voxel of each point of all scenes in turn, -1 where it was dropped.
    counts : Tensor [N] int64
        Points in each voxel.
    dropped : int
        Points out of range or not finite.
    """

    voxels: Voxels
    voxel_of: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    dropped: int


def voxelize(
    points: Tensor | Sequence[Tensor],
    *,
    voxel_size: tuple[float, float, float],
    range: tuple[float, float, float, float, float, float],
    reduce: Reduce = "mean",
) -> Voxelized:
    """Reduce the points of each occupied voxel to one feature vector.

    Parameters
    ----------
    points : Tensor [P, C], or one for each scene
        x, y, z and further features of every point.
    voxel_size : (float, float, float)
        Along x, y and z, in the unit of the points.
    range : (x, y, z, x, y, z)
        Lower, then upper corner; points at the upper faces are outside.
    reduce : {"mean", "max", "sum"}

    Returns
    -------
    Voxelized
        Voxels in the order of (scene, z, y, x), whatever the order of the points.

    Raises
    ------
    TypeError, ValueError
        If shapes, sizes or the range do not fit, or no point is left.

    Examples
    --------
    >>> points = torch.tensor([[0.1, 0.1, 0.0], [0.3, 0.1, 0.0], [0.9, 0.9, 0.5], [9.0, 0.0, 0.0]])
    >>> found = voxelize(points, voxel_size=(0.5, 0.5, 1.0), range=(0, 0, 0, 1, 1, 1))
    >>> found.voxels.coords.tolist(), found.voxels.shape, found.dropped
    ([[0, 0, 0, 0], [0, 0, 1, 1]], (2, 2, 1), 1)
    """
    clouds = [points] if isinstance(points, Tensor) else list(points)
    _check(clouds, voxel_size, range, reduce)
    together = torch.cat(clouds)
    lengths = torch.tensor([len(cloud) for cloud in clouds], device=together.device)
    scene = torch.repeat_interleave(lengths)
    low, high = together.new_tensor(range).reshape(2, 3)
    size = together.new_tensor(voxel_size)
    sides = zip(range[:3], range[3:], voxel_size, strict=True)
    shape = tuple(round((upper - lower) / by) for lower, upper, by in sides)
    place = together[:, :3]
    # The second test drops what rounds up to the upper face.
    cell = ((place - low) / size).floor()
    inside = ((place >= low) & (place < high) & (cell < cell.new_tensor(shape))).all(1)
    inside &= together.isfinite().all(1)
    if not bool(inside.any()):
        raise ValueError(
            f"expected a point inside {tuple(range)}, got none of {len(together)}; try a larger "
            "range or other units"
        )
    x, y, z = cell[inside].long().unbind(1)
    flat = ((scene[inside] * shape[2] + z) * shape[1] + y) * shape[0] + x
    cells, owner, counts = torch.unique(flat, return_inverse=True, return_counts=True)
    coords = []
    for extent in shape:
        coords.append(cells % extent)
        cells = cells // extent
    rows = owner[:, None].expand(-1, together.shape[1])
    features = together.new_zeros(len(counts), together.shape[1]).scatter_reduce(
        0, rows, together[inside], _REDUCTIONS[reduce], include_self=False
    )
    voxel_of = torch.full((len(together),), -1, device=together.device)
    voxel_of[inside] = owner
    coords = torch.stack([cells, *reversed(coords)], 1)
    voxels = Voxels(features, coords, (shape[0], shape[1], shape[2]), len(clouds))
    return Voxelized(voxels, voxel_of, counts, int((~inside).sum()))


def check_triple(name: str, value: Sequence[int], *, least: int) -> None:
    """Check a size along x, y and z."""
    if len(value) != 3 or any(int(v) != v or v < least for v in value):
        raise ValueError(f"expected {name} to be three integers >= {least}, got {tuple(value)}")


def _check(
    clouds: list[Tensor], voxel_size: Sequence[float], range: Sequence[float], reduce: str
) -> None:
    if not clouds:
        raise ValueError("expected a point cloud, got an empty sequence")
    for cloud in clouds:
        if cloud.ndim != 2 or cloud.shape[1] < 3 or cloud.shape[1] != clouds[0].shape[1]:
            raise ValueError(
                f"expected points [P, 3 or more], equally wide, got {list(cloud.shape)}"
            )
        if not cloud.dtype.is_floating_point:
            raise TypeError(f"expected floating-point points, got {cloud.dtype}; try .float()")
    if len(range) != 6 or not all(a < b for a, b in zip(range[:3], range[3:], strict=True)):
        raise ValueError(
            f"expected a range of a lower and an upper corner (6 numbers), got {tuple(range)}"
        )
    if len(voxel_size) != 3 or not all(size > 0 for size in voxel_size):
        raise ValueError(f"expected voxel_size to be three positive sizes, got {voxel_size}")
    for low, high, size in zip(range[:3], range[3:], voxel_size, strict=True):
        cells = (high - low) / size
        if abs(cells - round(cells)) > 1e-3 or round(cells) < 1:
            raise ValueError(
                f"expected voxel_size to divide the range, got {high - low:g} / {size:g} = "
                f"{cells:g} cells"
            )
    if reduce not in _REDUCTIONS:
        raise ValueError(f"expected reduce to be one of {', '.join(_REDUCTIONS)}, got {reduce!r}")
