"""Windows of voxels, and sets of one size inside each window, sorted by y and by x."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gossamer.kernels import balanced_sets
from gossamer.kernels.backend import Impl
from gossamer.patterns import TokenSets
from gossamer.spatial.voxels import check_triple

Size = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Windows:
    """The window of each voxel, and where in it the voxel lies.

    Parameters
    ----------
    ids : Tensor [N] int64
        Scenes do not share windows.
    inner : Tensor [N, 3] int64
        (z, y, x) from the window's lower corner.
    size : (int, int, int)
        Voxels along x, y and z.
    """

    ids: Tensor = field(repr=False)
    inner: Tensor = field(repr=False)
    size: Size

    def offsets(self) -> Tensor:
        """Return the (x, y, z) of each voxel from its window's centre, in voxels, float32 [N, 3].

        x and y only, [N, 2], where a window is one voxel high.
        """
        axes = 2 if self.size[2] == 1 else 3
        centre = self.inner.new_tensor(self.size, dtype=torch.float32) / 2
        return (self.inner.flip(1).float() - centre)[:, :axes]


@dataclass(frozen=True, eq=False)
class RotatedSets:
    """Two ways to cut the same windows into sets: along y first, and along x first."""

    y_major: TokenSets
    x_major: TokenSets


def window_partition(coords: Tensor, shape: Size, window: Size, shift: Size = (0, 0, 0)) -> Windows:
    """Tell which window each voxel is in.

    Along each axis a grid of ``ceil(shape / window) + 1`` windows starts `shift` voxels before the
    first voxel: window ``(coord + shift) // window``, inner coordinate the remainder.

    Parameters
    ----------
    coords : Tensor [N, 4] int64
        (scene, z, y, x).
    shape, window, shift : (int, int, int)
        Along x, y and z.

    Returns
    -------
    Windows

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, or a voxel is outside `shape`.

    Examples
    --------
    >>> coords = torch.tensor([[0, 0, 0, 5], [0, 0, 0, 6]])
    >>> window_partition(coords, (8, 8, 1), (6, 6, 1)).ids.diff().tolist()
    [1]
    >>> window_partition(coords, (8, 8, 1), (6, 6, 1), shift=(3, 3, 0)).ids.diff().tolist()
    [0]
    """
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.dtype != torch.int64:
        raise ValueError(f"expected coords int64 [N, 4], got {coords.dtype} {list(coords.shape)}")
    check_triple("shape", shape, least=1)
    check_triple("window", window, least=1)
    check_triple("shift", shift, least=0)
    if any(s > w for s, w in zip(shift, window, strict=True)):
        raise ValueError(f"expected shift <= window, got {tuple(shift)} and {tuple(window)}")
    extent = coords.new_tensor(shape[::-1])
    place = coords[:, 1:]
    if bool(((place < 0) | (place >= extent)).any()) or bool((coords[:, 0] < 0).any()):
        raise ValueError(
            f"expected coords (scene, z, y, x) inside (x, y, z) = {tuple(shape)}, got up to "
            f"{coords.amax(0).tolist()} and down to {coords.amin(0).tolist()}"
        )
    size = coords.new_tensor(window[::-1])
    shifted = place + coords.new_tensor(shift[::-1])
    ids = coords[:, 0]
    places = (shifted // size).unbind(1)
    for at, cells, width in zip(places, shape[::-1], window[::-1], strict=True):
        ids = ids * (-(-cells // width) + 1) + at
    return Windows(ids, shifted % size, window)


def set_partition(windows: Windows, set_size: int, *, impl: Impl = "auto") -> RotatedSets:
    """Cut every window into sets of `set_size` voxels, once along y and once along x.

    Parameters
    ----------
    windows : Windows
    set_size : int
        Slots of a set; a window of n voxels gets ceil(n / set_size) sets, equally full.
    impl : {"auto", "reference", "cpu"}

    Returns
    -------
    RotatedSets
        Of equally many sets.

    Raises
    ------
    ValueError
        If `set_size` is less than 1.

    Examples
    --------
    >>> coords = torch.tensor([[0, 0, y, x] for x in range(2) for y in range(4)])
    >>> sets = set_partition(window_partition(coords, (2, 4, 1), (4, 4, 1)), 4)
    >>> coords[sets.y_major.indices[0], 2:].tolist()  # the first two rows
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    >>> coords[sets.x_major.indices[0], 2:].tolist()  # the first column
    [[0, 0], [1, 0], [2, 0], [3, 0]]
    """
    z, y, x = windows.inner.unbind(1)
    width, depth, height = windows.size
    orders = torch.stack([(y * width + x) * height + z, (x * depth + y) * height + z])
    return RotatedSets(*balanced_sets(windows.ids, orders, size=set_size, impl=impl))
