"""A ReLU network folded to its minimum: one row for each ReLU, everything else merged."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from gossamer.dynamics.neuron_types import NeuronType, SparseActivation

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PiecewiseAffine:
    """``y = A x + L s + b``, ``s = max(y, 0)``, ``f(x) = C x + D s + d`` in float64.

    Identity and zero neurons are gone, and so are ReLUs that the output does not depend on. A
    ReLU reads only those before it: L is strictly lower triangular.

    Parameters
    ----------
    input_weight, hidden_weight, bias : ndarray [B, n], [B, B], [B]
        A, L and b.
    output_input, output_hidden, output_bias : ndarray [m, n], [m, B], [m]
        C, D and d.

    Examples
    --------
    >>> import torch
    >>> layer = SparseActivation(3)
    >>> _ = layer.types.copy_(torch.tensor([0, 1, 2]))
    >>> f = PiecewiseAffine.from_module(nn.Sequential(nn.Linear(2, 3), layer, nn.Linear(3, 1)))
    >>> f.relus, f(np.zeros((5, 2))).shape
    (1, (5, 1))
    """

    input_weight: Floats
    hidden_weight: Floats
    bias: Floats
    output_input: Floats
    output_hidden: Floats
    output_bias: Floats

    @property
    def relus(self) -> int:
        """ReLUs that are left."""
        return len(self.bias)

    @property
    def inputs(self) -> int:
        """Size of x."""
        return self.output_input.shape[1]

    def preactivations(self, x: ArrayLike) -> Floats:
        """Return y [..., B] for x [..., n]."""
        y = np.asarray(x, np.float64) @ self.input_weight.T + self.bias
        for unit in range(self.relus):  # each reads the ones before it
            y[..., unit] += np.maximum(y[..., :unit], 0) @ self.hidden_weight[unit, :unit]
        return y

    def __call__(self, x: ArrayLike) -> Floats:
        """Return f(x) [..., m] for x [..., n]."""
        s = np.maximum(self.preactivations(x), 0)
        return np.asarray(x) @ self.output_input.T + s @ self.output_hidden.T + self.output_bias

    @classmethod
    def from_module(cls, model: nn.Module) -> Self:
        """Fold a chain of linear layers and activations.

        Parameters
        ----------
        model : nn.Module
            Linear, `SparseActivation`, ReLU, Identity and BatchNorm1d layers, alone or in
            (nested) Sequentials, in eval mode.

        Raises
        ------
        TypeError
            If there is another layer.
        ValueError
            If a layer still trains, or nothing says how many inputs there are.
        """
        # The layer's activations are map_x x + map_s s + shift.
        map_x, map_s, shift = np.empty((0, 0)), np.empty((0, 0)), np.empty(0)
        rows: list[tuple[Floats, Floats, float]] = []
        for layer in _flat(model):
            if isinstance(layer, nn.Linear | nn.BatchNorm1d):
                weight, bias = _affine(layer)
                if not map_x.size:
                    map_x = np.eye(weight.shape[1])
                    map_s, shift = np.empty((len(map_x), 0)), np.zeros(len(map_x))
                map_x, map_s, shift = weight @ map_x, weight @ map_s, weight @ shift + bias
                continue
            if not map_x.size:
                raise ValueError("expected a linear layer first, got an activation")
            types = _types(layer, len(shift))
            relus = np.flatnonzero(types == NeuronType.RELU)
            rows += [(map_x[i], map_s[i], float(shift[i])) for i in relus]
            linear = types == NeuronType.IDENTITY
            map_x, shift = map_x * linear[:, None], shift * linear
            passed = np.zeros((len(shift), len(relus)))
            passed[relus, np.arange(len(relus))] = 1
            map_s = np.hstack([map_s * linear[:, None], passed])
        if not map_x.size:
            raise ValueError("expected at least one linear layer, got none")
        hidden = np.zeros((len(rows), len(rows)))
        for unit, (_, reads, _) in enumerate(rows):
            hidden[unit, : len(reads)] = reads
        used = _used(hidden, map_s)
        return cls(
            input_weight=np.array([row[0] for row in rows]).reshape(-1, map_x.shape[1])[used],
            hidden_weight=hidden[np.ix_(used, used)],
            bias=np.array([row[2] for row in rows])[used],
            output_input=map_x,
            output_hidden=map_s[:, used],
            output_bias=shift,
        )


def _flat(model: nn.Module) -> list[nn.Module]:
    if not isinstance(model, nn.Sequential):
        return [] if isinstance(model, nn.Identity) else [model]
    return [layer for part in model for layer in _flat(part)]


def _affine(layer: nn.Linear | nn.BatchNorm1d) -> tuple[Floats, Floats]:
    """Weight and bias of a layer that is affine."""
    if isinstance(layer, nn.Linear):
        weight = _array(layer.weight)
        return weight, np.zeros(len(weight)) if layer.bias is None else _array(layer.bias)
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise ValueError("expected BatchNorm1d with fixed statistics, try model.eval()")
    scale = 1 / np.sqrt(_array(layer.running_var) + layer.eps)
    shift = -scale * _array(layer.running_mean)
    if layer.affine:
        scale, shift = scale * _array(layer.weight), shift * _array(layer.weight)
        shift = shift + _array(layer.bias)
    return np.diag(scale), shift


def _types(layer: nn.Module, width: int) -> NDArray[np.int8]:
    if isinstance(layer, nn.ReLU):
        return np.full(width, NeuronType.RELU, np.int8)
    if not isinstance(layer, SparseActivation):
        raise TypeError(
            "expected Linear, SparseActivation, ReLU, Identity or BatchNorm1d layers, got "
            f"{type(layer).__name__}"
        )
    if layer.training and layer.temperature is not None:
        raise ValueError("expected fixed neuron types, got a model in training; try model.eval()")
    return layer.types.cpu().numpy()


def _used(hidden: Floats, output: Floats) -> NDArray[np.bool_]:
    """Which ReLUs the output depends on, directly or through later ones."""
    used = np.logical_or.reduce(output != 0, axis=0)
    for unit in reversed(range(len(hidden))):
        used[unit] |= bool(hidden[used, unit].any())
    return used


def _array(tensor: Tensor) -> Floats:
    return tensor.detach().cpu().double().numpy()
