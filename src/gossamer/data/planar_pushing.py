"""A box on a table and a round pusher: a small contact-rich task, simulated with pymunk."""

from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import gymnasium as gym
    import pymunk
except ImportError as error:
    raise ImportError(
        "pushing needs pymunk and gymnasium: pip install 'gossamer[control]'"
    ) from error

Floats = NDArray[np.float64]
PIXELS = 100.0  # in one unit of what is observed and done
SIDE, RADIUS = 50.0, 5.0  # of the box and of the pusher, in pixels
REACH = 0.3  # of an action, along each axis
SUBSTEPS = 60  # of an action, which takes a second
_NEAR = 0.3  # farthest that a random push starts from the box
TABLE = 1.2  # half the side of what is rendered
_IMAGE = 240  # pixels of a rendering's side
_GROUND, _GOAL, _BOX, _DISC = (250, 250, 248), (190, 222, 190), (70, 110, 170), (200, 80, 50)


class PlanarPushing(gym.Env[Floats, Floats]):
    """Push a box over a table until its corners are where they should be.

    A disc of radius 5 px and mass 1e7 (friction 0.6) pushes a square of 50 px and mass 0.5
    (friction 0.1). There is no gravity, and speeds decay to 1e-4 within a second, so that the box
    stops where it is left: the box pushing of BaB-ND's release. All that is observed and done is
    in units of 100 px.

    An action [2] is the pusher's displacement, at most 0.3 in x and in y. An observation [5, 2]
    holds the pusher, then the four corners, always in the same order around the box. The reward
    is the negative mean distance of the corners from the goal's. Episodes end by truncation.

    Parameters
    ----------
    max_steps : int
        Actions in an episode.
    render_mode : {"rgb_array"}, optional

    Attributes
    ----------
    goal : ndarray [4, 2]
        Where the corners should be: a box at the origin, upright.

    Raises
    ------
    ValueError
        If a parameter, an option of `reset` or an action is refused.

    Examples
    --------
    >>> env = PlanarPushing()
    >>> start, _ = env.reset(options={"pusher": [-0.35, 0.0], "box": [0.0, 0.0, 0.0]})
    >>> after, reward, *_ = env.step(np.array([0.3, 0.0]))
    >>> np.round(after[0], 2).tolist(), round(-reward, 2)  # there are 0.05 between them at first
    ([-0.05, 0.0], 0.24)
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012, as gymnasium's

    def __init__(self, *, max_steps: int = 20, render_mode: str | None = None) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected 'rgb_array' or None, got {render_mode!r}")
        self.max_steps, self.render_mode = max_steps, render_mode
        self.action_space = gym.spaces.Box(-REACH, REACH, (2,), np.float64)
        self.observation_space = gym.spaces.Box(-100.0, 100.0, (5, 2), np.float64)
        self.goal = box_corners(0.0, 0.0, 0.0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Put the box 0.3 to 0.5 from the goal, turned by up to 0.5, and the pusher behind it.

        Parameters
        ----------
        seed : int, optional
        options : dict, optional
            ``"box"``: x, y and angle, ``"pusher"``: x and y, instead of random ones.
        """
        super().reset(seed=seed)
        wanted = options or {}
        if unknown := wanted.keys() - {"box", "pusher"}:
            raise ValueError(f"options: expected 'box' and 'pusher', got {sorted(unknown)}")
        away = self.np_random.uniform(-pi, pi)
        distance, turn, aside = self.np_random.uniform([0.3, -0.5, -0.3], [0.5, 0.5, 0.3])
        box = np.array([distance * cos(away), distance * sin(away), turn])
        box = _vector("box", wanted.get("box", box), 3)
        behind = box[:2] + 0.45 * np.array([cos(away + aside), sin(away + aside)])
        self._place(_vector("pusher", wanted.get("pusher", behind), 2), box)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: ArrayLike) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Move the pusher by `action` [2] in 60 steps of 1/60 s, pushing what is in its way."""
        way = _vector("action", action, 2)
        if np.abs(way).max() > REACH + 1e-9:
            raise ValueError(
                f"action: expected at most {REACH} in x and in y, got {way}; try np.clip"
            )
        for _ in range(SUBSTEPS):
            self._pusher.velocity = tuple(way * PIXELS)
            self._space.step(1 / SUBSTEPS)
        self._steps += 1
        observed = self._observe()
        reward = -float(np.linalg.norm(observed[1:] - self.goal, axis=1).mean())
        return observed, reward, False, self._steps >= self.max_steps, {}

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the table [240, 240, 3] from above, y upwards, or None without a render mode."""
        if self.render_mode is None:
            return None
        centres = (np.arange(_IMAGE) + 0.5) / _IMAGE * 2 * TABLE - TABLE
        points = np.stack(np.meshgrid(centres, centres[::-1]), -1)  # [H, W, 2]
        image = np.full((_IMAGE, _IMAGE, 3), _GROUND, np.uint8)
        pusher, *corners = self._observe()
        image[_inside(points, self.goal)] = _GOAL
        image[_inside(points, np.array(corners))] = _BOX
        image[np.linalg.norm(points - pusher, axis=-1) <= RADIUS / PIXELS] = _DISC
        return image

    def _place(self, pusher: Floats, box: Floats) -> None:
        """Build the table anew: a used one remembers old contacts, and would not repeat itself."""
        self._space = pymunk.Space()
        self._space.damping = 1e-4
        self._pusher = pymunk.Body(1e7, float("inf"))  # it does not turn
        disc = pymunk.Circle(self._pusher, RADIUS)
        disc.friction = 0.6
        self._box = pymunk.Body(0.5, pymunk.moment_for_box(0.5, (SIDE, SIDE)))
        square = pymunk.Poly.create_box(self._box, (SIDE, SIDE))
        square.friction = 0.1
        self._pusher.position = tuple(pusher * PIXELS)
        self._box.position, self._box.angle = tuple(box[:2] * PIXELS), float(box[2])
        self._space.add(self._pusher, disc, self._box, square)

    def _observe(self) -> Floats:
        x, y = self._box.position
        corners = box_corners(x / PIXELS, y / PIXELS, self._box.angle)
        return np.vstack([np.array(self._pusher.position) / PIXELS, corners])


