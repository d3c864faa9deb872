"""How a layer's weight is held while it trains: masked, stored sparsely, or projected."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from gossamer.layers import SparseConv2d, SparseLinear
from gossamer.training.base import ProjectedTraining


class TrainedWeight(ABC):
    """One weight of a model under a method, and the optimizer's state of it."""

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.parameter: nn.Parameter = module.weight  # pyright: ignore[reportAttributeAccessIssue]

    @property
    @abstractmethod
    def mask(self) -> Tensor:
        """Active weights, bool [out, in, ...], as a new tensor."""

    @abstractmethod
    def release(self) -> None:
        """Give the model its plain layer back, which computes what this one did."""


class MovingWeight(TrainedWeight):
    """One whose mask is moved; dropped weights are zero."""

    gradient: Tensor | None = None
    """Of all weights, summed since `capturing` began."""
    capturing: bool = False
    """Whether backward passes add to `gradient`."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the weight [out, in, ...], to be read only."""

    @abstractmethod
    def move(self, kept: Tensor, grown: Tensor) -> None:
        """Keep some weights, with their state, and grow others at zero."""

    def _states(self) -> dict[str, Tensor]:
        """What the optimizer holds for each entry of the parameter, such as its momentum."""
        state = self.optimizer.state.get(self.parameter, {})
        return {
            name: value
            for name, value in state.items()
            if isinstance(value, Tensor) and value.shape == self.parameter.shape
        }

    def _capture(self, gradient: Tensor) -> None:
        gradient = gradient.detach()
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


