"""The penalty follows the paper's schedule and pushes the density towards its target."""

import pytest
import torch

from gossamer.decisions import AgentDag, DensityPenalty, edge_density, full_dag, line_dag
from gossamer.schedules import Constant


def test_the_target_falls_from_40_to_70_percent_and_then_the_weight_grows():
    penalty = DensityPenalty.annealed(1000, weight=0.05, final_weight=0.5)
    assert [round(penalty.target(step), 6) for step in (0, 400, 550, 700, 1000)] == [
        1,
        1,
        0.5,
        0,
        0,
    ]
    assert [round(penalty.weight(step), 6) for step in (0, 700, 850, 1000)] == [
        0.05,
        0.05,
        0.275,
        0.5,
    ]


def test_it_is_the_weighted_distance_from_the_target():
    penalty = DensityPenalty(target=Constant(0.3), weight=Constant(2.0))
    graphs = torch.stack((line_dag(4), full_dag(4)))
    assert penalty(graphs, 0).item() == pytest.approx(2 * (0.75 - 0.3))
    assert penalty(torch.zeros(2, 4, 4), 0).item() == pytest.approx(0.6)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_generator_follows_it(target):
    torch.manual_seed(0)
    dag, context = AgentDag(5, 2), torch.randn(32, 2)
    penalty = DensityPenalty(target=Constant(target), weight=Constant(1.0))
    optimizer = torch.optim.Adam(dag.parameters(), lr=0.03)
    for step in range(80):
        optimizer.zero_grad()
        penalty(dag.sample(context), step).backward()
        optimizer.step()
    assert abs(float(edge_density(dag.sample(context).detach())) - target) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 5}, "steps: .* got 5"),
        ({"steps": 50, "weight": -1.0}, "got -1.0 and 1.0"),
        ({"steps": 50, "weight": 2.0}, "got 2.0 and 1.0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DensityPenalty.annealed(**arguments)
