"""LiDAR-like scenes: rays cast at cars, pedestrians and cyclists on a plane."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

CLASSES = ("car", "pedestrian", "cyclist")
RANGE = (-20.0, -20.0, -2.0, 20.0, 20.0, 2.0)  # metres; the ground is at -1.8
SENSOR = 1.8  # height over the ground, metres; the sensor is the origin
ELEVATION = (-25.0, 3.0)  # degrees
NOISE = 0.02  # metres along the ray
DROP_OUT = 0.1
LEAST_POINTS = 5  # objects hit by fewer points are no labels
# length, width, height in metres: mean and spread
_SIZES = torch.tensor(
    [
        [[4.5, 1.85, 1.6], [0.4, 0.1, 0.1]],
        [[0.6, 0.6, 1.7], [0.06, 0.06, 0.1]],
        [[1.75, 0.6, 1.7], [0.1, 0.06, 0.1]],
    ]
)
_FRAME = 0.6  # a cyclist's bicycle is a box of so much of the height, 0.2 m wide


@dataclass(frozen=True, eq=False)
class LidarScene:
    """A point cloud and the objects in it.

    Parameters
    ----------
    points : Tensor [P, 3] float32
        x, y, z in metres, as a sensor at the origin sees them.
    boxes : Tensor [M, 7] float32
        x, y, z of the centre, length, width, height, and yaw in radians.
    labels : Tensor [M] int64
        Places in `CLASSES`.
    hits : Tensor [M] int64
        Points on each object, at least 5.
    """

    points: Tensor = field(repr=False)
    boxes: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    hits: Tensor = field(repr=False)


def lidar_scene(seed: int, *, beams: int = 32, azimuths: int = 720) -> LidarScene:
    """Cast rays into a 40 x 40 m scene of 5 to 15 objects that do not touch each other.

    A ray returns its nearest hit within the scene: of a car's box, a pedestrian's upright cylinder,
    a cyclist's cylinder on a thin box, or the ground. Ranges have noise of 2 cm and a tenth of the
    returns is lost. Objects that return fewer than 5 points stay in the scene, without a label.

    Parameters
    ----------
    seed : int
    beams, azimuths : int
        Rays in elevation (-25 to 3 degrees) and around.

    Returns
    -------
    LidarScene

    Raises
    ------
    ValueError
        If a count is less than 1.

    Examples
    --------
    >>> scene = lidar_scene(0)
    >>> len(scene.boxes) == len(scene.labels) <= 15, bool((scene.hits >= 5).all())
    (True, True)
    >>> torch.equal(scene.points, lidar_scene(0).points)
    True
    """
    if beams < 1 or azimuths < 1:
        raise ValueError(f"expected beams and azimuths >= 1, got {beams} and {azimuths}")
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = _place(generator)
    rays = _rays(beams, azimuths, generator)
    # Shapes: a box for cars and bicycles, a cylinder for people, none where infinite.
    distance = torch.stack([_to_box(rays, boxes, labels), _to_cylinder(rays, boxes, labels)])
    nearest = distance.amin(0)  # [rays, objects]
    ground = torch.where(rays[:, 2] < 0, -SENSOR / rays[:, 2], torch.inf)
    reached, owner = torch.cat([ground[:, None], nearest], 1).min(1)
    kept = reached.isfinite() & (torch.rand(len(rays), generator=generator) >= DROP_OUT)
    noise = NOISE * torch.randn(len(rays), generator=generator)
    points = rays * (reached + noise)[:, None]
    kept &= (points[:, :2].abs() < RANGE[3]).all(1)
    hits = torch.bincount(owner[kept], minlength=len(boxes) + 1)[1:]
    seen = hits >= LEAST_POINTS
    return LidarScene(points[kept], boxes[seen], labels[seen], hits[seen])


def _place(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw objects one after the other, where their circles are free."""
    count = int(torch.randint(5, 16, (), generator=generator))
    placed: list[Tensor] = []
    labels: list[int] = []
    while len(placed) < count:
        label = int(torch.randint(len(CLASSES), (), generator=generator))
        mean, spread = _SIZES[label]
        size = mean + spread * (2 * torch.rand(3, generator=generator) - 1)
        if label == 1:
            size[1] = size[0]
        where = 36 * torch.rand(2, generator=generator) - 18
        yaw = 2 * torch.pi * torch.rand(1, generator=generator) - torch.pi
        radius = float(size[:2].norm()) / 2
        others = ((other[:2] - where).norm() - other[3:5].norm() / 2 for other in placed)
        if float(where.norm()) < 3 + radius or any(float(gap) < radius + 0.3 for gap in others):
            continue
        height = size[2:] / 2 - SENSOR
        placed.append(torch.cat([where, height, size, yaw]))
        labels.append(label)
    return torch.stack(placed), torch.tensor(labels)


def _rays(beams: int, azimuths: int, generator: torch.Generator) -> Tensor:
    """Return unit directions [beams * azimuths, 3]; the sensor's first azimuth is drawn."""
    low, high = (angle * torch.pi / 180 for angle in ELEVATION)
    elevation = torch.linspace(low, high, beams)[:, None]
    turn = torch.rand(1, generator=generator) + torch.arange(azimuths)
    azimuth = turn * (2 * torch.pi / azimuths)
    level = elevation.cos()
    parts = level * azimuth.cos(), level * azimuth.sin(), elevation.sin().expand(-1, azimuths)
    return torch.stack(parts, -1).flatten(0, 1)


def _to_box(rays: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return how far along each ray a car or a bicycle is, [rays, objects], by slabs."""
    half = boxes[:, 3:6] / 2
    cyclist = labels == 2
    half[cyclist, 1] = 0.1
    centre = boxes[:, :3].clone()
    centre[cyclist, 2] -= half[cyclist, 2] * (1 - _FRAME)
    half[cyclist, 2] *= _FRAME
    cosine, sine = boxes[:, 6].cos(), boxes[:, 6].sin()
    zero, one = torch.zeros_like(sine), torch.ones_like(sine)
    turn = torch.stack([cosine, sine, zero, -sine, cosine, zero, zero, zero, one], 1)
    turn = turn.view(-1, 3, 3)  # from the scene's axes to the box's
    origin = -(turn @ centre[..., None])[..., 0]  # of the rays, [objects, 3]
    direction = torch.einsum("oij,rj->roi", turn, rays)
    direction = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    sides = torch.stack([(-half - origin) / direction, (half - origin) / direction])
    enter, leave = sides.amin(0).amax(-1), sides.amax(0).amin(-1)
    hit = (enter > 0) & (enter <= leave) & (labels != 1)
    return torch.where(hit, enter, torch.inf)


def _to_cylinder(rays: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return how far along each ray a person's upright cylinder is, [rays, objects]."""
    radius = torch.where(labels == 2, 0.25, boxes[:, 4] / 2)
    level = rays[:, :2].square().sum(1, keepdim=True).clamp(min=1e-12)
    along = rays[:, :2] @ boxes[:, :2].T
    rest = boxes[:, :2].square().sum(1) - radius.square()
    inside = along.square() - level * rest
    distance = (along - inside.clamp(min=0).sqrt()) / level
    height = rays[:, 2:] * distance - boxes[:, 2]
    hit = (inside >= 0) & (distance > 0) & (height.abs() <= boxes[:, 5] / 2) & (labels != 0)
    return torch.where(hit, distance, torch.inf)
