"""Networks that predict pushes: sparsified, and the controls that trained as long."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.data.planar_pushing import Pushes, quarter_turns, random_pushes
from gossamer.dynamics import NeuronType, Sparsified, Training, sparse_mlp, sparsify_activations
from gossamer.dynamics.neuron_types import sparse_activations
from gossamer.dynamics.relaxed_training import mean_squared_error, train

TEST_SEED = 10_000  # apart from the seed of the pushes learnt from
INPUTS, OUTPUTS = 10, 8  # four corners and an action; four displacements


@dataclass(frozen=True)
class Size:
    """How much is computed at one scale."""

    pushes: int  # simulated; each is also turned by 90, 180 and 270 degrees
    width: int  # of both hidden layers
    budgets: tuple[int, ...]
    training: Training
    seeds: int
    horizon: int
    plans: int
    time_limit: float  # of a plan, in seconds
    episodes: int
    actions: int  # of an episode


@dataclass(frozen=True, eq=False)
class Trained:
    """All networks of one seed, and their errors [100 px] on pushes they have not seen."""

    sparse: dict[int, Sparsified]
    dense: nn.Module
    errors: dict[str, float]


def pushing_data(pushes: Pushes) -> tuple[Tensor, Tensor]:
    """Return inputs [N, 10], corners relative to the pusher and action, and targets [N, 8]."""
    corners = (pushes.states[:, 1:] - pushes.states[:, :1]).reshape(len(pushes.states), -1)
    moved = (pushes.after - pushes.states)[:, 1:].reshape(len(pushes.states), -1)
    inputs = np.hstack([corners, pushes.actions])
    return torch.from_numpy(inputs).float(), torch.from_numpy(moved).float()


def train_pair(size: Size, seed: int) -> Trained:
    """Train the networks that plans are made with, and no others that would show their errors."""
    sparse, dense = _sparse_and_dense(size, _pushes(size, seed), seed)
    return Trained(sparse, dense, {})


def train_networks(size: Size, seeds: range) -> list[Trained]:
    """Simulate the pushes once and train every network for each seed."""
    data = _pushes(size, seeds[0])
    test = pushing_data(random_pushes(max(500, size.pushes // 4), seed=TEST_SEED + seeds[0]))
    return [_train_seed(size, data, test, seed) for seed in seeds]


def _pushes(size: Size, seed: int) -> tuple[Tensor, Tensor]:
    return pushing_data(quarter_turns(random_pushes(size.pushes, seed=seed)))


def _sparse_and_dense(
    size: Size, data: tuple[Tensor, Tensor], seed: int
) -> tuple[dict[int, Sparsified], nn.Module]:
    """Sparsify a network, and train another one for as many epochs."""
    wide = (size.width, size.width)
    model = _mlp(wide, seed)
    found = sparsify_activations(model, data, size.budgets, training=size.training, seed=seed)
    dense = _trained(_mlp(wide, seed), data, size, found[-1].epochs, seed)
    return {each.budget: each for each in found}, dense


def _train_seed(
    size: Size, data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int
) -> Trained:
    sparse, dense = _sparse_and_dense(size, data, seed)
    errors = {f"sparse {budget}": rmse(each.model, test) for budget, each in sparse.items()}
    errors["copy"] = float(test[1].square().mean().sqrt())
    for budget in [b for b in size.budgets if b < size.budgets[0]]:
        small = _mlp((budget // 2, budget - budget // 2), seed)
        errors[f"scratch {budget}"] = rmse(
            _trained(small, data, size, sparse[budget].epochs, seed), test
        )
    errors["dense"] = rmse(dense, test)
    fewest = sparse[size.budgets[-1]]
    alike = _mlp((size.width, size.width), seed + 1)  # the same ReLUs and identities, other weights
    for layer, types in zip(sparse_activations(alike), fewest.types.layers, strict=True):
        layer.types.copy_(types)
    errors["alike"] = rmse(_trained(alike, data, size, fewest.epochs, seed), test)
    return Trained(sparse, dense, errors)


def planted_error(epochs: int, noise: float, seeds: range) -> tuple[float, int]:
    """Fit 4 regions of a plane with 3 ReLUs; return the error on noisy data, and ReLUs used.

    Three hinges have local minima: of the starts in `seeds`, the one that fits its own data best
    is measured on others. All starts see the same data.
    """
    generator = torch.Generator().manual_seed(seeds[0])

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = 2 * torch.rand(count, 2, generator=generator) - 1
        hinges = (x @ torch.tensor([1.0, 0.5]))[:, None] - torch.tensor([-0.6, 0.0, 0.6])
        value = x @ torch.tensor([0.5, -1.0]) + hinges.relu() @ torch.tensor([1.5, -3.0, 3.0])
        return x, (value + noise * torch.randn(count, generator=generator))[:, None]

    data, test = draw(4000), draw(4000)
    training = Training(
        epochs, epochs, epochs, lr=1e-2, noise=0.0, relu_penalty=1e-3, weight_penalty=0.0
    )

    def fit(seed: int) -> Sparsified:
        torch.manual_seed(seed)
        model = sparse_mlp(2, (12,), 1)
        return sparsify_activations(model, data, (8, 5, 3), training=training, seed=seed)[-1]

    best = min(map(fit, seeds), key=lambda found: rmse(found.model, data))
    return rmse(best.model, test), best.types.count(NeuronType.RELU)


@torch.no_grad()
def rmse(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Return the root mean squared error of a model."""
    return float((model(test[0]) - test[1]).square().mean().sqrt())


def _mlp(hidden: tuple[int, ...], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return sparse_mlp(INPUTS, hidden, OUTPUTS)


def _trained(
    model: nn.Module, data: tuple[Tensor, Tensor], size: Size, epochs: int, seed: int
) -> nn.Module:
    """Train a network as it is, with one cosine over all epochs."""
    weights = [p for name, p in model.named_parameters() if not name.endswith("logits")]
    generator = torch.Generator().manual_seed(seed)
    train(model, weights, data, epochs, mean_squared_error, replace(size.training), generator)
    return copy.deepcopy(model).eval()
