"""How the rounds train: Adam on a loss, and penalties while neuron types are drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.dynamics.neuron_types import (
    NeuronType,
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
        Highest learning rate (1e-3) of the weights.
    logit_lr : float
        And of the logits. Adam moves each by about its rate a step, so that at the weights' rate a
        round of a few hundred steps would end with all types about equally likely.
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
    logit_lr: float = 0.1
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
        for name in ("lr", "logit_lr", "temperature"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("noise", "relu_penalty", "identity_penalty", "weight_penalty"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


def mean_squared_error(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of ``model(inputs)``: the loss of one-step prediction."""
    return F.mse_loss(model(inputs), targets)


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
    layers = [layer for layer in sparse_activations(model) if layer.temperature is not None]
    logits = {id(layer.logits) for layer in sparse_activations(model)}
    groups = [
        {"params": [p for p in parameters if (id(p) in logits) is among], "lr": lr}
        for among, lr in ((False, training.lr), (True, training.logit_lr))
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    weights = [p for p in model.parameters() if p.ndim > 1 and id(p) not in logits]
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
            (objective + _penalty(layers, weights, training)).backward()
            optimizer.step()
            schedule.step()
    if not torch.isfinite(objective):
        raise ValueError("expected a finite loss, got NaN or inf; try a lower lr or scaled data")
    model.eval()


def _penalty(
    layers: list[SparseActivation], weights: Sequence[Tensor], training: Training
) -> Tensor:
    """What open types and weights cost while types are drawn; 0 when none are."""
    total = torch.zeros(())
    for layer in layers:
        share = layer.logits.softmax(-1)[layer.types == NeuronType.RELU].sum(0)
        total = total + training.relu_penalty * (
            share[NeuronType.RELU] + training.identity_penalty * share[NeuronType.IDENTITY]
        )
    if layers and training.weight_penalty:
        norms = torch.stack([weight.abs().sum() for weight in weights])
        total = total + training.weight_penalty * norms.sum()
    return total