class MaskedWeight(MovingWeight):
    """A dense parameter that is zero outside its mask, and stays so.

    The mask is kept in the weight's own dtype, by which it multiplies several times faster than
    a bool one. As gradients are masked, an elementwise state of a dropped weight stays zero.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, mask: Tensor) -> None:
        super().__init__(module, optimizer)
        self._mask = mask.to(self.parameter.dtype)
        self._hooks = (
            # As it is computed: clipping, accumulation and all-reduce see active weights only.
            self.parameter.register_hook(self._mask_gradient),
            optimizer.register_step_post_hook(self._mask_weight),
        )
        self._keep(mask)

    @property
    def mask(self) -> Tensor:
        return self._mask.bool()

    def dense(self) -> Tensor:
        return self.parameter.detach()

    def move(self, kept: Tensor, grown: Tensor) -> None:
        self._keep(kept)
        self._mask.copy_(kept | grown)

    def restore(self, mask: Tensor) -> None:
        """Take over the mask of a checkpoint; its weights and states are loaded on their own."""
        self._mask.copy_(mask)

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _keep(self, mask: Tensor) -> None:
        for tensor in (self.parameter, *self._states().values()):
            tensor.masked_fill_(~mask, 0)

    def _mask_gradient(self, gradient: Tensor) -> Tensor:
        if self.capturing:
            self._capture(gradient)
        return gradient * self._mask

    @torch.no_grad()
    def _mask_weight(self, *_: object) -> None:
        self.parameter.mul_(self._mask)


class StoredWeight(MovingWeight):
    """A sparse layer for the place of a dense one, whose weight is freed; see `install`."""

    def __init__(
        self, model: nn.Module, name: str, module: nn.Module, optimizer: Optimizer, mask: Tensor
    ) -> None:
        super().__init__(module, optimizer)
        if not name:
            raise ValueError("expected a layer inside a model; try nn.Sequential(layer)")
        if type(module) is nn.Linear:
            self.layer = SparseLinear.from_dense(module, mask)
        elif type(module) is nn.Conv2d:
            self.layer = SparseConv2d.from_dense(module, mask)
        else:
            raise ValueError(
                f"expected {name!r} to be an nn.Linear or nn.Conv2d to store sparsely, got "
                f"{type(module).__name__}; try storage='masked', or skip it"
            )
        self._shape, self._plain = mask.shape, self.parameter
        self._parent = model.get_submodule(name.rpartition(".")[0])
        self._child = name.rpartition(".")[2]
        self._hook = self.layer.register_forward_hook(self._watch)

    def install(self) -> None:
        """Put the sparse layer into the model and its values into the optimizer."""
        if isinstance(self.module.bias, nn.Parameter):
            self.layer.register_parameter("bias", self.module.bias)  # the one being optimised
        self.layer.train(self.module.training)
        states, mask = self._states(), self.mask
        self._replace(self.layer.values)
        for key, value in states.items():
            self.optimizer.state[self.parameter][key] = value[mask]
        self._plain.grad = None
        self._plain.data = self._plain.data.new_empty(0)
        setattr(self._parent, self._child, self.layer)

    @property
    def mask(self) -> Tensor:
        return self.layer.pattern.to_mask().view(self._shape)

    def dense(self) -> Tensor:
        return self.layer.weight.to_dense().detach().view(self._shape)

    @torch.no_grad()
    def move(self, kept: Tensor, grown: Tensor) -> None:
        states = self._states()
        mask = kept | grown
        origin = self.layer.set_pattern(mask)
        new = grown[mask]  # a weight that was dropped and grows again is new too
        self.layer.values[new] = 0
        origin = origin.masked_fill(new, -1)
        for key, value in states.items():
            moved = torch.where(origin >= 0, value[origin], 0)
            self.optimizer.state[self.parameter][key] = moved

    @torch.no_grad()
    def release(self) -> None:
        self._hook.remove()
        states, mask = self._states(), self.mask
        self._plain.data = self.dense()
        self._replace(self._plain)
        for key, value in states.items():
            spread = torch.zeros_like(self.parameter).masked_scatter_(mask, value)
            self.optimizer.state[self.parameter][key] = spread
        self.module.train(self.layer.training)
        setattr(self._parent, self._child, self.module)

    def _replace(self, parameter: nn.Parameter) -> None:
        """Put another parameter into the optimizer, in the old one's place."""
        for group in self.optimizer.param_groups:
            group["params"] = [parameter if p is self.parameter else p for p in group["params"]]
        if self.parameter in self.optimizer.state:
            self.optimizer.state[parameter] = self.optimizer.state.pop(self.parameter)
        self.parameter = parameter

    def _watch(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Have the dense gradient computed in the backward pass, if this step needs it."""
        if not (self.capturing and output.requires_grad):
            return
        (input,) = inputs

        def compute(grad: Tensor) -> None:
            with torch.no_grad():
                self._capture(self._dense_gradient(input.detach(), grad))

        output.register_hook(compute)

    def _dense_gradient(self, input: Tensor, grad: Tensor) -> Tensor:
        if isinstance(self.layer, SparseLinear):
            return grad.reshape(-1, grad.shape[-1]).mT @ input.reshape(-1, input.shape[-1])
        layer = self.layer
        patches = unfold(input, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return torch.einsum("nol,nil->oi", grad.flatten(2), patches).view(self._shape)


class ProjectedWeight(TrainedWeight):
    """A dense parameter of which the layer computes with the kept entries only."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, method: ProjectedTraining) -> None:
        super().__init__(module, optimizer)
        self.method = method
        self._order = [name for name, _ in module.named_parameters(recurse=False)]
        parametrize.register_parametrization(module, "weight", _Projection(method))
        self._hook = optimizer.register_step_pre_hook(self._regularize)

    @property
    @torch.no_grad()
    def mask(self) -> Tensor:
        return self.method.mask(self.parameter)

    def release(self) -> None:
        self._hook.remove()
        parametrize.remove_parametrizations(self.module, "weight", leave_parametrized=True)
        for name in self._order:  # the weight came back last
            parameter = getattr(self.module, name)
            delattr(self.module, name)
            self.module.register_parameter(name, parameter)

    @torch.no_grad()
    def _regularize(self, *_: object) -> None:
        if self.parameter.grad is None:
            return
        (lr,) = (
            float(group["lr"])
            for group in self.optimizer.param_groups
            if any(p is self.parameter for p in group["params"])
        )
        self.method.regularize(self.parameter, self.mask, lr)


class _Projection(nn.Module):
    def __init__(self, method: ProjectedTraining) -> None:
        super().__init__()
        self.method = method

    def forward(self, weight: Tensor) -> Tensor:
        constant = weight.detach()
        # Zero where dropped, exactly the weight where kept; its gradient is that of `weight`.
        return weight - constant.masked_fill(self.method.mask(constant), 0)
