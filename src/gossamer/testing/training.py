"""Conformance of training methods: what every one of them must do, yours included.

`check_training_method` runs all of it on a small network in float64; each check is also a function
of its own. A check that fails raises `AssertionError` and says what it found.

Examples
--------
>>> from gossamer.training import SET
>>> check_training_method(SET(density=0.3, every=3), refused=[({"density": 0.0}, "density")])
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from gossamer.testing.records import check_documented, check_record, check_refusals, expect
from gossamer.training import Attachment, MaskedTraining, TrainingMethod, attach

STEPS = 13  # of every run: a method under test should move its masks within them, or never
Storage = Literal["masked", "sparse"]
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "momentum": lambda parameters: SGD(
        parameters, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True
    ),
    "Adam": lambda parameters: Adam(parameters, 1e-2, weight_decay=1e-2, amsgrad=True),
    "AdamW": lambda parameters: AdamW(parameters, 1e-2, weight_decay=0.1),
}


def tiny_network(*, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """Build a convolution with a norm, two hidden layers and a classifier, for [N, 4, 6, 6].

    Examples
    --------
    >>> tiny_network()(torch.zeros(2, 4, 6, 6, dtype=torch.float64)).shape
    torch.Size([2, 5])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, 32),
            nn.ReLU(),
            nn.Linear(32, 16, bias=False),
            nn.ReLU(),
            nn.Linear(16, 5),
        ).to(dtype)


