"""Rounds of a shrinking ReLU budget: train which neurons keep their ReLU, then drop the others'."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.budgets import TopK
from gossamer.dynamics.neuron_types import (
    NeuronType,
    NeuronTypes,
    SparseActivation,
    sparse_activations,
)

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Training:
    """How each phase of the rounds trains: Adam with a cosine schedule, from the start again.

    Parameters
    ----------
    initial_epochs, epochs, finetune_epochs : int
        Before the first round (paper's configurations: 20), of each round with types drawn at
        random (8), and of each round with its types fixed (not known).
    lr : float
        Highest learning rate (1e-3).
    batch_size : int
        Rows of a step (256).
    noise : float
        Standard deviation of what is added to the first tensor of a batch (0.003 to 0.005, in
        units of 100 px).
    temperature : float
        Of Gumbel-softmax (0.5).
    relu_penalty : float
        Weight of the summed probabilities of ReLU.
    identity_penalty : float
        Weight of those of the identity, as a share of `relu_penalty` (0.005).
    weight_penalty : float
        Weight of the L1 norm of all weights.
    """

    initial_epochs: int = 20
    epochs: int = 8
    finetune_epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 256
    noise: float = 0.003
    temperature: float = 0.5
    relu_penalty: float = 1e-3
    identity_penalty: float = 0.005
    weight_penalty: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("initial_epochs", "epochs", "finetune_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("noise", "relu_penalty", "identity_penalty", "weight_penalty"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


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


def mean_squared_error(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of ``model(inputs)``: the loss of one-step prediction."""
    return F.mse_loss(model(inputs), targets)


def sparsify_activations(
    model: nn.Module,
    data: Sequence[Tensor],
    budgets: Sequence[int],
    *,
    loss: Loss = mean_squared_error,
    training: Training = Training(),  # noqa: B008 (frozen)
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
        for budget in budgets:
            for layer in layers:
                layer.reset_logits()
                layer.temperature = training.temperature
            train(model, weights + logits, data, training.epochs, loss, training, generator)
            keep = TopK(budget).select(torch.cat([layer.scores for layer in layers]))
            for layer, kept in zip(
                layers, keep.split([len(each.types) for each in layers]), strict=True
            ):
                layer.freeze(kept)
            train(model, weights, data, training.finetune_epochs, loss, training, generator)
            epochs += training.epochs + training.finetune_epochs
            types = NeuronTypes.of(model)
            found.append(Sparsified(budget, copy.deepcopy(model).eval(), types, epochs))
    return tuple(found)


def train(
    model: nn.Module,
    parameters: Sequence[Tensor],
    data: Sequence[Tensor],
    epochs: int,
    loss: Loss,
    training: Training,
    generator: torch.Generator,
) -> None:
    """Train some parameters of a model; the penalties are on only while types are drawn."""
    rows, size = len(data[0]), min(training.batch_size, len(data[0]))
    steps = epochs * (rows // size)
    if not steps:
        return
    optimizer = torch.optim.Adam(parameters, training.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    layers = [layer for layer in sparse_activations(model) if layer.temperature is not None]
    model.train()
    for _ in range(epochs):
        for rows_of in torch.randperm(rows, generator=generator).split(size):
            if len(rows_of) < size:
                continue  # a smaller last batch would be noisier than the others
            first, *others = (tensor[rows_of] for tensor in data)
            if training.noise:
                first = first + training.noise * torch.randn(first.shape, generator=generator)
            objective = loss(model, first, *others)
            optimizer.zero_grad()
            (objective + _penalty(model, layers, training)).backward()
            optimizer.step()
            schedule.step()
    if not torch.isfinite(objective):
        raise ValueError("expected a finite loss, got NaN or inf; try a lower lr or scaled data")
    model.eval()


def _penalty(model: nn.Module, layers: list[SparseActivation], training: Training) -> Tensor:
    """What open types and weights cost while types are drawn; 0 when none are."""
    total = torch.zeros(())
    for layer in layers:
        open_ = layer.types == NeuronType.RELU
        share = layer.logits.softmax(-1)[open_].sum(0)
        total = total + training.relu_penalty * (
            share[NeuronType.RELU] + training.identity_penalty * share[NeuronType.IDENTITY]
        )
    if layers and training.weight_penalty:
        matrices = [p for p in model.parameters() if p.ndim == 2 and p.shape[1] != len(NeuronType)]
        total = total + training.weight_penalty * torch.stack([w.abs().sum() for w in matrices]).sum()
    return total
