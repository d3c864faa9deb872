"""Work counted as it is executed: multiply-adds, elementwise work, and the search for patterns.

One multiply-add (MAC) is two FLOPs. What counts is what a kernel multiplies: a dense kernel on a
masked weight is counted densely, an operation of `gossamer.kernels` by its stored entries or
computed pairs. That is the difference to counters that know the layers' shapes only.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gossamer.measure import causal_pairs
from gossamer.patterns import BlockPattern, StripePattern, Window

Formula = Callable[[Sequence[Any], Any], int]
"""Multiply-adds of one call, from its arguments, in the order of the schema, and its result."""


class MacCounter(TorchDispatchMode):
    """Count the work of everything that runs inside a ``with`` block, on any device.

    Attributes
    ----------
    macs : Counter of str to int
        Multiply-adds by operator: linear layers, convolutions, attention, their gradients, and
        the sparse kernels. A custom operator adds its own by `register_macs`.
    elementwise : int
        Results of elementwise operators and inputs of norms, softmax and other reductions.
    overhead_ops : int
        Inputs of operators that choose and index (sort, top-k, gather, pattern searches).
    unknown : set of str
        Custom operators that ran without a formula: the count is a lower bound if there are any.

    Examples
    --------
    >>> layer, x = torch.nn.Linear(8, 4), torch.zeros(2, 8, requires_grad=True)
    >>> with MacCounter() as counter:
    ...     output = layer(x)
    >>> counter.total, 2 * 8 * 4
    (64, 64)
    >>> with MacCounter() as backward:
    ...     output.sum().backward()
    >>> backward.total
    128
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.elementwise = self.overhead_ops = 0
        self.unknown: set[str] = set()

    @property
    def total(self) -> int:
        """Multiply-adds of all operators."""
        return self.macs.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._count(func, _arguments(func, args, kwargs or {}), result)
        return result

    def _count(self, func: Any, args: Sequence[Any], result: Any) -> None:
        name = func.name().split(".")[0]
        if name in FORMULAS:
            self.macs[name] += FORMULAS[name](args, result)
        elif name in CHOOSING:
            self.overhead_ops += max((x.numel() for x in args if isinstance(x, Tensor)), default=0)
        elif name in REDUCING:
            self.elementwise += args[0].numel()
        elif torch.Tag.pointwise in func.tags:
            self.elementwise += result.numel() if isinstance(result, Tensor) else 0
        elif not name.startswith(BUILT_IN):
            self.unknown.add(name)


def register_macs(name: str, formula: Formula) -> None:
    """Tell `MacCounter` what a custom operator multiplies.

    Parameters
    ----------
    name : str
        As torch names it, such as ``"mylibrary::product"``.
    formula : callable
        ``formula(arguments, result) -> int``, the arguments in the order of the schema.

    Raises
    ------
    ValueError
        If the name has no namespace, or a formula already.

    Examples
    --------
    >>> register_macs("example::dot", lambda args, result: args[0].numel())
    >>> del FORMULAS["example::dot"]
    """
    if name.count("::") != 1 or name in FORMULAS:
        raise ValueError(f'name: expected "namespace::operator" without a formula, got {name!r}')
    FORMULAS[name] = formula


def training_step_macs(forward: int, dense: int, *, every: int) -> float:
    """Return the mean multiply-adds of a training step that grows by dense gradients.

    ``(every * 3 forward + 2 forward + dense) / (every + 1)``: forward, input gradient and weight
    gradient are sparse, but the weight gradient of one step in every + 1 is dense.

    Parameters
    ----------
    forward, dense : int
        Multiply-adds of a forward pass of the sparse and of the dense model.
    every : int
        Sparse steps from one such step to the next.

    Examples
    --------
    >>> training_step_macs(10, 100, every=99), training_step_macs(10, 10, every=99)
    (30.9, 30.0)
    """
    if every < 1 or not 0 <= forward <= dense:
        raise ValueError(
            f"expected every >= 1 and 0 <= forward <= dense, got {every}, {forward}, {dense}"
        )
    return (every * 3 * forward + 2 * forward + dense) / (every + 1)


