"""A method attached to a model and its optimizer: the training loop stays as it was."""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from gossamer.training.base import (
    MaskedTraining,
    ProjectedTraining,
    TrainingMethod,
    Update,
    WeightState,
)
from gossamer.training.weights import (
    MaskedWeight,
    MovingWeight,
    ProjectedWeight,
    StoredWeight,
    TrainedWeight,
)

Storage = Literal["masked", "sparse"]
SLOT = "_gossamer_attachment"


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    method: TrainingMethod,
    *,
    storage: Storage = "masked",
    skip: Collection[str] = (),
    seed: int = 0,
) -> Attachment:
    """Train the weights of linear and convolution layers sparsely from the next step on.

    Biases, norms and embeddings stay dense, and so do frozen weights and grouped convolutions.
    Every call of ``optimizer.step()`` counts as a step; a step that a gradient scaler leaves out
    does not. Where `torch.distributed` is initialised, all ranks keep the same masks: gradients
    that decide are summed over ranks, and rank 0's decision is everyone's.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer
        Over the model's parameters; its state, such as momentum, follows the masks.
    method : TrainingMethod
    storage : {"masked", "sparse"}, default "masked"
        "masked" keeps dense weights with zeros in them, and a mask as large. "sparse"
        puts `gossamer.layers.SparseLinear` and `SparseConv2d` in the layers' places, which
        store, compute and optimise non-zeros only; a dense gradient exists only in updates.
    skip : collection of str
        Modules to leave dense, by name, with all inside them.
    seed : int, default 0
        Of everything that a method draws.

    Returns
    -------
    Attachment

    Raises
    ------
    TypeError
        If the model, optimizer or method is something else.
    ValueError
        If there is nothing to make sparse, the optimizer lacks a weight or has a method already,
        a name in `skip` does not exist, or the method or storage cannot take a layer.

    Examples
    --------
    >>> from gossamer.training import RigL
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> with attach(model, optimizer, RigL(density=0.1), skip=["2"]) as attachment:
    ...     for _ in range(3):
    ...         model(torch.ones(8, 64)).sum().backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    >>> attachment.step, round(attachment.density(), 3)
    (3, 0.1)
    """
    return Attachment(model, optimizer, method, storage=storage, skip=skip, seed=seed)


