"""Boxes seen from above: overlap of rotated rectangles, and average precision."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CLOSE = 1e-7  # metres, and radians, that do not count


@dataclass(frozen=True, eq=False)
class Boxes:
    """Objects of one scene.

    Parameters
    ----------
    boxes : Tensor [M, 7]
        x, y, z of the centre, length, width, height, and yaw in radians.
    labels : Tensor [M] int64
    scores : Tensor [M], optional
        Of detections.
    """

    boxes: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    scores: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 7:
            raise ValueError(f"expected boxes [M, 7], got {list(self.boxes.shape)}")
        for name in ("labels", "scores"):
            part = getattr(self, name)
            if part is not None and part.shape != self.boxes.shape[:1]:
                raise ValueError(f"expected {name} [{len(self.boxes)}], got {list(part.shape)}")


def corners(boxes: Tensor) -> Tensor:
    """Return the corners [M, 4, 2] of boxes [M, 7] from above, counter-clockwise."""
    unit = boxes.new_tensor([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
    x, y = (unit * boxes[:, None, 3:5]).unbind(-1)
    cosine, sine = boxes[:, 6:].cos(), boxes[:, 6:].sin()
    turned = torch.stack([x * cosine - y * sine, x * sine + y * cosine], -1)
    return turned + boxes[:, None, :2]


def bev_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of all pairs of rotated rectangles, [K, M].

    The intersection of two rectangles is convex: its corners are the corners of each inside the
    other and the crossings of their edges, and turning around their mean gives its area.

    Parameters
    ----------
    first, second : Tensor [K, 7], [M, 7]
        Boxes; their heights do not matter.

    Returns
    -------
    Tensor [K, M] float64

    Examples
    --------
    >>> a = torch.tensor([[0.0, 0, 0, 2, 2, 1, 0]])
    >>> b = torch.tensor([[1.0, 0, 0, 2, 2, 1, 0], [0, 0, 0, 2, 2, 1, torch.pi / 4]])
    >>> bev_iou(a, b).mul(1000).round().tolist()
    [[333.0, 707.0]]
    """
    a, b = first.double(), second.double()
    p, q = corners(a)[:, None], corners(b)[None]  # [K, 1, 4, 2], [1, M, 4, 2]
    grid = len(a), len(b)
    edge_p, edge_q = p.roll(-1, -2) - p, q.roll(-1, -2) - q
    between = q[..., None, :, :] - p[..., :, None, :]  # [K, M, 4, 4, 2]
    u, v = edge_p[..., :, None, :], edge_q[..., None, :, :]
    cross = _cross(u, v)
    # Edges this close to parallel cross nowhere that rounding leaves meaningful; corners suffice.
    parallel = cross.abs() <= CLOSE * u.norm(dim=-1) * v.norm(dim=-1)
    divisor = torch.where(parallel, torch.inf, cross)
    along, other = _cross(between, v) / divisor, _cross(between, u) / divisor
    crossing = p[..., :, None, :] + along[..., None] * u
    meets = ~parallel & ((along - 0.5).abs() <= 0.5 + CLOSE) & ((other - 0.5).abs() <= 0.5 + CLOSE)
    points = torch.cat(
        [p.expand(*grid, 4, 2), q.expand(*grid, 4, 2), crossing.reshape(*grid, 16, 2)], 2
    )
    there = torch.cat([_inside(p, b[None]), _inside(q, a[:, None]), meets.flatten(2)], 2)
    number = there.sum(-1, keepdim=True)
    mean = (points * there[..., None]).sum(2, keepdim=True) / number.clamp(min=1)[..., None]
    rest = (points - mean) * there[..., None]
    angle = torch.atan2(rest[..., 1], rest[..., 0]).masked_fill(~there, torch.inf)
    order = angle.argsort(-1)
    # What is not there stands at the end, and takes the place of the first, which closes the ring.
    order = torch.where(torch.arange(order.shape[-1]) < number, order, order[..., :1])
    ring = rest.gather(2, order[..., None].expand(*order.shape, 2))
    shared = _cross(ring, ring.roll(-1, 2)).sum(-1) / 2
    areas = (a[:, 3] * a[:, 4])[:, None] + (b[:, 3] * b[:, 4])[None]
    return shared / (areas - shared)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points [..., 4, 2] are in boxes [..., 7], borders included."""
    offset = points - boxes[..., None, :2]
    cosine, sine = boxes[..., None, 6].cos(), boxes[..., None, 6].sin()
    along = offset[..., 0] * cosine + offset[..., 1] * sine
    across = offset[..., 1] * cosine - offset[..., 0] * sine
    half = boxes[..., None, 3:5] / 2 + CLOSE
    return (along.abs() <= half[..., 0]) & (across.abs() <= half[..., 1])


def average_precision(
    found: Sequence[Boxes], truth: Sequence[Boxes], *, label: int, threshold: float = 0.5
) -> float:
    """Return the area under the precision-recall curve of one class over all scenes.

    Detections are taken by falling score; each matches the object of its scene, not matched
    yet, that it overlaps most, if by at least `threshold`. Precision is made monotone.

    Parameters
    ----------
    found, truth : sequence of Boxes
        Detections, with scores, and objects of each scene.
    label : int
        The class.
    threshold : float
        Least intersection over union from above.

    Returns
    -------
    float
        0 to 1; NaN if the class has no object.

    Raises
    ------
    ValueError
        If the sequences differ in length, or detections have no scores.

    Examples
    --------
    >>> car = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]])
    >>> truth = [Boxes(car, torch.tensor([0]))]
    >>> found = [Boxes(car.repeat(2, 1), torch.tensor([0, 0]), torch.tensor([0.9, 0.8]))]
    >>> average_precision(found, truth, label=0)
    1.0
    """
    if len(found) != len(truth):
        raise ValueError(f"expected as many scenes found as true, got {len(found)}, {len(truth)}")
    scores: list[Tensor] = []
    correct: list[Tensor] = []
    objects = 0
    for scene, real in zip(found, truth, strict=True):
        if scene.scores is None:
            raise ValueError("expected detections with scores, got None")
        mine = scene.labels == label
        order = scene.scores[mine].argsort(descending=True, stable=True)
        targets = real.boxes[real.labels == label]
        objects += len(targets)
        scores.append(scene.scores[mine][order])
        correct.append(_matches(bev_iou(scene.boxes[mine][order], targets), threshold))
    if not objects:
        return float("nan")
    right = torch.cat(correct)[torch.cat(scores).argsort(descending=True, stable=True)].double()
    hits = right.cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    best = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    return float((best * right).sum() / objects)


def _matches(overlaps: Tensor, threshold: float) -> Tensor:
    """Which detections [K], best first, match an object of their own, given their [K, M] IoU."""
    matched = torch.zeros(len(overlaps), dtype=torch.bool)
    free = overlaps.clone()
    for place in range(len(overlaps) if overlaps.shape[1] else 0):
        overlap, target = free[place].max(0)
        if overlap >= threshold:
            matched[place] = True
            free[:, target] = -1.0
    return matched
