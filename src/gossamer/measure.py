"""Measures: what was kept, what was computed, and what it cost in quality."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def density(tensor: Tensor) -> float:
    """Return the share of non-zero (or True) elements; NaN for an empty tensor.

    Examples
    --------
    >>> density(torch.tensor([0.0, 2.0, 0.0, -1.0]))
    0.5
    """
    return int(tensor.count_nonzero()) / tensor.numel() if tensor.numel() else float("nan")


def causal_pairs(q_len: int, k_len: int) -> int:
    """Return how many (query, key) pairs causal attention computes, bottom-right aligned.

    Examples
    --------
    >>> causal_pairs(3, 3), causal_pairs(1, 10)
    (6, 10)
    """
    if q_len < 0 or k_len < 0:
        raise ValueError(f"expected lengths of at least 0, got {q_len=} and {k_len=}")
    # The first query that sees a key sees max(0, k_len - q_len) + 1, each later one a key more.
    return min(q_len, k_len) * (max(0, k_len - q_len) + 1 + k_len) // 2


def attention_density(
    pairs: int, q_len: int, k_len: int, *, heads: int = 1, batch: int = 1
) -> float:
    """Return computed causal pairs over all causal pairs; NaN when there are none.

    Parameters
    ----------
    pairs : int
        Pairs computed, summed over `heads` and `batch`, as a pattern's ``pairs`` counts them.
    q_len, k_len : int
    heads, batch : int, default 1

    Raises
    ------
    ValueError
        If there are more pairs than causal attention has.

    Examples
    --------
    >>> attention_density(3, 3, 3)
    0.5
    """
    every = causal_pairs(q_len, k_len) * heads * batch
    if not 0 <= pairs <= every:
        raise ValueError(f"expected pairs in [0, {every}], got {pairs}; try causal pairs only")
    return pairs / every if every else float("nan")


def attention_flops(pairs: int, head_dim: int) -> int:
    """Return the multiply-adds of attention, counted as two each: ``4 * pairs * head_dim``.

    One product a pair for the logit, one for the value; the softmax itself is left out.

    Examples
    --------
    >>> attention_flops(causal_pairs(3, 3), 64)
    1536
    """
    return 4 * pairs * head_dim


def mask_overlap(mask: Tensor, other: Tensor) -> float:
    """Return the Jaccard index of two bool masks, 1.0 when both are empty.

    Raises
    ------
    TypeError
        If a mask is not bool.
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> mask_overlap(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    0.3333333333333333
    """
    if mask.dtype != torch.bool or other.dtype != torch.bool:
        raise TypeError(f"expected two bool masks, got {mask.dtype} and {other.dtype}")
    _check_like(mask, other, "masks")
    either = int((mask | other).sum())
    return int((mask & other).sum()) / either if either else 1.0


@dataclass(frozen=True)
class MaskDivergence:
    """How many positions two sets of masks disagree on.

    Parameters
    ----------
    by_layer : dict of str to int
        Flipped positions of each layer.
    size : int
        Positions of all layers.
    """

    by_layer: dict[str, int]
    size: int

    @property
    def flips(self) -> int:
        """Flipped positions of all layers."""
        return sum(self.by_layer.values())

    @property
    def share(self) -> float:
        """Flipped positions over all positions; NaN when there are none."""
        return self.flips / self.size if self.size else float("nan")


def mask_divergence(masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> MaskDivergence:
    """Count the positions that changed from one set of masks to another.

    The sparse architecture divergence (SAD) of SR-STE (arXiv 2102.04010), ``sum |E - E'|``.

    Parameters
    ----------
    masks, others : mapping of str to bool Tensor
        One mask a layer, of the same layers and shapes.

    Raises
    ------
    TypeError
        If a mask is not bool.
    ValueError
        If layers or shapes differ.

    Examples
    --------
    >>> before, after = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    >>> mask_divergence({"fc": before}, {"fc": after}).flips
    2
    """
    if masks.keys() != others.keys():
        raise ValueError(f"expected masks of the same layers, got {[*masks]} and {[*others]}")
    by_layer = {}
    for name, mask in masks.items():
        other = others[name]
        if mask.dtype != torch.bool or other.dtype != torch.bool:
            raise TypeError(f"expected bool masks of {name!r}, got {mask.dtype}, {other.dtype}")
        _check_like(mask, other, f"masks of {name!r}")
        by_layer[name] = int((mask ^ other).count_nonzero())
    return MaskDivergence(by_layer, sum(mask.numel() for mask in masks.values()))


def kl_divergence(logits: Tensor, other: Tensor) -> float:
    """Return KL(softmax(logits) || softmax(other)) in nats, the mean over positions.

    Parameters
    ----------
    logits, other : Tensor [..., vocabulary]
        Of one shape, `logits` the reference (dense) model's. Computed in float32, or float64 when
        given so.

    Examples
    --------
    >>> kl_divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    0.0
    """
    _check_like(logits, other, "logits")
    p, q = (_wide(x).log_softmax(-1) for x in (logits, other))
    # A token that p gives no mass adds nothing, whatever q gives it.
    terms = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q))
    return float(terms.sum(-1).mean())


def top1_agreement(logits: Tensor, other: Tensor) -> float:
    """Return the share of positions at which both have the same most likely token.

    Parameters
    ----------
    logits, other : Tensor [..., vocabulary]
        Of one shape.

    Examples
    --------
    >>> top1_agreement(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0]] * 2))
    0.5
    """
    _check_like(logits, other, "logits")
    return density(logits.argmax(-1) == other.argmax(-1))


def perplexity(nll: Tensor) -> float:
    """Return ``exp`` of the mean negative log-likelihood (nats a token).

    Examples
    --------
    >>> perplexity(torch.zeros(5))
    1.0
    """
    return float(nll.double().mean().exp())


def recall(logits: Tensor, mask: Tensor) -> float:
    """Return the share of softmax mass on the kept keys, the mean over queries.

    Parameters
    ----------
    logits : Tensor [..., q_len, k_len]
        Attention logits, -inf where attention is not allowed. Queries that may attend to nothing
        are left out.
    mask : Tensor [..., q_len, k_len] bool
        Kept keys, broadcast to `logits`.

    Examples
    --------
    >>> recall(torch.zeros(1, 4), torch.tensor([True, False, False, True]))
    0.5
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"expected mask to be bool, got {mask.dtype}")
    wide = _wide(logits)
    return recall_from_lse(wide.masked_fill(~mask, -torch.inf).logsumexp(-1), wide.logsumexp(-1))


def recall_from_lse(kept: Tensor, full: Tensor) -> float:
    """Return `recall` from the log-sum-exp of each query's kept logits and of all its logits.

    Both are what attention kernels return, so no map of all pairs is needed.

    Parameters
    ----------
    kept, full : Tensor [..., q_len]
        Of one shape; queries with ``full = -inf`` are left out.

    Examples
    --------
    >>> recall_from_lse(torch.tensor([0.0]), torch.tensor([2.0])) == torch.tensor(-2.0).exp().item()
    True
    """
    _check_like(kept, full, "log-sum-exps")
    seen = full > -torch.inf
    return float((_wide(kept[seen]) - _wide(full[seen])).exp().mean())


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check_like(a: Tensor, b: Tensor, name: str) -> None:
    if a.shape != b.shape:
        raise ValueError(f"expected {name} of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