class Attachment:
    """A model that trains with a method; a context manager, or `detach()` by hand.

    Made by `attach`, which explains the parameters.

    Attributes
    ----------
    step : int
        Optimizer steps so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: TrainingMethod,
        *,
        storage: Storage,
        skip: Collection[str],
        seed: int,
    ) -> None:
        _check(model, optimizer, method, storage, skip, seed)
        self.model, self.optimizer, self.method = model, optimizer, method
        self.step = 0
        self._generator = torch.Generator().manual_seed(seed)
        modules = _sparse_modules(model, optimizer, method, skip, storage)
        self._weights: dict[str, TrainedWeight] = {}
        if isinstance(method, ProjectedTraining):
            for name, module in modules.items():
                self._weights[name] = ProjectedWeight(module, optimizer, method)
        elif isinstance(method, MaskedTraining):
            masks = self._start(method, modules)
            if storage == "sparse":
                stored = {
                    name: StoredWeight(model, name, module, optimizer, masks[name])
                    for name, module in modules.items()
                }
                for weight in stored.values():  # once none was refused
                    weight.install()
                self._weights.update(stored)
            else:
                for name, module in modules.items():
                    self._weights[name] = MaskedWeight(module, optimizer, masks[name])
        self._moving = {
            name: weight
            for name, weight in self._weights.items()
            if isinstance(weight, MovingWeight)
        }
        self._hooks = [  # after the weights' own
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        setattr(optimizer, SLOT, self)
        self._prepare()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Give the model its plain layers back, which compute what the sparse ones did.

        Dropped weights are then zeros that further training may change. Twice is once.
        """
        if getattr(self.optimizer, SLOT, None) is not self:
            return
        delattr(self.optimizer, SLOT)
        for hook in self._hooks:
            hook.remove()
        for weight in self._weights.values():
            weight.release()

    def masks(self) -> dict[str, Tensor]:
        """Return a copy of every sparse layer's mask, bool [out, in, ...], by module name."""
        return {name: weight.mask for name, weight in self._weights.items()}

    def density(self) -> float:
        """Return the share of the sparse layers' weights that are active; 1.0 without any."""
        masks = [weight.mask for weight in self._weights.values()]
        active = sum(int(mask.count_nonzero()) for mask in masks)
        return active / sum(mask.numel() for mask in masks) if masks else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the model's and the optimizer's own states.

        All three loaded into an attachment made as this one was, training goes on bit by bit as
        it would have. Take it between steps.
        """
        masks = {name: weight.mask for name, weight in self._masked().items()}
        return {"step": self.step, "generator": self._generator.get_state(), "masks": masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` returned; load the model and optimizer too.

        Raises
        ------
        ValueError
            If the state is of other layers; nothing has changed then.
        """
        if not isinstance(state, dict) or not {"step", "generator", "masks"} <= state.keys():
            raise ValueError("expected a state with step, generator and masks; try state_dict()")
        weights = self._masked()
        shapes = {name: tuple(weight.dense().shape) for name, weight in weights.items()}
        found = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        if found != shapes:
            raise ValueError(f"expected a state with masks of {shapes}, got {found}")
        self.step = int(state["step"])
        self._generator.set_state(state["generator"].cpu())
        for name, weight in weights.items():
            weight.restore(state["masks"][name])
        self._prepare()

    def _masked(self) -> dict[str, MaskedWeight]:
        """The weights whose masks the model's own state does not hold."""
        return {name: w for name, w in self._weights.items() if isinstance(w, MaskedWeight)}

    def _start(self, method: MaskedTraining, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {
            name: module.weight.detach()  # pyright: ignore[reportCallIssue]
            for name, module in modules.items()
        }
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        counts = method.counts(shapes, method.initial_density) if shapes else {}
        masks = {}
        for name, weight in weights.items():
            none = torch.zeros_like(weight, dtype=torch.bool)
            state = WeightState(name, weight, none, self._generator)
            masks[name] = _shared(method.start(state, counts[name]))
        return masks

    def _prepare(self) -> None:
        """Find out what the coming step is, for its backward passes to capture what it needs."""
        method, self._update = self.method, None
        if isinstance(method, MaskedTraining):
            self._update = method.schedule(self.step)
        for weight in self._moving.values():
            weight.capturing = self._update is not None and self._update.gradient
            weight.gradient = None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any(value is not None for value in (*args[1:], *kwargs.values())):
            raise ValueError("expected step() without a closure; try loss.backward() before it")
        if self._update is not None and self._update.replaces_step:
            self._apply(self._update)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # optimizers leave out what has no gradient

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._update is not None and not self._update.replaces_step:
            self._apply(self._update)
        self.step += 1
        self._prepare()

    @torch.no_grad()
    def _apply(self, update: Update) -> None:
        method = self.method
        if not isinstance(method, MaskedTraining):
            return
        masks = {name: weight.mask for name, weight in self._moving.items()}
        if update.density is None:
            counts = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        else:
            shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
            counts = method.counts(shapes, update.density)
        for name, weight in self._moving.items():
            gradient = weight.gradient
            if update.gradient:
                gradient = _summed(weight, gradient)
                if not bool(gradient.any()):
                    continue  # the layer took no part in this step: nothing says what to grow
            state = WeightState(name, weight.dense(), masks[name], self._generator, gradient)
            kept, grown = method.exchange(state, counts[name], update.drop)
            weight.move(_shared(kept), _shared(grown))


def _check(
    model: Any, optimizer: Any, method: Any, storage: Any, skip: Collection[str], seed: Any
) -> None:
    for name, value, kind in (
        ("model", model, nn.Module),
        ("optimizer", optimizer, Optimizer),
        ("method", method, TrainingMethod),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"expected {name} to be a {kind.__name__}, got {type(value).__name__}")
    if hasattr(optimizer, SLOT):
        raise ValueError(
            f"expected an optimizer without a method, got one with "
            f"{getattr(optimizer, SLOT).method}; try its attachment's detach()"
        )
    if storage not in ("masked", "sparse"):
        raise ValueError(f"expected storage to be 'masked' or 'sparse', got {storage!r}")
    if storage == "sparse" and isinstance(method, ProjectedTraining):
        raise ValueError(
            f"expected storage='masked' for {type(method).__name__}, which trains dropped weights "
            "too, got 'sparse'; try gossamer.layers.PackedLinear once it is trained"
        )
    if isinstance(skip, str):
        raise TypeError(f"expected skip to be a collection of names, got {skip!r}; try [{skip!r}]")
    if absent := sorted(set(skip) - {name for name, _ in model.named_modules()}):
        raise ValueError(f"expected skip to name modules of the model, got {', '.join(absent)}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"expected seed in [0, 2**63), got {seed}")


def _sparse_modules(
    model: nn.Module,
    optimizer: Optimizer,
    method: TrainingMethod,
    skip: Collection[str],
    storage: Storage,
) -> dict[str, nn.Module]:
    """Find the layers that a method takes, each weight once, and check that it can."""
    if not isinstance(method, MaskedTraining | ProjectedTraining):
        return {}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for kind, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{kind}")
    found: dict[str, nn.Module] = {}
    taken: set[int] = set()
    for name, module in model.named_modules():
        if any(name == part or name.startswith(f"{part}.") for part in skip):
            continue
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            continue
        weight = module.weight
        if getattr(module, "groups", 1) != 1 or not weight.requires_grad or id(weight) in taken:
            continue
        if id(weight) not in held:
            raise ValueError(f"expected the optimizer to hold the weight of {name!r}; try skip")
        shares = len(owners.get(id(weight), [])) > 1
        if shares and (storage == "sparse" or isinstance(method, ProjectedTraining)):
            raise ValueError(
                f"expected a weight of its own for {name!r}, got one tied as "
                f"{', '.join(owners[id(weight)])}; try skip"
            )
        method.check_layer(name, tuple(weight.shape))
        taken.add(id(weight))
        found[name] = module
    if not found:
        raise ValueError("expected at least one linear or convolution layer to train sparsely")
    return found


def _world() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def _shared(mask: Tensor) -> Tensor:
    """Return rank 0's mask."""
    if _world() == 1:
        return mask
    bits = mask.to(torch.uint8)
    distributed.broadcast(bits, src=0)
    return bits.bool()


def _summed(weight: MovingWeight, gradient: Tensor | None) -> Tensor:
    """Return the gradient summed over ranks, zeros where a rank has none."""
    if gradient is None:
        gradient = torch.zeros_like(weight.dense())
    if _world() > 1:
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
    return gradient
