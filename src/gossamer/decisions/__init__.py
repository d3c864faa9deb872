"""Decisions of several agents: joint policies whose dependencies are sparse and learnt.

What is sparse are the edges of a graph over agents, ``i -> j`` where j knows i's action when it
chooses its own. Copy `dag_policy.py` (a policy along such graphs) and `agent_dag.py` (what decides
on the edges, for every state) for another method; games and environments are `games.py`.
"""

from gossamer.decisions.agent_dag import AgentDag, DagNoise, DagSource, FixedDag
from gossamer.decisions.aloha import Aloha
from gossamer.decisions.coordination import TabularCoordinationGame
from gossamer.decisions.dag_policy import DagPolicy, Decision, ParentActor
from gossamer.decisions.dags import (
    edge_density,
    empty_dag,
    full_dag,
    line_dag,
    topological_depth,
)
from gossamer.decisions.density_penalty import DensityPenalty
from gossamer.decisions.games import (
    Environment,
    Game,
    GameBatch,
    Observation,
    Outcome,
    Transition,
)
from gossamer.decisions.mappo import BayesianMAPPO, Progress
from gossamer.decisions.permutations import gumbel_sinkhorn, straight_through_permutation
from gossamer.decisions.popart import PopArt
from gossamer.decisions.rollouts import Evaluation, evaluate
from gossamer.decisions.tabular import (
    Ascent,
    Solution,
    TabularPolicy,
    ascend,
    nash_gap,
    optimal_objective,
    policy_gradient,
    solve,
)

__all__ = [
    "AgentDag",
    "Aloha",
    "Ascent",
    "BayesianMAPPO",
    "DagNoise",
    "DagPolicy",
    "DagSource",
    "Decision",
    "DensityPenalty",
    "Environment",
    "Evaluation",
    "FixedDag",
    "Game",
    "GameBatch",
    "Observation",
    "Outcome",
    "ParentActor",
    "PopArt",
    "Progress",
    "Solution",
    "TabularCoordinationGame",
    "TabularPolicy",
    "Transition",
    "ascend",
    "edge_density",
    "empty_dag",
    "evaluate",
    "full_dag",
    "gumbel_sinkhorn",
    "line_dag",
    "nash_gap",
    "optimal_objective",
    "policy_gradient",
    "solve",
    "straight_through_permutation",
    "topological_depth",
]
