"""A ReLU network over a box of inputs, as a mixed-integer linear program."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import highspy
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from gossamer.dynamics.piecewise_affine import PiecewiseAffine
from gossamer.dynamics.relu_program import ReluColumns, ReluProgram
from gossamer.dynamics.solvers import quiet_highs

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class MilpModel:
    """A network over a box of inputs as a mixed-integer linear program without a cost.

    Parameters
    ----------
    lp : highspy.HighsLp
    inputs, outputs : ndarray [n], [m] int32
        Columns of x and f(x).
    relus : ReluColumns
    sound : bool
        Whether the bounds are proven, so that no input of the box is cut off.
    """

    lp: highspy.HighsLp
    inputs: Ints
    outputs: Ints
    relus: ReluColumns
    sound: bool

    @property
    def binaries(self) -> int:
        """ReLUs whose sign is open in the box."""
        return int((self.relus.binary >= 0).sum())

    def write(self, path: Path | str) -> None:
        """Write the program as an .mps or .lp file.

        Raises
        ------
        ValueError
            If the name ends otherwise.
        OSError
            If the file cannot be written.
        """
        if Path(path).suffix not in (".mps", ".lp"):
            raise ValueError(f"path: expected a name in .mps or .lp, got {str(path)!r}")
        Path(path).write_bytes(b"")  # HiGHS crashes on a path that cannot be written
        highs = quiet_highs()
        highs.passModel(self.lp)
        highs.writeModel(str(path))


def relu_milp(
    model: PiecewiseAffine | nn.Module,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    bounds: str | ArrayLike = "lp",
) -> MilpModel:
    """Encode a ReLU network over a box of inputs.

    Parameters
    ----------
    model : PiecewiseAffine or nn.Module
        As `PiecewiseAffine.from_module` takes it.
    lower, upper : array [n]
        The box, finite.
    bounds : {"lp", "interval"} or array [B, 2]
        How pre-activations are bounded, see `ReluProgram`; or bounds of your own, such as the
        least and greatest value seen on data. Those are not proven: an input beyond them is cut
        off without a word, and `MilpModel.sound` is False.

    Raises
    ------
    ValueError
        If the box or the bounds are not of the right size, finite and ordered.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> far = relu_milp(net, [100.0, 0.0], [101.0, 1.0])  # where no ReLU changes its mind
    >>> far.binaries, far.sound
    (0, True)
    """
    function = model if isinstance(model, PiecewiseAffine) else PiecewiseAffine.from_module(model)
    low, high = _box("input box", (lower, upper), function.inputs)
    known = None
    if not isinstance(bounds, str):
        known = np.stack(_box("bounds", np.asarray(bounds, float).T, function.relus), 1)
    program = ReluProgram(bounds if isinstance(bounds, str) else "interval")
    x = program.add_columns(low, high)
    relus = program.add_relus(function, x, known)
    outputs = program.add_outputs(function, x, relus)
    return MilpModel(program.lp(), x, outputs, relus, sound=known is None)


def _box(name: str, sides: Sequence[ArrayLike] | Floats, size: int) -> tuple[Floats, Floats]:
    low, high = (np.asarray(side, np.float64) for side in sides)
    if low.shape != (size,) or high.shape != (size,):
        raise ValueError(f"{name}: expected two vectors of {size}, got {low.shape}, {high.shape}")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise ValueError(f"{name}: expected finite numbers, lower <= upper")
    return low, high
