"""Sparse data in space: voxels that are occupied, and later Gaussians that change.

What is sparse here is the input itself: of a grid over a point cloud only a few cells hold points.
`Voxels` carries those, and a method decides which of them compute together. `dsvt.py` is the file
to copy: a frozen configuration, a `plan` that depends on coordinates alone, made of patterns and
sorting in integers, and an `encode` that only multiplies.
"""

from gossamer.spatial.dsvt import DSVT, DSVTConfig, Stage, StagePlan
from gossamer.spatial.partition import RotatedSets, Windows, set_partition, window_partition
from gossamer.spatial.pooling import AttentionPool3d, PoolingCells, pooling_cells
from gossamer.spatial.set_attention import DSVTBlock, SetAttention
from gossamer.spatial.voxels import Voxelized, Voxels, voxelize

__all__ = [
    "DSVT",
    "AttentionPool3d",
    "DSVTBlock",
    "DSVTConfig",
    "PoolingCells",
    "RotatedSets",
    "SetAttention",
    "Stage",
    "StagePlan",
    "Voxelized",
    "Voxels",
    "Windows",
    "pooling_cells",
    "set_partition",
    "voxelize",
    "window_partition",
]
