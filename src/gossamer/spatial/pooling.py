"""Attention pooling: the voxels of a pooling cell become one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.spatial.voxels import Voxels, check_triple


@dataclass(frozen=True, eq=False)
class PoolingCells:
    """Which voxels each occupied pooling cell holds.

    Parameters
    ----------
    coords : Tensor [M, 4] int64
        (scene, z, y, x) of each cell.
    members : Tensor [M, P] int64
        The voxel in each place of a cell, 0 where there is none.
    occupied : Tensor [M, P] bool
        Places that hold a voxel.
    shape : (int, int, int)
        Cells along x, y and z.
    """

    coords: Tensor = field(repr=False)
    members: Tensor = field(repr=False)
    occupied: Tensor = field(repr=False)
    shape: tuple[int, int, int]


def pooling_cells(
    coords: Tensor, shape: tuple[int, int, int], stride: tuple[int, int, int]
) -> PoolingCells:
    """Group voxels into cells of `stride` voxels along x, y and z.

    Examples
    --------
    >>> coords = torch.tensor([[0, 0, 0, 0], [0, 3, 0, 0], [0, 5, 0, 0]])
    >>> cells = pooling_cells(coords, (4, 4, 8), (1, 1, 4))
    >>> cells.coords.tolist(), cells.occupied.sum(1).tolist(), cells.shape
    ([[0, 0, 0, 0], [0, 1, 0, 0]], [2, 1], (4, 4, 2))
    """
    check_triple("stride", stride, least=1)
    step = coords.new_tensor((1, *stride[::-1]))
    cells, owner = torch.unique(coords // step, dim=0, return_inverse=True)
    _, z, y, x = (coords % step).unbind(1)
    place = (z * stride[1] + y) * stride[0] + x
    members = coords.new_zeros(len(cells), stride[0] * stride[1] * stride[2])
    occupied = torch.zeros_like(members, dtype=torch.bool)
    members[owner, place] = torch.arange(len(coords), device=coords.device)
    occupied[owner, place] = True
    fewer = tuple(-(-extent // by) for extent, by in zip(shape, stride, strict=True))
    return PoolingCells(cells, members, occupied, (fewer[0], fewer[1], fewer[2]))


class AttentionPool3d(nn.Module):
    """Pool voxels by attention, with their maximum as the query.

    ``out = LN(query + attention(query, x + p, x))`` over the places of a cell, p learned for each
    place.

    Parameters
    ----------
    channels : int
    stride : (int, int, int)
        Voxels of a cell along x, y and z.
    heads : int
    mask_empty : bool
        Leave places without a voxel out of the maximum and the attention. The released code
        takes them for zeros that are there; False does so.

    Examples
    --------
    >>> coords = torch.tensor([[0, 0, 0, 0], [0, 3, 0, 0], [0, 5, 0, 0]])
    >>> pooled = AttentionPool3d(16, (1, 1, 4))(Voxels(torch.randn(3, 16), coords, (4, 4, 8)))
    >>> pooled.features.shape, pooled.shape
    (torch.Size([2, 16]), (4, 4, 2))
    """

    def __init__(
        self,
        channels: int,
        stride: tuple[int, int, int],
        *,
        heads: int = 8,
        mask_empty: bool = True,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"expected heads to divide {channels} channels, got {heads}")
        self.stride, self.heads, self.mask_empty = stride, heads, mask_empty
        self.place = nn.Parameter(torch.randn(stride[0] * stride[1] * stride[2], channels) / 100)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, voxels: Voxels) -> Voxels:
        """Return the voxels of the coarser grid."""
        cells = pooling_cells(voxels.coords, voxels.shape, self.stride)
        features = self.pool(voxels.features, cells.members, cells.occupied)
        return replace(voxels, features=features, coords=cells.coords, shape=cells.shape)

    def pool(self, features: Tensor, members: Tensor, occupied: Tensor) -> Tensor:
        """Return [M, channels]: features [N, channels] pooled by `PoolingCells`."""
        count, channels = len(members), features.shape[1]
        empty = ~occupied[..., None]
        held = features[members].masked_fill(empty, 0.0)  # [M, P, C]
        candidates = held.masked_fill(empty, float("-inf")) if self.mask_empty else held
        most = candidates.amax(1)

        def split(x: Tensor) -> Tensor:
            return x.view(count, -1, self.heads, channels // self.heads).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            split(self.query(most)),
            split(self.key(held + self.place)),
            split(self.value(held)),
            attn_mask=occupied[:, None, None] if self.mask_empty else None,
        )
        return self.norm(most + self.project(attended.transpose(1, 2).reshape(count, channels)))
