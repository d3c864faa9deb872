"""Rounds of a shrinking ReLU budget: train which neurons keep their ReLU, then drop the others'."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from gossamer.budgets import TopK
from gossamer.dynamics.neuron_types import (
    NeuronType,
    NeuronTypes,
    SparseActivation,
    sparse_activations,
)
from gossamer.dynamics.relaxed_training import Loss, Training, mean_squared_error, train


@dataclass(frozen=True, eq=False)
class Sparsified:
    """A model at the end of a round.

    Parameters
    ----------
    budget : int
        ReLUs that were allowed, which is how many there are.
    model : nn.Module
        A copy in eval mode.
    types : NeuronTypes
    epochs : int
        Epochs that led here, all rounds before included.
    """

    budget: int
    model: nn.Module
    types: NeuronTypes
    epochs: int


def sparsify_activations(
    model: nn.Module,
    data: Sequence[Tensor],
    budgets: Sequence[int],
    *,
    loss: Loss = mean_squared_error,
    training: Training = Training(),  # noqa: B008 (frozen)
    input_box: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> tuple[Sparsified, ...]:
    """Train a network with ever fewer ReLUs, each other neuron the identity or gone.

    First the network is trained as it is. Then for each budget B: all logits start anew; weights
    and logits train together, types drawn by Gumbel-softmax; the B neurons likeliest to be ReLUs
    stay ReLUs, the others take the likelier of identity and zero and never come back; the weights
    are trained on with the types fixed. What is minimised over weights and types is
    ``loss + relu_penalty * (sum P[ReLU] + identity_penalty * sum P[ID]) + weight_penalty |W|_1``.

    Based on "Model-Based Control with Sparse Neural Dynamics" (arXiv 2312.12791), with the recipe
    that remains in the follow-up's release. Each phase has an optimiser of its own, so that no
    moment of a settled logit lives on.

    Parameters
    ----------
    model : nn.Module
        With `SparseActivation` layers; trained in place.
    data : sequence of Tensor
        Of one length, handed to `loss` row by row in batches.
    budgets : sequence of int
        ReLUs at the end of each round, strictly decreasing.
    loss : callable
        ``loss(model, *batch)``, a mean over the batch; by default the squared error of
        ``model(data[0])`` against ``data[1]``.
    training : Training
    input_box : (array [n], array [n]), optional
        Least and greatest inputs of a Sequential; see `settle_stable`, which then comes first.
    seed : int
        Of the order of rows, the noise and the draws.

    Returns
    -------
    tuple of Sparsified
        One for each budget.

    Raises
    ------
    ValueError
        If budgets do not decrease or exceed the ReLUs there are, rows do not match, or the loss
        is not finite.

    Examples
    --------
    >>> from gossamer.dynamics import sparse_mlp
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> (result,) = sparsify_activations(
    ...     sparse_mlp(1, (8,), 1), (x, x.abs()), [2], training=Training(1, 1, 1)
    ... )
    >>> result.types.count(NeuronType.RELU), result.epochs
    (2, 3)
    """
    layers = sparse_activations(model)
    _check(layers, data, budgets)
    weights = [p for name, p in model.named_parameters() if not name.endswith("logits")]
    logits = [layer.logits for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    epochs, found = training.initial_epochs, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train(model, weights, data, training.initial_epochs, loss, training, generator)
        if input_box is not None:
            settle_stable(model, *input_box)
        for budget in budgets:
            for layer in layers:
                layer.reset_logits()
                layer.temperature = training.temperature
            train(model, weights + logits, data, training.epochs, loss, training, generator)
            _keep_likeliest(layers, budget)
            train(model, weights, data, training.finetune_epochs, loss, training, generator)
            epochs += training.epochs + training.finetune_epochs
            types = NeuronTypes.of(model)
            found.append(Sparsified(budget, copy.deepcopy(model).eval(), types, epochs))
    return tuple(found)


@torch.no_grad()
def settle_stable(model: nn.Module, lower: ArrayLike, upper: ArrayLike) -> int:
    """Retype the ReLUs that cannot change sign over a box of inputs, without any loss there.

    Where interval arithmetic shows the pre-activation to be at least 0 a ReLU is the identity,
    where it is at most 0 it is zero.

    Parameters
    ----------
    model : nn.Module
        Sequential, of linear layers and `SparseActivation`.
    lower, upper : array [n]

    Returns
    -------
    int
        How many ReLUs were retyped.

    Raises
    ------
    TypeError
        If there is another layer.

    Examples
    --------
    >>> from gossamer.dynamics import sparse_mlp
    >>> settle_stable(sparse_mlp(2, (8,), 1), [100.0, 100.0], [100.0, 100.0])
    8
    """
    low, high = (torch.as_tensor(side, dtype=torch.float32) for side in (lower, upper))
    settled = 0
    for layer in model if isinstance(model, nn.Sequential) else [model]:
        if isinstance(layer, nn.Linear):
            centre, radius = layer((low + high) / 2), (high - low) / 2 @ layer.weight.abs().T
            low, high = centre - radius, centre + radius
        elif isinstance(layer, SparseActivation):
            before = (layer.types == NeuronType.RELU).sum()
            for stable, kind in ((low >= 0, NeuronType.IDENTITY), (high <= 0, NeuronType.ZERO)):
                layer.types[stable & (layer.types == NeuronType.RELU)] = kind
            settled += int(before - (layer.types == NeuronType.RELU).sum())
            frozen = copy.deepcopy(layer).eval()
            low, high = frozen(low), frozen(high)
        else:
            raise TypeError(
                f"expected linear layers and SparseActivation, got {type(layer).__name__}"
            )
    return settled


def _keep_likeliest(layers: list[SparseActivation], budget: int) -> None:
    """Freeze all but the ReLUs, over all layers, that are likeliest to be worth it."""
    keep = TopK(budget).select(torch.cat([layer.scores for layer in layers]))
    for layer, kept in zip(layers, keep.split([len(each.types) for each in layers]), strict=True):
        layer.freeze(kept)


def _check(layers: list[SparseActivation], data: Sequence[Tensor], budgets: Sequence[int]) -> None:
    if not layers:
        raise ValueError("model: expected SparseActivation layers, got none; try sparse_mlp")
    if not data or not len(data[0]) or len({len(tensor) for tensor in data}) > 1:
        raise ValueError(
            f"data: expected tensors with equally many rows, got {[len(each) for each in data]}"
        )
    relus = NeuronTypes(tuple(layer.types for layer in layers)).count(NeuronType.RELU)
    falling = all(a > b for a, b in pairwise(budgets))
    if not budgets or not falling or budgets[-1] < 1 or budgets[0] > relus:
        raise ValueError(
            f"budgets: expected to decrease from at most {relus} to at least 1, got {[*budgets]}"
        )
