"""Objects from point clouds: pillars, a sparse backbone or none, convolutions, and a head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gossamer.spatial.boxes import Boxes
from gossamer.spatial.center_head import CenterHead, CenterMaps
from gossamer.spatial.dsvt import DSVT, DSVTConfig
from gossamer.spatial.voxels import Voxelized, Voxels, voxelize


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of a pillar detector.

    Parameters
    ----------
    range : (x, y, z, x, y, z)
        Lower and upper corner, metres.
    pillar : float
        Side of a pillar, metres; its height is the range's.
    classes : int
    channels : int
        Of pillars and of the backbone.
    width : int
        Channels of the convolutional net.
    backbone : DSVTConfig or None
        None is a PointPillars-style network: pillars go straight to the convolutions.
    """

    range: tuple[float, float, float, float, float, float]
    pillar: float
    classes: int
    channels: int = 64
    width: int = 32
    backbone: DSVTConfig | None = None

    def __post_init__(self) -> None:
        if self.backbone is not None and self.backbone.channels != self.channels:
            raise ValueError(
                f"expected a backbone of {self.channels} channels, got {self.backbone.channels}"
            )


class PillarEncoder(nn.Module):
    """Features of occupied pillars from their points: one layer, and the maximum over the points.

    A point is its coordinates, its offset from the mean of its pillar's points, and its offset from
    the pillar's centre.

    Parameters
    ----------
    channels : int
    pillar : float
        Side, metres.
    range : tuple of float
    """

    def __init__(self, channels: int, *, pillar: float, range: tuple[float, ...]) -> None:
        super().__init__()
        self.pillar, self.range = pillar, range
        self.linear = nn.Linear(8, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, points: Tensor, found: Voxelized) -> Tensor:
        """Return [N, channels] for points [P, 3] and their pillars."""
        kept = found.voxel_of >= 0
        points, owner = points[kept], found.voxel_of[kept]
        cell = found.voxels.coords[:, [3, 2]]
        corner = points.new_tensor(self.range[:2])
        centre = (cell + 0.5) * self.pillar + corner
        mean = found.voxels.features[owner]
        scale = points.new_tensor(self.range[3:])
        parts = points / scale, points - mean, (points[:, :2] - centre[owner]) / self.pillar
        features = self.norm(self.linear(torch.cat(parts, 1))).relu()
        rows = owner[:, None].expand_as(features)
        most = features.new_zeros(len(cell), features.shape[1])
        return most.scatter_reduce(0, rows, features, "amax", include_self=False)


class PillarDetector(nn.Module):
    """Detect objects in point clouds.

    Parameters
    ----------
    config : DetectorConfig

    Examples
    --------
    >>> from gossamer.data.lidar import RANGE, lidar_scene
    >>> config = DetectorConfig(RANGE, pillar=0.5, classes=3, channels=16, width=8)
    >>> detector = PillarDetector(config).eval()
    >>> len(detector.detect([lidar_scene(0).points, lidar_scene(1).points]))
    2
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PillarEncoder(config.channels, pillar=config.pillar, range=config.range)
        self.backbone = None if config.backbone is None else DSVT(config.backbone)
        width = config.width
        self.narrow = nn.Linear(config.channels, width)
        self.near = _convolutions(width, width, stride=1)
        self.far = _convolutions(width, 2 * width, stride=2)
        self.widen = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.Upsample(scale_factor=2))
        self.head = CenterHead(
            width, config.classes, corner=config.range[:2], cell=config.pillar, width=width
        )

    def pillars(self, points: Sequence[Tensor]) -> Voxels:
        """Return the encoded pillars of point clouds [P, 3], one a scene."""
        low, high = self.config.range[2], self.config.range[5]
        size = (self.config.pillar, self.config.pillar, high - low)
        found = voxelize(points, voxel_size=size, range=self.config.range)
        return replace(found.voxels, features=self.encoder(torch.cat(list(points)), found))

    def forward(self, points: Sequence[Tensor]) -> CenterMaps:
        """Return the head's maps for point clouds [P, 3], one a scene."""
        voxels = self.pillars(points)
        if self.backbone is not None:
            voxels = self.backbone(voxels)
        near = self.near(
            replace(voxels, features=self.narrow(voxels.features)).dense().flatten(1, 2)
        )
        return self.head(near + self.widen(self.far(near)))

    @torch.no_grad()
    def detect(self, points: Sequence[Tensor]) -> list[Boxes]:
        """Return the objects of each scene, best first."""
        return self.head.decode(self(points))


def _convolutions(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, step in ((inputs, stride), (outputs, 1)):
        layers.append(nn.Conv2d(channels, outputs, 3, step, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
