"""Mixed-integer predictive control: the best plan through a network with few ReLUs, proven."""

import time
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from gossamer.dynamics.problem import ControlProblem, Plan, Planner
from gossamer.dynamics.relu_program import BOUNDS, ReluColumns, ReluProgram
from gossamer.dynamics.solvers import SOLVERS, solve
from gossamer.errors import SolverError

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
MISMATCH = 1e-5  # relative; more is a wrong program or a solver that is too loose


@dataclass(frozen=True)
class MixedIntegerController:
    """Plan to optimality: the network's ReLUs become the binaries of a program over the horizon.

    Variables are the keypoints x_t relative to the pusher, the actions u_t, and for each ReLU and
    step what `ReluProgram` says; ``x_t+1 = x_t - u_t + f([x_t, u_t])``. The cost sees
    ``x_t + p_0 + sum u``. ReLUs that cannot change sign within what the actions can reach cost
    nothing, which is why tight bounds decide the speed. Each plan is simulated again in the
    torch model.

    Based on "Model-Based Control with Sparse Neural Dynamics" (arXiv 2312.12791), which used
    Gurobi and bounds seen on data. HiGHS takes no quadratic cost with integers: with it use
    ``KeypointCost(norm=1)``.

    Parameters
    ----------
    problem : ControlProblem
    solver : {"highs", "scip"}
        SCIP needs the extra "scip".
    bounds : {"lp", "interval"}
        How pre-activations are bounded.
    time_limit : float
        Seconds of a plan; what bounds and warm start leave is the solver's.
    gap : float
        Relative gap at which a plan counts as optimal.
    warm_start : Planner, optional
        Whose plan the solver starts from (paper: sampling).

    Raises
    ------
    ValueError
        If a parameter is refused, or the cost is quadratic and the solver HiGHS.

    Examples
    --------
    >>> from torch import nn
    >>> from gossamer.dynamics import KeypointDynamics
    >>> push = nn.Linear(4, 2, bias=False)
    >>> _ = push.weight.data.copy_(torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]]))
    >>> problem = ControlProblem(KeypointDynamics(push), 2, (-0.3, 0.3))  # it moves with u
    >>> plan = MixedIntegerController(problem).plan([[0, 0], [0, 0]], [[0.5, 0]])
    >>> plan.status, round(plan.objective, 6), np.round(plan.actions[:, 0], 6).tolist()
    ('optimal', 0.1, [0.3, 0.2])
    """

    problem: ControlProblem
    solver: str = "highs"
    bounds: str = "lp"
    time_limit: float = 60.0
    gap: float = 1e-3
    warm_start: Planner | None = None

    def __post_init__(self) -> None:
        for name, known in (("solver", [*SOLVERS]), ("bounds", [*BOUNDS])):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.solver == "highs" and self.problem.cost.norm == 2:
            raise ValueError(
                "solver: expected 'scip' for a quadratic cost, got 'highs'; or try "
                "KeypointCost(norm=1)"
            )
        if not 0 < self.time_limit < inf:
            raise ValueError(f"time_limit: expected a number above 0, got {self.time_limit}")
        if not 0 <= self.gap < 1:
            raise ValueError(f"gap: expected 0 <= gap < 1, got {self.gap}")

    def plan(self, state: ArrayLike, goal: ArrayLike) -> Plan:
        """Plan from a state [1 + k, 2] towards a goal [k, 2].

        Raises
        ------
        SolverError
            If no plan was found in time, or the model does not reproduce the solver's cost.
        """
        begin = time.perf_counter()
        start, target = self.problem.check(state, goal)
        program = _Program(self.problem, self.bounds, start.numpy(), target.numpy())
        values = None
        if self.warm_start is not None:
            values = program.values(self.warm_start.plan(state, goal).actions)
        solution = solve(
            program.milp.lp(),
            quadratic=program.quadratic(),
            solver=self.solver,
            time_limit=max(1e-3, self.time_limit - (time.perf_counter() - begin)),
            gap=self.gap,
            start=values,
        )
        actions = solution.values[program.actions].clip(self.problem.low, self.problem.high)
        states = self.problem.dynamics.rollout(start, torch.from_numpy(actions))
        cost = float(self.problem.cost(states[:, 1:], target))
        mismatch = abs(cost - solution.objective)
        if mismatch > MISMATCH * max(1.0, abs(cost)):
            raise SolverError(
                f"expected the model to reproduce the plan's cost {solution.objective:g}, got "
                f"{cost:g}; try bounds='lp' or another solver"
            )
        return Plan(
            actions=actions,
            objective=solution.objective,
            bound=solution.bound,
            gap=(solution.objective - solution.bound) / max(abs(solution.objective), 1e-12),
            status=solution.status,
            seconds=time.perf_counter() - begin,
            states=states.numpy(),
            mismatch=mismatch,
            binaries=program.milp.binaries,
        )