def train(
    model: nn.Module, optimizer: Optimizer, steps: Iterable[int] = range(STEPS)
) -> Iterator[int]:
    """Train on random batches, the one of a step always the same; yields after every step.

    Examples
    --------
    >>> model = tiny_network()
    >>> list(train(model, SGD(model.parameters(), 0.1), range(3)))
    [0, 1, 2]
    """
    dtype = next(model.parameters()).dtype
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(12, 4, 6, 6, generator=generator, dtype=dtype)
        y = torch.randint(5, (12,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield step


def check_training_method(
    method: TrainingMethod, *, refused: Iterable[tuple[Mapping[str, Any], str]] = ()
) -> None:
    """Run every check of this module on a method.

    Parameters
    ----------
    method : TrainingMethod
        That takes the layers of `tiny_network`, of 36, 72, 32 and 16 inputs.
    refused : iterable of (parameters, pattern)
        Parameters that the constructor must refuse, and a regular expression for its message.

    Raises
    ------
    AssertionError
        Naming the first rule broken.
    """
    check_record(method)
    check_documented(type(method))
    check_refusals(type(method), refused)
    for name in OPTIMIZERS:
        check_resumes(method, name)
        check_detaches(method, name)
        if isinstance(method, MaskedTraining):
            check_zeros(method, name)
            check_storages(method, name)


def check_zeros(method: MaskedTraining, optimizer: str = "momentum") -> None:
    """Check after every step that dropped weights and their optimizer states are zero.

    Layers keep their number of weights unless the schedule gives another density, weights that
    have just grown are zero, and biases and norms are dense.
    """
    model, optim, attachment = _attached(method, optimizer, "masked")
    weights = {name: _weight(model, name) for name in attachment.masks()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    counts = method.counts(shapes, method.initial_density)
    masks = attachment.masks()
    for step in train(model, optim):
        before, masks = masks, attachment.masks()
        update = method.schedule(step)
        if update is not None and update.density is not None:
            counts = method.counts(shapes, update.density)
        for name, weight in weights.items():
            mask, case = masks[name], f"{method} with {optimizer}, step {step}, layer {name}"
            expect(int(mask.sum()) == counts[name], f"{case}: {int(mask.sum())} active weights")
            expect(not bool(weight[~mask].any()), f"{case}: a dropped weight is not zero")
            grown = mask & ~before[name]
            expect(not bool(weight[grown].any()), f"{case}: a grown weight is not zero")
            for key, value in optim.state[weight].items():
                if value.shape == mask.shape:
                    dead = not bool(value[~mask | grown].any())
                    expect(dead, f"{case}: {key} of a dropped or grown weight is not zero")
    plain = tiny_network()
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in weights:
            moved = bool((parameter != plain.get_parameter(name)).all())
            expect(moved, f"{method} keeps {name} from training")


def check_storages(method: MaskedTraining, optimizer: str = "momentum") -> None:
    """Check that masks over dense weights and stored non-zeros go the same way, to rounding."""
    runs = [_attached(method, optimizer, storage) for storage in get_args(Storage)]
    for step, _ in zip(*(train(model, optim) for model, optim, _ in runs), strict=True):
        masked, sparse = (attachment.masks() for _, _, attachment in runs)
        for name, mask in masked.items():
            same = torch.equal(mask, sparse[name])
            expect(same, f"{method}: masks of {name} differ between storages at step {step}")
    for *_, attachment in runs:
        attachment.detach()
    (masked, *_), (sparse, *_) = runs
    for name, value in masked.state_dict().items():
        error = float((value - sparse.state_dict()[name]).abs().max())
        expect(error <= 1e-9, f"{method}: {name} differs between storages by {error:.1e}")


def check_resumes(method: TrainingMethod, optimizer: str = "momentum") -> None:
    """Check that a run saved at any step and loaded goes on bit by bit as if it had not been."""
    for storage in _storages(method):
        whole = _attached(method, optimizer, storage)
        saved = {step: _saved(*whole) for step in train(*whole[:2]) if step in (0, 7, STEPS - 1)}
        last = saved.pop(STEPS - 1)
        for step, file in saved.items():
            copy = _attached(method, optimizer, storage, seed=7)
            for part, state in zip(copy, _loaded(file), strict=True):
                part.load_state_dict(state)
            for _ in train(*copy[:2], range(step + 1, STEPS)):
                pass
            same = _leaves(_loaded(_saved(*copy))) == _leaves(_loaded(last))
            expect(same, f"{method}, {storage}, {optimizer}: resumed after step {step} differs")


def check_detaches(method: TrainingMethod, optimizer: str = "momentum") -> None:
    """Check that the model gets its layers back, computes what it did, and has no trace left."""
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    for storage in _storages(method):
        model = tiny_network()
        optim = OPTIMIZERS[optimizer](model.parameters())
        before, held = _anatomy(model), [*map(id, model.parameters())]
        with attach(model, optim, method, storage=storage):
            for _ in train(model, optim):
                pass
            expected = model.eval()(x)
        case = f"{method}, {storage}"
        found = model(x)
        close = torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
        expect(close, f"{case}: the plain model computes something else")
        expect(_anatomy(model.train()) == before, f"{case}: the model is not as it was")
        groups = [id(p) for group in optim.param_groups for p in group["params"]]
        expect(groups == held, f"{case}: the optimizer holds other parameters")
        hooks = len(optim._optimizer_step_pre_hooks) + len(optim._optimizer_step_post_hooks)
        expect(hooks == 0, f"{case}: the optimizer keeps {hooks} hooks")
        for _ in train(model, optim, range(2)):  # it trains on, with the optimizer's own state
            pass


def _attached(
    method: TrainingMethod, optimizer: str, storage: Storage, seed: int = 0
) -> tuple[nn.Module, Optimizer, Attachment]:
    model = tiny_network(seed=seed)
    optim = OPTIMIZERS[optimizer](model.parameters())
    return model, optim, attach(model, optim, method, storage=storage, seed=seed)


def _storages(method: TrainingMethod) -> tuple[Storage, ...]:
    return get_args(Storage) if isinstance(method, MaskedTraining) else ("masked",)


def _saved(*parts: Any) -> bytes:
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    return file.getvalue()


def _loaded(file: bytes) -> list[dict[str, Any]]:
    return torch.load(io.BytesIO(file), weights_only=True)


def _leaves(state: Any, path: str = "") -> dict[str, Any]:
    """Every value of nested states by its place, tensors as their bytes."""
    if isinstance(state, Tensor):
        bits = state.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return {path: (state.shape, state.dtype, bits)}
    if not isinstance(state, dict | list | tuple):
        return {path: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {
        key: leaf for name, value in items for key, leaf in _leaves(value, f"{path}/{name}").items()
    }


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight")


def _anatomy(model: nn.Module) -> list[tuple[Any, ...]]:
    """Everything about a model but the values of its tensors."""
    return [
        (
            name,
            id(module),
            type(module),
            sorted(set(vars(module)) - {"_forward_hooks_with_kwargs"}),
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            [(key, id(p), p.shape) for key, p in module.named_parameters(recurse=False)],
            [p._backward_hooks for p in module.parameters(recurse=False) if p._backward_hooks],
        )
        for name, module in model.named_modules()
    ]
