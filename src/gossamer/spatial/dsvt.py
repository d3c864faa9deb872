"""DSVT: attention over occupied voxels, in sets of one size that two windowings and two axes cut.

Every window of voxels is cut into sets of equal size, so that one dense, batched attention serves
sparse data. Layers alternate between sets along y and along x; blocks alternate between windows
and larger, shifted ones; information thus crosses both borders. Which voxels attend to each other
follows from where they are, by sorting: nothing is learned or scored.

Based on "DSVT: Dynamic Sparse Voxel Transformer with Rotated Sets" (arXiv 2301.06051; code
Haiyang-W/DSVT). The released code pairs positions with the wrong windows in every second layer
(its issue 50); here they belong to the block's own windows, unless `upstream_pos` is set.

Limits: one set size a stage; no gradient checkpoints; sparse outside, dense inside: a set attends
to all of itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from gossamer.kernels.backend import Impl
from gossamer.spatial.partition import RotatedSets, Size, set_partition, window_partition
from gossamer.spatial.pooling import AttentionPool3d, PoolingCells, pooling_cells
from gossamer.spatial.set_attention import ORDERS, DSVTBlock, Order
from gossamer.spatial.voxels import Voxels, check_triple


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution.

    Parameters
    ----------
    window : (int, int, int)
        Voxels along x, y and z.
    blocks : int
    set_size : int
        Voxels of a set (paper: 36 for pillars, 48 for voxels).
    pool : (int, int, int), optional
        Stride of the pooling that ends the stage.
    """

    window: Size = (12, 12, 1)
    blocks: int = 4
    set_size: int = 36
    pool: Size | None = None

    def __post_init__(self) -> None:
        check_triple("window", self.window, least=1)
        if self.pool is not None:
            check_triple("pool", self.pool, least=1)
        if self.blocks < 1 or self.set_size < 1:
            raise ValueError(
                f"expected blocks and set_size >= 1, got {self.blocks} and {self.set_size}"
            )


@dataclass(frozen=True)
class DSVTConfig:
    """Hyper-parameters; the defaults are the paper's DSVT-Pillar on Waymo.

    Parameters
    ----------
    shape : (int, int, int)
        Voxels of the input along x, y and z.
    channels, heads, hidden : int
        Features, attention heads and width of the feed-forward networks.
    stages : tuple of Stage
        All but the last with a `pool`.
    hybrid_factor, shift : (int, int, int)
        Every second block's windows are so much larger, and start so much earlier.
    orders : pair of {"y", "x"}
        Which sets the two layers of a block use; ("y", "y") does not rotate them.
    mask_empty : bool
        As in `AttentionPool3d`.
    upstream_pos : bool
        Take positions from the windows that the released code takes them from, for its weights.
    impl : {"auto", "reference", "cpu", "triton"}
        Of the attention kernel.

    Examples
    --------
    >>> DSVTConfig.voxel().stages[1]
    Stage(window=(12, 12, 8), blocks=1, set_size=48, pool=(1, 1, 4))
    """

    shape: Size = (468, 468, 1)
    channels: int = 192
    heads: int = 8
    hidden: int = 384
    stages: tuple[Stage, ...] = (Stage(),)
    hybrid_factor: Size = (2, 2, 1)
    shift: Size = (6, 6, 0)
    orders: tuple[Order, Order] = ORDERS
    mask_empty: bool = True
    upstream_pos: bool = False
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        check_triple("shape", self.shape, least=1)
        check_triple("hybrid_factor", self.hybrid_factor, least=1)
        check_triple("shift", self.shift, least=0)
        if self.shape[2] >= max(self.shape[:2]):
            raise ValueError(
                f"expected shape (x, y, z) with fewer voxels along z, got {self.shape}; try the "
                "reverse order"
            )
        if not self.stages or any(stage.pool is None for stage in self.stages[:-1]):
            raise ValueError("expected stages, all but the last with a pool stride")
        if self.stages[-1].pool is not None:
            raise ValueError(f"expected no pool after the last stage, got {self.stages[-1].pool}")
        if len(self.orders) != 2 or not set(self.orders) <= set(ORDERS):
            raise ValueError(f"expected a pair of orders out of {ORDERS}, got {self.orders}")

    @classmethod
    def voxel(cls) -> DSVTConfig:
        """Return the paper's DSVT-Voxel on Waymo."""
        heights, strides = (32, 8, 2, 1), ((1, 1, 4), (1, 1, 4), (1, 1, 2), None)
        return cls(
            shape=(468, 468, 32),
            stages=tuple(
                Stage((12, 12, height), blocks=1, set_size=48, pool=stride)
                for height, stride in zip(heights, strides, strict=True)
            ),
        )


