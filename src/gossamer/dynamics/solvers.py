"""Mixed-integer solvers behind one function: HiGHS, and SCIP where a cost is quadratic."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray

from gossamer.errors import SolverError

Floats = NDArray[np.float64]
FEASIBILITY = 1e-8  # of integers too: a binary off by e moves a state by e times its big M


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    Parameters
    ----------
    values : ndarray [columns]
    objective, bound : float
        Of the best solution, and what no solution can be below.
    status : {"optimal", "time_limit"}
        Whether the gap was closed.
    seconds : float
    """

    values: Floats
    objective: float
    bound: float
    status: str
    seconds: float


@dataclass(frozen=True, eq=False)
class _Problem:
    lp: highspy.HighsLp
    quadratic: Floats
    time_limit: float
    gap: float
    start: Floats | None


def solve(
    lp: highspy.HighsLp,
    *,
    quadratic: Floats,
    solver: str,
    time_limit: float,
    gap: float,
    start: Floats | None = None,
) -> Solution:
    """Minimise the cost of a mixed-integer program plus ``sum(quadratic * x^2)``, on one thread.

    Parameters
    ----------
    lp : highspy.HighsLp
    quadratic : ndarray [columns]
        Weights of squares, all zero for HiGHS.
    solver : {"highs", "scip"}
    time_limit : float
        Seconds.
    gap : float
        Relative difference of objective and bound at which a solution counts as optimal.
    start : ndarray [columns], optional
        A solution to begin with.

    Raises
    ------
    SolverError
        If there is no solution, or none was found in time.
    """
    begin = time.perf_counter()
    values, objective, bound, status = SOLVERS[solver](
        _Problem(lp, quadratic, time_limit, gap, start)
    )
    return Solution(values, objective, bound, status, time.perf_counter() - begin)


def quiet_highs() -> highspy.Highs:
    """Return an empty HiGHS on one thread, with a fixed seed and tight tolerances."""
    highs = highspy.Highs()
    for option, value in {
        "output_flag": False,
        "threads": 1,
        "random_seed": 0,
        "primal_feasibility_tolerance": FEASIBILITY,
        "mip_feasibility_tolerance": FEASIBILITY,
    }.items():
        highs.setOptionValue(option, value)
    return highs


def _highs(problem: _Problem) -> tuple[Floats, float, float, str]:
    highs = quiet_highs()  # a new one: the time limit counts all that an instance ever ran
    highs.setOptionValue("time_limit", problem.time_limit)
    highs.setOptionValue("mip_rel_gap", problem.gap)
    highs.passModel(problem.lp)
    if problem.start is not None:
        highs.setSolution(len(problem.start), np.arange(len(problem.start)), problem.start)
    highs.run()
    status, info = highs.getModelStatus(), highs.getInfo()
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    names = {
        highspy.HighsModelStatus.kOptimal: "optimal",
        highspy.HighsModelStatus.kTimeLimit: "time_limit",
    }
    if status not in names or not found:
        raise SolverError(f"HiGHS ended without a solution: {highs.modelStatusToString(status)}")
    values = np.array(highs.getSolution().col_value)
    return values, info.objective_function_value, info.mip_dual_bound, names[status]


def _scip(problem: _Problem) -> tuple[Floats, float, float, str]:
    try:
        import pyscipopt
    except ImportError as error:
        raise ImportError("solver='scip' needs PySCIPOpt: pip install 'gossamer[scip]'") from error
    lp, scip = problem.lp, pyscipopt.Model()
    scip.hideOutput()
    scip.setParams({"limits/time": problem.time_limit, "limits/gap": problem.gap})
    scip.setParams({"numerics/feastol": FEASIBILITY, "randomization/randomseedshift": 0})
    kinds = ["C" if kind == highspy.HighsVarType.kContinuous else "I" for kind in lp.integrality_]
    columns = [
        scip.addVar(vtype=kind, lb=_finite(low), ub=_finite(high))
        for kind, low, high in zip(kinds, lp.col_lower_, lp.col_upper_, strict=True)
    ]
    terms: list[list[Any]] = [[] for _ in lp.row_lower_]
    for row, column, value in _entries(lp):
        terms[row].append(value * columns[column])
    for term, low, high in zip(terms, lp.row_lower_, lp.row_upper_, strict=True):
        left = pyscipopt.quicksum(term)
        if low == high:
            scip.addCons(left == low)
            continue
        if low > -inf:
            scip.addCons(left >= low)
        if high < inf:
            scip.addCons(left <= high)
    squares = scip.addVar(lb=0.0, obj=1.0)  # SCIP's objective is linear
    weighted = np.flatnonzero(problem.quadratic)
    scip.addCons(
        pyscipopt.quicksum(problem.quadratic[i] * columns[i] * columns[i] for i in weighted)
        <= squares
    )
    linear = pyscipopt.quicksum(c * columns[i] for i, c in enumerate(lp.col_cost_) if c)
    scip.setObjective(linear + squares)
    if problem.start is not None:
        start = scip.createSol()
        for column, value in zip(columns, problem.start, strict=True):
            scip.setSolVal(start, column, float(value))
        scip.setSolVal(start, squares, float(problem.quadratic @ problem.start**2))
        scip.addSol(start)
    scip.optimize()
    status = {"optimal": "optimal", "gaplimit": "optimal", "timelimit": "time_limit"}
    if scip.getStatus() not in status or not scip.getNSols():
        raise SolverError(f"SCIP ended without a solution: {scip.getStatus()}")
    found = np.array([scip.getVal(column) for column in columns])
    return found, scip.getObjVal(), scip.getDualbound(), status[scip.getStatus()]


def _entries(lp: highspy.HighsLp) -> Iterator[tuple[int, int, float]]:
    """Rows, columns and values of the matrix, which HiGHS stores either way round."""
    matrix = lp.a_matrix_
    lines = np.repeat(np.arange(len(matrix.start_) - 1), np.diff(matrix.start_)).tolist()
    rows, columns = lines, matrix.index_
    if matrix.format_ == highspy.MatrixFormat.kColwise:
        rows, columns = columns, lines
    return zip(rows, columns, matrix.value_, strict=True)


def _finite(bound: float) -> float | None:
    return bound if abs(bound) < inf else None


SOLVERS: dict[str, Callable[[_Problem], tuple[Floats, float, float, str]]] = {
    "highs": _highs,
    "scip": _scip,
}
