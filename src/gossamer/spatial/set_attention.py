"""Layers of attention inside sets, and the block that rotates the sets between two of them."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.kernels import set_attention
from gossamer.kernels.backend import Impl
from gossamer.patterns import TokenSets
from gossamer.spatial.partition import RotatedSets

Order = Literal["y", "x"]
ORDERS: tuple[Order, Order] = ("y", "x")


class SetAttention(nn.Module):
    """A transformer layer whose attention stays inside sets of voxels.

    ``h = LN(x + attention(x))``, ``layer(x) = LN(h + FFN(h))``: normalisation comes last. Queries
    and keys carry positions, values do not.

    Parameters
    ----------
    channels, heads, hidden : int
        Features, attention heads and width of the feed-forward network.
    impl : {"auto", "reference", "cpu", "triton"}
        Of the kernel.

    Examples
    --------
    >>> import torch
    >>> sets = TokenSets.from_lists([[0, 2, 4], [1, 3]], size=3)
    >>> SetAttention(16, 2, 32)(torch.randn(5, 16), torch.randn(5, 16), sets).shape
    torch.Size([5, 16])
    """

    def __init__(self, channels: int, heads: int, hidden: int, *, impl: Impl = "auto") -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"expected heads to divide {channels} channels, got {heads}")
        self.heads = heads
        self.impl: Impl = impl
        self.query_key = nn.Linear(channels, 2 * channels)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.expand = nn.Linear(channels, hidden)
        self.contract = nn.Linear(hidden, channels)
        self.norm_attention = nn.LayerNorm(channels)
        self.norm_output = nn.LayerNorm(channels)
        # Query and key are initialised as one matrix with value, as nn.MultiheadAttention does.
        bound = (6 / (4 * channels)) ** 0.5
        for layer in (self.query_key, self.value):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.project.bias)
        for layer in (self.project, self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, features: Tensor, position: Tensor, sets: TokenSets) -> Tensor:
        """Return [N, channels] for features and positions [N, channels]."""
        count, channels = features.shape
        placed = self.query_key(features + position).view(count, 2, self.heads, -1)
        query, key = placed.permute(1, 2, 0, 3)  # [heads, N, channels / heads] each
        value = self.value(features).view(count, self.heads, -1).transpose(0, 1)
        attended = set_attention(query, key, value, sets, impl=self.impl)
        attended = self.project(attended.transpose(0, 1).reshape(count, channels))
        features = self.norm_attention(features + attended)
        return self.norm_output(features + self.contract(F.gelu(self.expand(features))))


class DSVTBlock(nn.Module):
    """Two layers of set attention, over sets cut along y and then along x.

    Each layer has positions of its own, a small network of the voxels' places in their windows,
    and a residual with normalisation around it.

    Parameters
    ----------
    channels, heads, hidden : int
    axes : int
        2 where windows are one voxel high, else 3.
    orders : pair of {"y", "x"}
        Which sets each layer uses; ("y", "y") does not rotate them.
    impl : {"auto", "reference", "cpu", "triton"}
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        *,
        axes: int = 2,
        orders: tuple[Order, Order] = ORDERS,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        self.orders = orders
        self.positions = nn.ModuleList(_position(axes, channels) for _ in orders)
        self.layers = nn.ModuleList(
            SetAttention(channels, heads, hidden, impl=impl) for _ in orders
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in orders)

    def forward(self, features: Tensor, sets: RotatedSets, offsets: Sequence[Tensor]) -> Tensor:
        """Return [N, channels]; `offsets` [N, axes] are the places in windows for each layer."""
        steps = zip(self.orders, self.positions, self.layers, self.norms, offsets, strict=True)
        for order, position, layer, norm, offset in steps:
            placed = position(offset.to(features.dtype))
            chosen = sets.y_major if order == "y" else sets.x_major
            features = norm(features + layer(features, placed, chosen))
        return features


def _position(axes: int, channels: int) -> nn.Sequential:
    first, last = nn.Linear(axes, channels), nn.Linear(channels, channels)
    for linear in (first, last):
        nn.init.xavier_uniform_(linear.weight)
    return nn.Sequential(first, nn.BatchNorm1d(channels), nn.ReLU(), last)
