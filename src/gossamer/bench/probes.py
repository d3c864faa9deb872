"""What is really held while a model runs or trains: dense allocations, and density over time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer.training import Attachment


@dataclass(frozen=True)
class Allocation:
    """Memory that an operator's result took.

    Parameters
    ----------
    operator : str
        As torch names it.
    shape : tuple of int
    nbytes : int
    """

    operator: str
    shape: tuple[int, ...]
    nbytes: int


class AllocationProbe(TorchDispatchMode):
    """Catch results of given shapes that take new memory inside a ``with`` block.

    A method that claims never to hold a dense weight, gradient or score matrix is watched for its
    shape: in any order of the dimensions, flattened, or with dimensions of one in between. Views
    and results written in place take no memory. What a compiled kernel or a custom operator
    allocates within itself is not seen.

    Parameters
    ----------
    shapes : iterable of tuple of int
        Dense shapes to watch for.

    Attributes
    ----------
    caught : list of Allocation
        Those that have a watched shape.
    nbytes : Counter of str to int
        All new memory, by operator.

    Examples
    --------
    >>> with AllocationProbe([(8, 4)]) as probe:
    ...     product = torch.ones(2, 4) @ torch.ones(4, 3)
    ...     dense = torch.zeros(4, 8)
    >>> [one.operator for one in probe.caught]
    ['aten::zeros']
    """

    def __init__(self, shapes: Iterable[tuple[int, ...]]) -> None:
        super().__init__()
        self._watched = {_squeezed(shape) for shape in shapes}
        self._flat = {(prod(shape),) for shape in self._watched}
        if () in self._watched:
            raise ValueError("shapes: expected at least one dimension above 1 in each, got none")
        self.caught: list[Allocation] = []
        self.nbytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        known = {storage for x in _tensors((args, kwargs)) if (storage := _storage(x)) is not None}
        for tensor in _tensors(result):
            storage = _storage(tensor)
            if storage is None or storage in known:
                continue
            known.add(storage)
            name, shape = func.name().split(".")[0], tuple(tensor.shape)
            self.nbytes[name] += tensor.untyped_storage().nbytes()
            if _squeezed(shape) in self._watched or shape in self._flat:
                self.caught.append(Allocation(name, shape, tensor.untyped_storage().nbytes()))
        return result


@dataclass(frozen=True)
class Moment:
    """Shares of the dense size at one step: what is active, and what is held.

    Parameters
    ----------
    step : int
    active : float
        Weights that the masks keep.
    weights, gradients, states : float
        Elements held of weights, of gradients, and of the optimizer's state for each parameter
        on average, zeros included: a masked weight is held densely.
    """

    step: int
    active: float
    weights: float
    gradients: float
    states: float


@dataclass
class DensityTrace:
    """Density over time of a model whose weights `gossamer.training` masks or stores sparsely.

    Masks are counted, not values: exact zeros have other reasons too.

    Parameters
    ----------
    attachment : gossamer.training.Attachment

    Attributes
    ----------
    moments : list of Moment

    Examples
    --------
    >>> from torch import nn
    >>> from gossamer.training import StaticSparse, attach
    >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> trace = DensityTrace(attach(model, optimizer, StaticSparse(0.25), skip=["2"]))
    >>> trace.record()
    >>> trace.mean_density, trace.peak_density, trace.exploration, trace.peak_dense
    (0.25, 0.25, 0.25, ('weights',))
    """

    attachment: Attachment
    moments: list[Moment] = field(default_factory=list)
    _ever: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def record(self) -> None:
        """Look at the model as it is now; between backward pass and step to see gradients."""
        masks = self.attachment.masks()
        for name, mask in masks.items():
            self._ever[name] = self._ever[name] | mask if name in self._ever else mask
        size = sum(mask.numel() for mask in masks.values())
        weights = gradients = states = 0
        for parameter in self._parameters(masks):
            weights += parameter.numel()
            gradients += 0 if parameter.grad is None else parameter.grad.numel()
            state = self.attachment.optimizer.state.get(parameter, {})
            held = [value.numel() for value in _tensors(state) if value.ndim]
            states += sum(held) / max(1, len(held))
        active = sum(int(mask.count_nonzero()) for mask in masks.values())
        shares = (count / size for count in (active, weights, gradients, states))
        self.moments.append(Moment(self.attachment.step, *shares))

    @property
    def mean_density(self) -> float:
        """Mean share of active weights: the area under the curve over its length."""
        return sum(moment.active for moment in self.moments) / len(self.moments)

    @property
    def peak_density(self) -> float:
        """Largest share of active weights."""
        return max(moment.active for moment in self.moments)

    @property
    def exploration(self) -> float:
        """Share of weights that were ever active (the in-time rate R of ITOP, 2102.02887)."""
        ever = sum(int(mask.count_nonzero()) for mask in self._ever.values())
        return ever / sum(mask.numel() for mask in self._ever.values())

    @property
    def peak_dense(self) -> tuple[str, ...]:
        """What was held densely at some time, in the taxonomy's terms; ``("none",)`` if nothing."""
        kinds = {"weights": "weights", "gradients": "gradients", "states": "optimizer_state"}
        dense = tuple(
            term
            for name, term in kinds.items()
            if max(getattr(moment, name) for moment in self.moments) >= 1
        )
        return dense or ("none",)

    def _parameters(self, masks: dict[str, Tensor]) -> Iterator[Tensor]:
        for name in masks:
            module = self.attachment.model.get_submodule(name)
            yield module.get_parameter("values" if hasattr(module, "values") else "weight")


def _squeezed(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))


def _storage(tensor: Tensor) -> int | None:
    if tensor.layout != torch.strided or not tensor.numel():
        return None
    return tensor.untyped_storage().data_ptr()


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)
