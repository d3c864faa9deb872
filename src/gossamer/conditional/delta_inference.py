"""Streaming inference: each frame costs the multiply-adds of what changed since the last one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gossamer.conditional.delta_activation import DeltaActivation
from gossamer.conditional.held_network import HELD, HeldNetwork, take_links
from gossamer.conditional.tracing import called_module, source, trace
from gossamer.kernels import activation_sparse_matmul


@dataclass(frozen=True)
class LayerWork:
    """What one linear layer computed for one frame.

    Parameters
    ----------
    name : str
        Where the layer is called in the model's graph.
    multiply_adds : int
        Products computed; products with padding are no work.
    dense_multiply_adds : int
        What a dense pass computes.
    """

    name: str
    multiply_adds: int
    dense_multiply_adds: int


@dataclass(frozen=True, eq=False)
class Step:
    """One frame's output, and what it cost.

    Parameters
    ----------
    output : Tensor [B, ...]
        What the model returns for this frame.
    layers : tuple of LayerWork
        In the order of the model.
    """

    output: Tensor
    layers: tuple[LayerWork, ...]

    @property
    def multiply_adds(self) -> int:
        """Products computed in all layers."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def density(self) -> float:
        """Products computed over those of a dense pass."""
        return self.multiply_adds / sum(layer.dense_multiply_adds for layer in self.layers)


class DeltaInference:
    """Run a video model frame by frame, multiplying only what changed since the last frame.

    Each linear layer keeps its last output, ``z_t = z_t-1 + W (x_t - x_t-1)``, and all else (bias,
    activation, quantisation, pooling, residual sum) acts on these outputs as ever. Since delta
    layers quantise the values and not their differences, nothing is lost and nothing drifts but
    rounding errors. Convolutions between delta layers, with batch norm, a residual sum and a clamp
    behind them, run in one pass each (`gossamer.kernels.delta_conv`), which touches the positions
    that read a change. A first frame runs dense, and so does a position, or a layer of any other
    kind, of whose inputs much has changed. A depthwise convolution computes the positions that
    read a change, whatever the channel; other grouped convolutions run dense.

    Based on "Training for temporal sparsity in deep neural networks, application in video
    processing" (arXiv 2107.07305), section on delta inference.

    Parameters
    ----------
    model : nn.Module
        From videos [B, T, ...] to [B, T, ...], as `insert_delta` makes it. Copied; batch norms
        are folded.
    dense_above : float
        Share of changed inputs above which a position, or a layer of another kind, is computed
        afresh (a dense product costs about a third of a sparse one). 1.0 multiplies least.
    resync_every : int, optional
        Frames after which all layers compute afresh, against the accumulation of rounding errors.
    dtype : torch.dtype
        float32, or float64 to remove the rounding errors that may move a value over the edge of
        its step.

    Raises
    ------
    TypeError, ValueError
        If an option is out of range, or a linear layer reads something other than a delta layer
        or pads with something other than zeros.

    Examples
    --------
    >>> from gossamer.conditional import insert_delta
    >>> video = torch.zeros(1, 2, 8)
    >>> video[0, 1, 3] = 1.0
    >>> streaming = DeltaInference(insert_delta(nn.Linear(8, 4), video))
    >>> [streaming.step(video[:, t]).multiply_adds for t in range(2)]
    [32, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dense_above: float = 0.3,
        resync_every: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not 0 <= dense_above <= 1 or (resync_every is not None and resync_every < 1):
            raise ValueError(
                f"expected dense_above in 0..1 and resync_every >= 1, got {dense_above} and "
                f"{resync_every}"
            )
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"expected dtype to be float32 or float64, got {dtype}")
        self._dtype, self._resync_every = dtype, resync_every
        self._model = trace(model).eval().to(dtype)
        self._order = [node.name for node in self._model.graph.nodes]
        self._links, self._read = take_links(self._model)
        self._held: HeldNetwork | None = None
        self._dense_above = dense_above
        self._layers = _make_stateful(self._model, dense_above)
        self._dense_work: dict[str, int] = {}
        self._shape: torch.Size | None = None
        self._frames = 0

    def reset(self) -> None:
        """Forget everything: the next frame is a first one, of any size."""
        self._shape, self._frames = None, 0
        self._forget()

    @torch.no_grad()
    def step(self, frame: Tensor) -> Step:
        """Return the model's output for the next frame [B, ...] of B streams.

        Raises
        ------
        ValueError
            If the frame is not finite, or not of the last frame's shape.
        """
        if not frame.is_floating_point() or not _is_finite(frame):
            raise ValueError(f"expected finite floating-point values, got {frame.dtype} or NaN")
        if self._shape not in (None, frame.shape):
            raise ValueError(
                f"expected a frame of shape {list(self._shape)}, got {list(frame.shape)}; "
                "try reset() first"
            )
        afresh = self._shape is None or bool(
            self._resync_every and self._frames % self._resync_every == 0
        )
        if afresh:
            self._forget()  # also what a first frame left that the model refused
        output = self._model(*self._inputs(frame.to(self._dtype), afresh))[:, 0]
        self._shape, self._frames = frame.shape, self._frames + 1
        work = {name: layer.multiply_adds for name, layer in self._layers.items()}
        if self._held is not None:
            work |= self._held.multiply_adds
        if afresh:
            self._dense_work = work
        return Step(
            output.clone(),  # a last layer goes on writing into its own
            tuple(
                LayerWork(name, work[name], self._dense_work[name])
                for name in self._order
                if name in work
            ),
        )

    def _inputs(self, frame: Tensor, afresh: bool) -> list[Tensor]:
        """Run the links, and return what the rest of the model reads: videos of one frame."""
        if not self._links:
            layout = torch.channels_last if frame.ndim == 4 else torch.contiguous_format
            return [frame.contiguous(memory_format=layout).unsqueeze(1)]
        if self._held is None:
            self._held = HeldNetwork(self._links, frame, self._dense_above)
        self._held.step(frame, afresh=afresh)
        return [frame.unsqueeze(1), *(self._held.value(number) for number in self._read)]

    def _forget(self) -> None:
        for layer in self._layers.values():
            layer.input = layer.output = None
        if self._shape is None:
            self._held = None


def _is_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one pass: both of these reach the extremes."""
    return x.numel() == 0 or all(math.isfinite(bound) for bound in torch.aminmax(x))