class _Program:
    """The program of one plan, and where in it everything is."""

    def __init__(self, problem: ControlProblem, bounds: str, state: Floats, goal: Floats) -> None:
        self.problem, self.state, self.goal = problem, state, goal
        self.milp = milp = ReluProgram(bounds)
        now = (state[1:] - state[0]).ravel()
        seen, actions = [milp.add_columns(now, now)], []  # x_0, x_1, ...; u_0, u_1, ...
        self.relus: list[ReluColumns] = []
        for _ in range(problem.horizon):
            actions.append(milp.add_columns(problem.low, problem.high))
            inputs = np.concatenate([seen[-1], actions[-1]])
            self.relus.append(milp.add_relus(problem.step, inputs))
            seen.append(milp.add_outputs(problem.step, inputs, self.relus[-1]))
        self.seen, self.actions = np.array(seen), np.array(actions)
        self.errors = np.array([self._add_error(t) for t in range(1, problem.horizon + 1)])

    def _add_error(self, step: int) -> Ints:
        """Add what keypoints are off by at a step, or at least that by magnitude for L1."""
        milp, size = self.milp, self.seen.shape[1]
        absolute = self.problem.cost.norm == 1
        weight = self.problem.cost.weights(self.problem.horizon)[step - 1] if absolute else 0.0
        free = np.full(size, inf)
        errors = milp.add_columns(np.zeros(size) if absolute else -free, free, cost=weight)
        moved = np.tile(np.eye(2), (size // 2, step))  # x_t + sum u, then minus goal - p_0
        reached = np.hstack([np.eye(size), moved])
        columns = np.concatenate([self.seen[step], self.actions[:step].ravel(), errors])
        aim = (self.goal - self.state[0]).ravel()
        above = free if absolute else -aim
        milp.add_rows(np.hstack([-reached, np.eye(size)]), columns, -aim, above)
        if absolute:
            milp.add_rows(np.hstack([reached, np.eye(size)]), columns, aim, free)
        return errors

    def quadratic(self) -> Floats:
        """Weights of squares."""
        weights = np.zeros(self.milp.columns)
        if self.problem.cost.norm == 2:
            weights[self.errors] = self.problem.cost.weights(self.problem.horizon)[:, None]
        return weights

    def values(self, actions: Floats) -> Floats:
        """Return all variables [columns] for given actions [N, 2]."""
        values, step = np.zeros(self.milp.columns), self.problem.step
        x, pusher = (self.state[1:] - self.state[0]).ravel(), self.state[0]
        values[self.seen[0]], values[self.actions] = x, actions
        for t, relus in enumerate(self.relus):
            inputs = np.append(x, actions[t])
            y = step.preactivations(inputs)
            values[relus.post] = np.maximum(y, 0)
            open_ = relus.binary >= 0
            values[relus.binary[open_]] = y[open_] > 0
            x, pusher = step(inputs), pusher + actions[t]
            off = x + np.tile(pusher, len(x) // 2) - self.goal.ravel()
            values[self.seen[t + 1]] = x
            values[self.errors[t]] = np.abs(off) if self.problem.cost.norm == 1 else off
        return values
