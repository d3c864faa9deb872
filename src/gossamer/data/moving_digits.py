"""Handwritten digits that slide over real photographs: small videos with a motion to classify."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.data.video import SHOTS, shot

SIZE, SPRITE = 48, 16
DIRECTIONS = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])  # right, left, down, up
GROUPS = ((1, 4, 7), (0, 6, 8))  # strokes, loops
CLASSES = len(DIRECTIONS) * len(GROUPS)
# No photograph and no digit image serves both to train and to test.
_TEST_SHOTS = ("street", "carphone")


@dataclass(frozen=True, eq=False)
class MovingDigits:
    """Labelled clips.

    Parameters
    ----------
    video : Tensor [N, T, 2, 48, 48] float32
        Each frame in grey, 0..1, and the frame before it.
    labels : Tensor [N] int64
        ``2 * direction + group``.
    """

    video: Tensor
    labels: Tensor


class DigitClips:
    """Draws clips: a standing camera, a real background, and one digit that moves.

    Parameters
    ----------
    split : {"train", "test"}
        Which photographs and digit images.
    seed : int

    Raises
    ------
    ValueError
        If there is no such split.
    ImportError
        If a package of the extra "video" is missing.

    Examples
    --------
    >>> clips = DigitClips("train", seed=0).draw(4, frames=3)
    >>> clips.video.shape, bool((clips.labels < CLASSES).all())
    (torch.Size([4, 3, 2, 48, 48]), True)
    """

    def __init__(self, split: str, *, seed: int) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"expected split to be 'train' or 'test', got {split!r}")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                "digits need scikit-learn, try: pip install 'gossamer[video]'"
            ) from error
        test = split == "test"
        images, targets = load_digits(return_X_y=True)
        images = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
        images = F.interpolate(images, scale_factor=SPRITE // 8, mode="bilinear")[:, 0]
        targets = torch.from_numpy(targets)
        mine = (torch.arange(len(targets)) % 5 == 0) == test
        self._digits = [images[mine & torch.isin(targets, torch.tensor(group))] for group in GROUPS]
        names = [name for name in SHOTS if (name in _TEST_SHOTS) == test]
        self._photographs = [shot(name).frames[::16].float().mean(1) / 255 for name in names]
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int, *, frames: int = 8) -> MovingDigits:
        """Return `count` clips of `frames` frame pairs."""
        if count < 1 or frames < 1:
            raise ValueError(f"expected count and frames >= 1, got {count} and {frames}")
        direction, group = self._integers(4, count), self._integers(2, count)
        speed = 1 + self._integers(2, count)
        digits = torch.stack([self._pick(self._digits[g]) for g in group.tolist()])
        still = torch.stack([self._crop() for _ in range(count)])  # [N, 48, 48]

        # The digit's way is centred at random, so that its place says nothing of its direction.
        time = torch.arange(frames + 1) - frames // 2
        centre = SPRITE + self._integers(SIZE - 2 * SPRITE, count, 2) - SPRITE // 2 + 4
        way = DIRECTIONS[direction] * speed[:, None]
        corner = (centre[:, None] + way[:, None] * time[:, None]) % SIZE  # [N, T + 1, 2]
        place = torch.arange(SPRITE)
        rows = ((corner[..., :1] + place) % SIZE)[..., :, None]
        columns = ((corner[..., 1:] + place) % SIZE)[..., None, :]
        clip = torch.arange(count)[:, None, None, None]
        moment = torch.arange(frames + 1)[None, :, None, None]
        alpha = torch.zeros(count, frames + 1, SIZE, SIZE)
        alpha[clip, moment, rows, columns] = digits[:, None].expand(-1, frames + 1, -1, -1)
        video = still[:, None] * (1 - alpha) + alpha
        pairs = torch.stack([video[:, 1:], video[:, :-1]], 2)
        return MovingDigits(pairs, 2 * direction + group)

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self._generator)

    def _pick(self, images: Tensor) -> Tensor:
        return images[int(self._integers(len(images), 1))]

    def _crop(self) -> Tensor:
        """Return a random 48 x 48 piece of a photograph, dimmed so that digits stand out."""
        photograph = self._pick(self._photographs[int(self._integers(len(self._photographs), 1))])
        top, left = (int(self._integers(size - SIZE + 1, 1)) for size in photograph.shape)
        return 0.7 * photograph[top : top + SIZE, left : left + SIZE]