class _StatefulLinear(nn.Module):
    """A linear layer that keeps its last input and output."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, dense_above: float) -> None:
        super().__init__()
        self.layer = layer.to(memory_format=torch.channels_last)  # pyright: ignore
        self.grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
        self.dense_above = dense_above
        self.weight_t = layer.weight.detach().flatten(1).T.contiguous()  # [K, M]
        self.input: Tensor | None = None
        self.output: Tensor | None = None
        self.multiply_adds = self.dense_multiply_adds = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.input is None or self.output is None or self.grouped:
            return self._afresh(x)
        change = x - self.input
        if int(change.ne(0).count_nonzero()) > self.dense_above * change.numel():
            return self._afresh(x)
        if isinstance(self.layer, nn.Linear):
            active = change.abs().amax(-1) > 0
            output = self.output
        else:
            active = self._read(change.abs().amax(1, keepdim=True)).amax((-3, -2, -1)) > 0
            output = self.output.permute(0, 2, 3, 1)
        rows = self._read(change)[active].flatten(1)
        if rows.dtype == torch.float64:  # the kernel multiplies in float32
            output[active] += torch.sparse.mm(rows.to_sparse(), self.weight_t)
        else:
            output[active] += activation_sparse_matmul(rows, self.weight_t)
        self.input = x
        self.multiply_adds = int(rows.count_nonzero()) * self.weight_t.shape[1]
        return self.output

    def _afresh(self, x: Tensor) -> Tensor:
        if self.input is None or self.input.shape != x.shape:
            self.dense_multiply_adds = self._count(x)
        output = self.layer(x)
        self.input, self.output = x, output
        self.multiply_adds = self.dense_multiply_adds
        return output

    def _read(self, x: Tensor) -> Tensor:
        """View x as what each output position reads: [..., K], or [N, H, W, C, kh, kw]."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return x
        padding = layer._reversed_padding_repeated_twice
        places = (F.pad(x, padding) if any(padding) else x).permute(0, 2, 3, 1)
        for dim in (0, 1):
            span = layer.dilation[dim] * (layer.kernel_size[dim] - 1) + 1
            places = places.unfold(1 + dim, span, layer.stride[dim])
        return places[..., :: layer.dilation[0], :: layer.dilation[1]]

    def _count(self, x: Tensor) -> int:
        """Count the products of a dense pass, without those that padding makes."""
        if isinstance(self.layer, nn.Linear):
            return x.numel() * self.layer.out_features
        inside = self._read(x.new_ones(1, 1, *x.shape[2:]))
        return int(inside.count_nonzero()) * len(x) * self.layer.weight[:, :, 0, 0].numel()


def _make_stateful(model: fx.GraphModule, dense_above: float) -> dict[str, _StatefulLinear]:
    """Give each call of a linear layer its own state, the batch norm behind it folded in."""
    found: dict[str, _StatefulLinear] = {}
    for node in list(model.graph.nodes):
        module = called_module(model, node)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        read = source(model, node)
        if HELD not in read.meta and not isinstance(called_module(model, read), DeltaActivation):
            raise ValueError(
                f"expected {node.name!r} to read a delta layer, got {read.name!r}; try insert_delta"
            )
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            raise ValueError(f"expected zero padding, got {module.padding_mode!r} at {node.name!r}")
        behind = next(iter(node.users))
        norm = called_module(model, behind)
        if (
            isinstance(module, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and len(node.users) == 1
        ):
            module = fuse_conv_bn_eval(module, norm)
            behind.replace_all_uses_with(node)
            model.graph.erase_node(behind)
        found[node.name] = _StatefulLinear(module, dense_above)
        model.add_submodule(f"stateful_{node.name}", found[node.name])
        node.target = f"stateful_{node.name}"
    model.delete_all_unused_submodules()
    model.graph.lint()
    model.recompile()
    return found