def _arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """List what an operator was given, by position, with the schema's defaults."""
    names = func._schema.arguments
    given = list(args)
    return given + [kwargs.get(one.name, one.default_value) for one in names[len(given) :]]


def _matrices(a: Tensor, b: Tensor) -> int:
    """Count [..., M, K] times [..., K, N] or [K]; one of them may be sparse."""
    if b.layout != torch.strided:
        return a.shape[0] * _stored(b)
    return _stored(a) * (b.shape[-1] if b.ndim > 1 else 1)


def _stored(x: Tensor) -> int:
    if x.layout == torch.strided:
        return x.numel()
    return x._nnz() if x.layout == torch.sparse_coo else x.values().numel()


def _convolution(args: Sequence[Any], result: Tensor) -> int:
    image, weight, transposed = args[0], args[1], args[6]
    positions = prod((image if transposed else result).shape[2:]) * image.shape[0]
    return positions * weight.numel()


def _convolution_backward(args: Sequence[Any], result: Any) -> int:
    grad, image, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    positions = prod((image if transposed else grad).shape[2:]) * image.shape[0]
    return positions * weight.numel() * sum(wanted[:2])


def _attention(args: Sequence[Any], causal: bool) -> int:
    query, key, value = args[:3]
    heads, queries, keys = prod(query.shape[:-2]), query.shape[-2], key.shape[-2]
    # torch aligns causal attention at the top left: later keys are not seen by any query.
    pairs = causal_pairs(queries, queries) if causal else queries * keys
    if causal and keys < queries:
        pairs = causal_pairs(keys, keys) + (queries - keys) * keys
    return heads * pairs * (query.shape[-1] + value.shape[-1])


def _attention_backward(args: Sequence[Any], causal: bool) -> int:
    # Logits once more, then the gradients of value, probabilities, query and key.
    query, value = args[1], args[3]
    forward = _attention(args[1:4], causal)
    return (
        forward * (3 * query.shape[-1] + 2 * value.shape[-1]) // (query.shape[-1] + value.shape[-1])
    )


