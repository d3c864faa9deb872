"""Objects as points: a heat map of centres over a grid seen from above, and a box at each peak.

Based on "Center-based 3D Object Detection and Tracking" (arXiv 2006.11275), without its IoU branch
and second stage: a minimal head to train backbones with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.spatial.boxes import Boxes

BOX_WEIGHT = 2.0  # of the box loss against the heat map's (DSVT's configuration)
OVERLAP, LEAST_RADIUS = 0.1, 2  # of the heat map's Gaussians (DSVT's configuration)
REGRESSED = 8  # offset x, y; z; log of length, width, height; sine and cosine of yaw


@dataclass(frozen=True, eq=False)
class CenterMaps:
    """What the head says of every cell.

    Parameters
    ----------
    heat : Tensor [B, classes, Y, X]
        Logits of being a centre.
    box : Tensor [B, 8, Y, X]
        Offset of the centre in its cell, z, log sizes, sine and cosine of yaw.
    """

    heat: Tensor = field(repr=False)
    box: Tensor = field(repr=False)


class CenterHead(nn.Module):
    """Predict centres and boxes from features [B, channels, Y, X].

    Parameters
    ----------
    channels, classes : int
    width : int
        Channels inside (the paper's network: 64).
    corner : (float, float)
        x and y of the grid's lower corner, metres.
    cell : float
        Side of a cell, metres.

    Examples
    --------
    >>> head = CenterHead(8, 3, corner=(-20.0, -20.0), cell=0.5)
    >>> maps = head(torch.randn(2, 8, 80, 80))
    >>> maps.heat.shape, maps.box.shape
    (torch.Size([2, 3, 80, 80]), torch.Size([2, 8, 80, 80]))
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        corner: tuple[float, float],
        cell: float,
        width: int = 64,
    ) -> None:
        super().__init__()
        if cell <= 0:
            raise ValueError(f"expected a positive cell, got {cell}")
        self.corner, self.cell = corner, cell
        self.shared = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.heat = nn.Conv2d(width, classes, 1)
        self.box = nn.Conv2d(width, REGRESSED, 1)
        nn.init.constant_(self.heat.bias, -2.19)  # pyright: ignore[reportArgumentType]  (p = 0.1)

    def forward(self, features: Tensor) -> CenterMaps:
        """Return the maps of every scene."""
        shared = self.shared(features)
        return CenterMaps(self.heat(shared), self.box(shared))

    def loss(self, maps: CenterMaps, truth: Sequence[Boxes]) -> Tensor:
        """Return the focal loss of the heat map plus the weighted L1 loss of the boxes."""
        if len(truth) != len(maps.heat):
            raise ValueError(f"expected boxes of {len(maps.heat)} scenes, got {len(truth)}")
        heat = torch.stack([self.gaussians(each, maps.heat.shape[1:]) for each in truth])
        scene = torch.repeat_interleave(torch.tensor([len(each.boxes) for each in truth]))
        boxes = torch.cat([each.boxes for each in truth])
        count = max(1, len(boxes))
        place, inner = self._cells(boxes, maps.heat.shape[2:])
        wanted = torch.cat(
            [inner, boxes[:, 2:3], boxes[:, 3:6].log(), boxes[:, 6:].sin(), boxes[:, 6:].cos()], 1
        )
        found = maps.box[scene, :, place[:, 1], place[:, 0]]
        box = F.l1_loss(found, wanted, reduction="sum") / (count * REGRESSED)
        return _focal(maps.heat, heat) / count + BOX_WEIGHT * box

    def gaussians(self, truth: Boxes, shape: Sequence[int]) -> Tensor:
        """Return the heat map [classes, Y, X] to learn: 1 at centres, falling off around them."""
        heat = torch.zeros(*shape)
        place, _ = self._cells(truth.boxes, shape[1:])
        rows, columns = (torch.arange(extent) for extent in shape[1:])
        length, width = (truth.boxes[:, 3:5] / self.cell).unbind(1)
        # Moved by the radius along both sides, a box still overlaps itself by OVERLAP.
        total = length + width
        rest = total.square() - 4 * length * width * (1 - OVERLAP) / (1 + OVERLAP)
        radius = ((total - rest.sqrt()) / 2).floor().clamp(min=LEAST_RADIUS)
        sigma = (2 * radius + 1) / 6
        for (x, y), label, reach, spread in zip(
            place.tolist(), truth.labels.tolist(), radius.tolist(), sigma.tolist(), strict=True
        ):
            near_y, near_x = (rows - y).abs() <= reach, (columns - x).abs() <= reach
            square = (rows - y).square()[:, None] + (columns - x).square()
            bump = (-square / (2 * spread**2)).exp() * (near_y[:, None] & near_x)
            heat[label] = torch.maximum(heat[label], bump)
        return heat

    @torch.no_grad()
    def decode(self, maps: CenterMaps, *, limit: int = 50, threshold: float = 0.05) -> list[Boxes]:
        """Return the detections of each scene, best first.

        A peak is a cell that no neighbour of its class exceeds; the `limit` best of a scene whose
        probability reaches `threshold` become boxes.
        """
        heat = maps.heat.sigmoid()
        peak = heat == F.max_pool2d(heat, 3, 1, 1)
        scores, flat = (heat * peak).flatten(1).topk(min(limit, heat[0].numel()))
        width, cells = heat.shape[3], heat[0, 0].numel()
        detections = []
        for scene, (score, place) in enumerate(zip(scores, flat, strict=True)):
            place = place[score >= threshold]
            y, x = place % cells // width, place % width
            box = maps.box[scene, :, y, x].T
            corner = box.new_tensor(self.corner)
            centre = (torch.stack([x, y], 1) + box[:, :2]) * self.cell + corner
            yaw = torch.atan2(box[:, 6], box[:, 7])[:, None]
            boxes = torch.cat([centre, box[:, 2:3], box[:, 3:6].exp(), yaw], 1)
            detections.append(Boxes(boxes, place // cells, score[score >= threshold]))
        return detections

    def _cells(self, boxes: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the cell (x, y) of each centre, and where in it the centre is, 0 to 1."""
        place = (boxes[:, :2] - boxes.new_tensor(self.corner)) / self.cell
        cell = place.floor().long()
        if bool(((cell < 0) | (cell >= torch.tensor([shape[1], shape[0]]))).any()):
            raise ValueError("expected the centres of all boxes on the grid, got one outside")
        return cell, place - cell


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum the penalty-reduced focal loss of CornerNet, powers 2 and 4."""
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    centre = log_p * log_q.exp().square()
    around = log_q * log_p.exp().square() * (1 - wanted).pow(4)
    return -torch.where(wanted == 1, centre, around).sum()