@dataclass(frozen=True, eq=False)
class StagePlan:
    """What the places of the voxels alone decide for one stage.

    Parameters
    ----------
    sets : pair of RotatedSets
        Of the windows, and of the larger, shifted ones.
    offsets : pair of Tensor [N, 2 or 3]
        Places of the voxels in these windows.
    cells : PoolingCells or None
        Of the pooling that ends the stage.
    """

    sets: tuple[RotatedSets, RotatedSets]
    offsets: tuple[Tensor, Tensor]
    cells: PoolingCells | None


class DSVT(nn.Module):
    """Dynamic sparse voxel transformer: a backbone from voxels to voxels.

    Parameters
    ----------
    config : DSVTConfig

    Raises
    ------
    ValueError
        If the heads do not divide the channels.

    Examples
    --------
    >>> import torch
    >>> config = DSVTConfig(shape=(40, 40, 1), channels=16, heads=2, hidden=32)
    >>> cells = torch.randperm(1600)[:200]
    >>> coords = torch.stack([0 * cells, 0 * cells, cells // 40, cells % 40], 1)
    >>> DSVT(config)(Voxels(torch.randn(200, 16), coords, config.shape)).features.shape
    torch.Size([200, 16])
    """

    def __init__(self, config: DSVTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DSVTConfig()
        self.stages, self.pools = nn.ModuleList(), nn.ModuleList()
        for stage in config.stages:
            self.stages.append(
                nn.ModuleList(
                    DSVTBlock(
                        config.channels,
                        config.heads,
                        config.hidden,
                        axes=2 if stage.window[2] == 1 else 3,
                        orders=config.orders,
                        impl=config.impl,
                    )
                    for _ in range(stage.blocks)
                )
            )
            if stage.pool is not None:
                self.pools.append(
                    AttentionPool3d(config.channels, stage.pool, mask_empty=config.mask_empty)
                )
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.channels) for stage in config.stages for _ in range(stage.blocks)
        )

    def plan(self, voxels: Voxels) -> tuple[StagePlan, ...]:
        """Decide who attends to whom, and who is pooled with whom, in every stage."""
        config, coords, shape = self.config, voxels.coords, voxels.shape
        if shape != config.shape:
            raise ValueError(f"expected voxels of shape {config.shape}, got {shape}")
        plans = []
        for stage in config.stages:
            larger = _times(stage.window, config.hybrid_factor)
            windows = (
                window_partition(coords, shape, stage.window),
                window_partition(coords, shape, larger, config.shift),
            )
            first, second = (set_partition(each, stage.set_size) for each in windows)
            cells = None
            if stage.pool is not None:
                cells = pooling_cells(coords, shape, stage.pool)
                coords, shape = cells.coords, cells.shape
            offsets = windows[0].offsets(), windows[1].offsets()
            plans.append(StagePlan((first, second), offsets, cells))
        return tuple(plans)

    def encode(self, features: Tensor, plans: tuple[StagePlan, ...]) -> Tensor:
        """Return the features of the last stage's voxels: products, softmax and norms only."""
        norms, number = iter(self.norms), 0
        for at, (blocks, plan) in enumerate(zip(self.stages, plans, strict=True)):
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                turn = number % 2
                offsets = (plan.offsets[turn],) * 2
                if self.config.upstream_pos:
                    offsets = plan.offsets
                features = next(norms)(features + block(features, plan.sets[turn], offsets))
                number += 1
            if plan.cells is not None:
                features = self.pools[at].pool(  # pyright: ignore
                    features, plan.cells.members, plan.cells.occupied
                )
        return features

    def forward(self, voxels: Voxels) -> Voxels:
        """Return the voxels of the last stage.

        Raises
        ------
        ValueError
            If the voxels' shape or channels are others than the configuration's, or fewer than
            two voxels come to train on, whose batch statistics would not exist.
        """
        if voxels.features.shape[1] != self.config.channels:
            raise ValueError(
                f"expected {self.config.channels} channels, got {voxels.features.shape[1]}"
            )
        least = 2 if self.training else 1
        if len(voxels.coords) < least:
            raise ValueError(f"expected at least {least} voxels, got {len(voxels.coords)}")
        plans = self.plan(voxels)
        features = self.encode(voxels.features, plans)
        coords, shape = voxels.coords, voxels.shape
        for plan in plans:
            if plan.cells is not None:
                coords, shape = plan.cells.coords, plan.cells.shape
        return replace(voxels, features=features, coords=coords, shape=shape)


def _times(a: Size, b: Size) -> Size:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]