def _gathered(args: Sequence[Any], result: Any) -> int:
    query, key, value, starts, counts, indices, list_heads, group, causal = args[:9]
    shape = query.shape[0], list_heads, -(-query.shape[2] // group), key.shape[2]
    pattern = StripePattern(*_rows(starts, counts, indices), shape, group)
    pairs = pattern.pairs(query.shape[2], causal=causal) * query.shape[1] // list_heads
    return pairs * (query.shape[3] + value.shape[3])


def _block_sparse(args: Sequence[Any], result: Any) -> int:
    query, key, value, starts, counts, indices, list_heads, block, causal = args[:9]
    sink, local = args[10:12]
    batch, heads, q_len, k_len = *query.shape[:3], key.shape[2]
    window = Window(sink, local) if local else None
    if starts is not None:
        shape = batch, list_heads, -(-q_len // block), -(-k_len // block)
        pattern = BlockPattern(*_rows(starts, counts, indices), shape, block)
        pairs = pattern.pairs(q_len, k_len, causal=causal, window=window) * heads // list_heads
    elif window is not None:
        pairs = batch * heads * window.pairs(q_len, k_len)
    else:
        pairs = batch * heads * (causal_pairs(q_len, k_len) if causal else q_len * k_len)
    return pairs * (query.shape[3] + value.shape[3])


def _set_pairs(repeated: Tensor) -> int:
    """Count the pairs of tokens that meet in sets, repeats left out, from [sets, size] marks."""
    return int((~repeated.bool()).sum(1).square().sum())


def _set_attention(args: Sequence[Any], result: Any) -> int:
    query, _, value, _, repeated = args[:5]
    return _set_pairs(repeated) * len(query) * (query.shape[2] + value.shape[2])


def _set_attention_backward(args: Sequence[Any], result: Any) -> int:
    # As of attention's: logits once more, then four gradients.
    query, value, repeated = args[1], args[3], args[5]
    return _set_pairs(repeated) * len(query) * (3 * query.shape[2] + 2 * value.shape[2])


def _rows(starts: Tensor, counts: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Bring lists that lie anywhere in `indices` behind one another: offsets and keys."""
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    lists = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    within = torch.arange(len(lists), device=counts.device) - offsets[lists]
    return offsets, indices[starts[lists] + within]


FORMULAS: dict[str, Formula] = {
    "aten::mm": lambda a, _: _matrices(a[0], a[1]),
    "aten::mv": lambda a, _: _matrices(a[0], a[1]),
    "aten::bmm": lambda a, _: _matrices(a[0], a[1]),
    "aten::dot": lambda a, _: a[0].numel(),
    "aten::addmm": lambda a, _: _matrices(a[1], a[2]),
    "aten::addmv": lambda a, _: _matrices(a[1], a[2]),
    "aten::baddbmm": lambda a, _: _matrices(a[1], a[2]),
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::_scaled_dot_product_flash_attention_for_cpu": lambda a, _: _attention(a, a[4]),
    "aten::_scaled_dot_product_flash_attention": lambda a, _: _attention(a, a[4]),
    "aten::_scaled_dot_product_efficient_attention": lambda a, _: _attention(a, a[6]),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": (
        lambda a, _: _attention_backward(a, a[7])
    ),
    "gossamer::sparse_linear": lambda a, out: a[1].numel() * prod(out.shape[:2]),
    "gossamer::sparse_linear_backward": lambda a, _: 2 * a[2].numel() * prod(a[0].shape[:2]),
    "gossamer::sddmm": lambda a, _: a[3].numel() * prod(a[0].shape[:2]),
    # The values stand first, or last behind their panels; slices are padded with zeros.
    "gossamer::sparse_gemv": lambda a, _: (
        (int(a[0][0].count_nonzero()) if a[3] == "gather" else a[0][0].numel()) * len(a[2])
    ),
    "gossamer::lossless_gemv": lambda a, out: out.numel() * a[3].shape[1],
    "gossamer::spmm": lambda a, out: (
        (a[0][-1] if a[7] == "cpu" else a[0][0]).numel() * out.shape[0] * out.shape[2]
    ),
    "gossamer::int8_spmm": lambda a, out: a[0][2].numel() * out.shape[0] * out.shape[2],
    "gossamer::nm_matmul": lambda a, out: a[0].numel() * out.shape[0] * out.shape[2],
    "gossamer::activation_sparse_matmul": lambda a, out: int(a[0].count_nonzero()) * out.shape[1],
    "gossamer::depthwise_conv": lambda a, out: out.numel() * prod(a[1].shape[-2:]),
    "gossamer::gathered_attention": _gathered,
    "gossamer::block_sparse_attention": _block_sparse,
    "gossamer::set_attention": _set_attention,
    "gossamer::set_attention_backward": _set_attention_backward,
}
CHOOSING = {
    *(f"aten::{name}" for name in ("topk", "sort", "argsort", "argmax", "kthvalue", "nonzero")),
    *(f"aten::{name}" for name in ("gather", "index", "index_select", "scatter", "masked_select")),
    *(f"aten::{name}" for name in ("index_put_", "cumsum", "searchsorted", "bucketize")),
    *(f"gossamer::{name}" for name in ("paged_dot", "soft_votes", "top_indices", "tree_search")),
    *(f"gossamer::{name}" for name in ("stripe_search", "random_walks", "balanced_sets")),
    *(f"gossamer::{name}" for name in ("mask_swaps", "sparsegpt_sweep")),
}
REDUCING = {
    *(f"aten::{name}" for name in ("_softmax", "_log_softmax", "sum", "mean", "amax", "amin")),
    *(f"aten::{name}" for name in ("native_layer_norm", "native_batch_norm", "native_group_norm")),
    *(f"aten::{name}" for name in ("var_mean", "logsumexp", "_native_batch_norm_legit")),
    *(f"gossamer::{name}" for name in ("rotate", "tv_dual_ascent", "tv_adjoint")),
}
BUILT_IN = ("aten::", "prims::", "prim::", "c10d::", "profiler::")
