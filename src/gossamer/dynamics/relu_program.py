"""Mixed-integer programs that grow by ReLU networks, with bounds that spare binaries."""

from dataclasses import dataclass
from math import inf

import highspy
import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.dynamics.piecewise_affine import PiecewiseAffine
from gossamer.dynamics.solvers import quiet_highs
from gossamer.errors import SolverError

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
BOUNDS = ("lp", "interval")
_SLACK = 1e-6  # that a bound is widened by: linear programs are solved to 1e-8 only


@dataclass(frozen=True, eq=False)
class ReluColumns:
    """Where the ReLUs of one copy of a network are in a program.

    Parameters
    ----------
    post, binary : ndarray [B] int32
        Columns of s = max(y, 0), and of z = [y > 0]; -1 where no binary is needed.
    bounds : ndarray [B, 2]
        Lower and upper bounds of y.
    """

    post: Ints
    binary: Ints
    bounds: Floats


class ReluProgram:
    """A mixed-integer linear program that grows by variables, rows and ReLU networks.

    A ReLU ``s = max(y, 0)`` with l <= y <= u costs a binary z: ``s >= y``, ``s >= 0``,
    ``s <= y - l (1 - z)``, ``s <= u z``. With l >= 0 or u <= 0 it costs none.

    Parameters
    ----------
    bounds : {"lp", "interval"}
        How l and u are found: by two linear programs over the relaxation of all that has been
        added so far, or by interval arithmetic, which is looser and takes no time.

    Examples
    --------
    >>> from torch import nn
    >>> program = ReluProgram()
    >>> x = program.add_columns([-1.0, 0.5], [1.0, 2.0])
    >>> f = PiecewiseAffine.from_module(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    >>> relus = program.add_relus(f, x)
    >>> outputs = program.add_outputs(f, x, relus)
    >>> program.binaries == int((relus.binary >= 0).sum())
    True
    """

    def __init__(self, bounds: str = "lp") -> None:
        if bounds not in BOUNDS:
            raise ValueError(f"bounds: expected one of {', '.join(BOUNDS)}, got {bounds!r}")
        self.bounds = bounds
        self._relaxed = quiet_highs()
        self._low: list[float] = []
        self._high: list[float] = []
        self._cost: list[float] = []
        self._integers: list[int] = []

    @property
    def columns(self) -> int:
        """Variables so far."""
        return len(self._low)

    @property
    def binaries(self) -> int:
        """Variables that must be 0 or 1."""
        return len(self._integers)

    def add_columns(
        self, lower: ArrayLike, upper: ArrayLike, *, cost: float = 0.0, binary: bool = False
    ) -> Ints:
        """Add variables between bounds, all with one cost; return their indices."""
        low, high = np.atleast_1d(lower).astype(float), np.atleast_1d(upper).astype(float)
        new = np.arange(self.columns, self.columns + len(low), dtype=np.int32)
        self._relaxed.addVars(len(low), low, high)
        self._cost += [cost] * len(low)
        self._low += low.tolist()
        self._high += high.tolist()
        if binary:
            self._integers += new.tolist()
        return new

    def add_rows(
        self, matrix: ArrayLike, columns: Ints, lower: ArrayLike, upper: ArrayLike
    ) -> None:
        """Add ``lower <= matrix x[columns] <= upper``, matrix [rows, len(columns)]."""
        for row, low, high in zip(
            np.asarray(matrix, float), np.asarray(lower), np.asarray(upper), strict=True
        ):
            used = np.flatnonzero(row)
            self._relaxed.addRow(float(low), float(high), len(used), columns[used], row[used])

    def interval(self, matrix: Floats, columns: Ints, shift: Floats) -> tuple[Floats, Floats]:
        """Bound ``matrix x[columns] + shift`` by the bounds of each variable."""
        low, high = np.array(self._low)[columns], np.array(self._high)[columns]
        positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
        return (
            _product(positive, low) + _product(negative, high) + shift,
            _product(positive, high) + _product(negative, low) + shift,
        )

    def add_relus(
        self, function: PiecewiseAffine, inputs: Ints, known: Floats | None = None
    ) -> ReluColumns:
        """Add the ReLUs of a network that reads the variables `inputs`.

        Parameters
        ----------
        function : PiecewiseAffine
        inputs : ndarray [n] int32
        known : ndarray [B, 2], optional
            Bounds to take instead of finding any; not checked.
        """
        post, binary = (np.full(function.relus, -1, np.int32) for _ in range(2))
        bounds = np.empty((function.relus, 2))
        for unit in range(function.relus):
            columns = np.concatenate([inputs, post[:unit]])
            row = np.concatenate([function.input_weight[unit], function.hidden_weight[unit, :unit]])
            shift = function.bias[unit]
            low, high = self._bound(row, columns, shift) if known is None else known[unit]
            bounds[unit] = low, high
            post[unit : unit + 1] = s = self.add_columns(max(low, 0.0), max(high, 0.0))
            difference = np.append(-row, 1.0)[None]  # s - (y - shift)
            within = np.append(columns, s).astype(np.int32)
            if low >= 0:
                self.add_rows(difference, within, [shift], [shift])
            elif high > 0:
                binary[unit : unit + 1] = z = self.add_columns(0.0, 1.0, binary=True)
                self.add_rows(difference, within, [shift], [inf])
                capped = np.append(difference, [[-low]], 1)
                self.add_rows(capped, np.append(within, z), [-inf], [shift - low])
                self.add_rows([[1.0, -high]], np.append(s, z), [-inf], [0.0])
        return ReluColumns(post, binary, bounds)

    def add_outputs(self, function: PiecewiseAffine, inputs: Ints, relus: ReluColumns) -> Ints:
        """Add the outputs of a network whose ReLUs are in the program; return their columns."""
        columns = np.concatenate([inputs, relus.post])
        matrix = np.hstack([function.output_input, function.output_hidden])
        shift = function.output_bias
        outputs = self.add_columns(*self.interval(matrix, columns, shift))
        within = np.concatenate([outputs, columns])
        self.add_rows(np.hstack([np.eye(len(matrix)), -matrix]), within, shift, shift)
        return outputs

    def lp(self) -> highspy.HighsLp:
        """Return the program, integers included."""
        kinds = [highspy.HighsVarType.kContinuous] * self.columns
        for column in self._integers:
            kinds[column] = highspy.HighsVarType.kInteger
        lp = self._relaxed.getLp()
        lp.col_cost_, lp.integrality_ = self._cost, kinds
        return lp

    def _bound(self, row: Floats, columns: Ints, shift: float) -> tuple[float, float]:
        """Bound y, by linear programs only where intervals leave its sign open."""
        low, high = (
            float(side[0]) for side in self.interval(row[None], columns, np.array([shift]))
        )
        if self.bounds == "interval" or low >= 0 or high <= 0:
            return low, high
        target = np.zeros(self.columns)
        target[columns] = row
        self._relaxed.changeColsCost(self.columns, np.arange(self.columns, dtype=np.int32), target)
        low = max(low, self._extreme(highspy.ObjSense.kMinimize) + shift - _SLACK)
        high = min(high, self._extreme(highspy.ObjSense.kMaximize) + shift + _SLACK)
        self._relaxed.changeObjectiveSense(highspy.ObjSense.kMinimize)
        return low, high

    def _extreme(self, sense: highspy.ObjSense) -> float:
        self._relaxed.changeObjectiveSense(sense)
        self._relaxed.run()
        status = self._relaxed.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise SolverError(
                f"bound tightening failed: {self._relaxed.modelStatusToString(status)}; try "
                "bounds='interval'"
            )
        return self._relaxed.getInfo().objective_function_value


def _product(matrix: Floats, vector: Floats) -> Floats:
    """Matrix times vector, in which 0 times infinity is 0."""
    return np.where(matrix == 0, 0.0, matrix * np.where(matrix == 0, 0.0, vector)).sum(-1)