@dataclass(frozen=True, eq=False)
class Pushes:
    """Single pushes: states [N, 5, 2] before and after, and actions [N, 2], in float64."""

    states: Floats
    actions: Floats
    after: Floats


def random_pushes(count: int, *, seed: int) -> Pushes:
    """Push boxes at any angle from anywhere near them: three in four towards them, or anywhere.

    Parameters
    ----------
    count : int
    seed : int

    Raises
    ------
    ValueError
        If `count` is less than 1.

    Examples
    --------
    >>> pushes = random_pushes(50, seed=0)
    >>> moved = np.abs(pushes.after - pushes.states)[:, 1:].max((1, 2)) > 1e-3
    >>> pushes.actions.shape, 0.3 < float(moved.mean()) < 0.7
    ((50, 2), True)
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    random, env = np.random.default_rng(seed), PlanarPushing()
    states, actions, after = np.empty((count, 5, 2)), np.empty((count, 2)), np.empty((count, 5, 2))
    for row in range(count):
        box = np.array([0.0, 0.0, random.uniform(-pi, pi)])
        pusher = random.uniform(-0.6, 0.6, 2)
        while not RADIUS / PIXELS < _distance(pusher, box[2]) < _NEAR:
            pusher = random.uniform(-0.6, 0.6, 2)
        states[row], _ = env.reset(options={"pusher": pusher, "box": box})
        action = random.uniform(-REACH, REACH, 2)
        if row % 4:  # most go for the box
            action = np.clip(random.uniform(-0.25, 0.25, 2) - pusher, -REACH, REACH)
            action *= random.uniform(0.3, 1.0)
        actions[row] = action
        after[row], *_ = env.step(action)
    return Pushes(states, actions, after)


def quarter_turns(pushes: Pushes) -> Pushes:
    """Return the pushes and what they are after 90, 180 and 270 degrees: the table looks the same.

    Examples
    --------
    >>> state = np.ones((1, 5, 2))
    >>> turned = quarter_turns(Pushes(state, np.array([[0.3, 0.0]]), state))
    >>> turned.actions.tolist()
    [[0.3, 0.0], [0.0, 0.3], [-0.3, 0.0], [0.0, -0.3]]
    """

    def turned(vectors: Floats) -> Floats:
        parts = [vectors]
        for _ in range(3):
            last = parts[-1]
            parts.append(np.stack([0.0 - last[..., 1], last[..., 0]], -1))
        return np.concatenate(parts)

    return Pushes(turned(pushes.states), turned(pushes.actions), turned(pushes.after))


def box_corners(x: float, y: float, angle: float) -> Floats:
    """Return the corners [4, 2] of a box at (x, y), turned by `angle`, anticlockwise.

    Examples
    --------
    >>> box_corners(1.0, 0.0, 0.0).tolist()
    [[0.75, -0.25], [1.25, -0.25], [1.25, 0.25], [0.75, 0.25]]
    """
    half = SIDE / PIXELS / 2
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    turn = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    return corners @ turn.T + [x, y]


def _distance(point: Floats, angle: float) -> float:
    """Distance of a point from a box at the origin."""
    turn = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    beyond = np.abs(point @ turn) - SIDE / PIXELS / 2
    return float(np.linalg.norm(np.maximum(beyond, 0)))


def _inside(points: Floats, corners: Floats) -> NDArray[np.bool_]:
    """Which points [..., 2] lie left of all edges of an anticlockwise polygon."""
    edges = np.roll(corners, -1, 0) - corners
    offset = points[..., None, :] - corners
    left: NDArray[np.bool_] = edges[:, 0] * offset[..., 1] - edges[:, 1] * offset[..., 0] >= 0
    return np.logical_and.reduce(left, axis=-1)


def _vector(name: str, value: ArrayLike, size: int) -> Floats:
    vector = np.asarray(value, np.float64)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise ValueError(f"{name}: expected {size} finite numbers, got {value!r}")
    return vector
