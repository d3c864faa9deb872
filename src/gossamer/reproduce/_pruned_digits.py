"""A small depthwise-separable network on handwritten digits, pruned in several patterns."""

import copy
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.compression import GroupPruner, channel_rearrange
from gossamer.compression.kernel_groups import prunable_layers

EPOCHS, FINE_TUNING = 12, 6
GROUP = 8


def prune_and_tune(seed: int, epochs: int = EPOCHS, more: int = FINE_TUNING) -> dict[str, float]:
    """Train on digits, prune half of the network in several patterns and fine-tune each.

    Parameters
    ----------
    seed : int
        Of the split, the weights and the batches.
    epochs, more : int
        Before and after pruning.

    Returns
    -------
    dict of str to float
        Share of the test digits that each network gets right.
    """
    images, labels = _digits(seed)
    split = len(images) // 3  # few to learn from, so that patterns differ
    train, test = (images[:split], labels[:split]), (images[split:], labels[split:])
    torch.manual_seed(seed)
    dense = _small_mobilenet()
    _train(dense, *train, epochs, seed, {})
    found = {"dense": _right(dense, *test)}
    for name, group, rearranged in (
        ("unstructured", 1, False),
        ("groups, rearranged", GROUP, True),
        ("groups", GROUP, False),
        ("filters", 0, False),
    ):
        model = copy.deepcopy(dense)
        if rearranged:
            channel_rearrange(model, images[:2], group=group, sparsity=0.5, seed=seed)
        masks = GroupPruner(0.5, group).decide(model) if group else _filter_masks(model)
        _train(model, *train, more, seed, masks)
        found[name] = _right(model, *test)
    return found


def _digits(seed: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8)[order] / 16
    return F.interpolate(images, scale_factor=2.0), torch.from_numpy(labels)[order]


def _small_mobilenet() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs, stride in ((16, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 1)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            *(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False)),
            *(nn.BatchNorm2d(outputs), nn.ReLU()),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _filter_masks(model: nn.Module) -> dict[str, Tensor]:
    """Remove half of each layer's output channels, those of least L1 norm."""
    masks = {}
    for name, layer in prunable_layers(model).items():
        norms = layer.weight.detach().abs().flatten(1).sum(1)
        kept = norms.argsort(descending=True).argsort() < len(norms) - len(norms) // 2
        masks[name] = kept.reshape(-1, *[1] * (layer.weight.ndim - 1)).expand(layer.weight.shape)
    return masks


def _train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int,
    masks: Mapping[str, Tensor],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    hold = partial(GroupPruner(0.5).apply, model, masks)
    model.train()
    hold()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            hold()
        schedule.step()
    model.eval()


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())
