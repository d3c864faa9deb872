"""Scores: how much a unit matters. Higher matters more."""

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """Score weights by ``|w|``.

    Examples
    --------
    >>> magnitude(torch.tensor([-2.0, 1.0])).tolist()
    [2.0, 1.0]
    """
    return weight.abs()


def gradient(grad: Tensor) -> Tensor:
    """Score weights by ``|dL/dw|``, the rate at which a dropped weight would help (RigL).

    Examples
    --------
    >>> gradient(torch.tensor([0.5, -1.0])).tolist()
    [0.5, 1.0]
    """
    return grad.abs()


def sensitivity(weight: Tensor, grad: Tensor) -> Tensor:
    """Score weights by ``|w * dL/dw|``, the first-order loss change of dropping each (SNIP).

    Parameters
    ----------
    weight, grad : Tensor
        Of one shape.

    Examples
    --------
    >>> sensitivity(torch.tensor([2.0, -3.0]), torch.tensor([0.5, 1.0])).tolist()
    [1.0, 3.0]
    """
    if weight.shape != grad.shape:
        raise ValueError(
            f"expected grad of weight's shape {tuple(weight.shape)}, got {tuple(grad.shape)}"
        )
    return (weight * grad).abs()


def activation_weighted(weight: Tensor, input_norm: Tensor) -> Tensor:
    """Score weights by ``|w| * ||x||`` of the input that each multiplies (Wanda, 2306.11695).

    Parameters
    ----------
    weight : Tensor [..., out, in]
    input_norm : Tensor [in]
        L2 norm of every input feature over the calibration tokens.

    Examples
    --------
    >>> activation_weighted(torch.tensor([[-2.0, 1.0]]), torch.tensor([1.0, 4.0])).tolist()
    [[2.0, 4.0]]
    """
    if input_norm.shape != weight.shape[-1:]:
        raise ValueError(
            f"expected input_norm of shape {tuple(weight.shape[-1:])}, one norm an input feature, "
            f"got {tuple(input_norm.shape)}"
        )
    return weight.abs() * input_norm


def similarity(query: Tensor, key: Tensor, *, scale: float = 1.0) -> Tensor:
    """Score keys by their dot product with each query.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
    key : Tensor [B, Hkv, k_len, D]
        ``Hkv`` divides ``H``: query head ``h`` reads key head ``h * Hkv // H``.
    scale : float, default 1.0
        Factor on the products; attention logits take ``D ** -0.5``.

    Returns
    -------
    Tensor [B, H, q_len, k_len]

    Examples
    --------
    >>> similarity(torch.ones(1, 2, 1, 4), torch.ones(1, 1, 3, 4), scale=0.5).tolist()
    [[[[2.0, 2.0, 2.0]], [[2.0, 2.0, 2.0]]]]
    """
    if (
        query.ndim != 4
        or key.ndim != 4
        or (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3])
        or key.shape[1] == 0
        or query.shape[1] % key.shape[1]
    ):
        raise ValueError(
            "expected query [B, H, q_len, D] and key [B, Hkv, k_len, D] with Hkv dividing H, got "
            f"{tuple(query.shape)} and {tuple(key.shape)}"
        )
    # Queries that share a key head go through one product, so that no key is repeated.
    batch, heads, q_len, dim = query.shape
    shared = query.reshape(batch, key.shape[1], heads // key.shape[1] * q_len, dim)
    products = (shared * scale) @ key.transpose(-1, -2)
    return products.reshape(batch, heads, q_len, key.shape[2])


def pooled_similarity(query: Tensor, key: Tensor, *, block: int, scale: float = 1.0) -> Tensor:
    """Score key blocks by the dot product of block means, the usual proxy for block mass.

    Parameters
    ----------
    query : Tensor [B, H, q_len, D]
    key : Tensor [B, Hkv, k_len, D]
    block : int
        Tokens in a block.
    scale : float, default 1.0
        Factor on the products.

    Returns
    -------
    Tensor [B, H, q_blocks, k_blocks]

    Examples
    --------
    >>> pooled_similarity(torch.ones(1, 1, 5, 4), torch.ones(1, 1, 8, 4), block=4).shape
    torch.Size([1, 1, 2, 2])
    """
    return similarity(block_mean(query, block), block_mean(key, block), scale=scale)


def block_mean(x: Tensor, block: int) -> Tensor:
    """Average every `block` consecutive tokens, the last block over the tokens it has.

    Parameters
    ----------
    x : Tensor [..., tokens, D]
    block : int

    Returns
    -------
    Tensor [..., ceil(tokens / block), D]

    Examples
    --------
    >>> block_mean(torch.tensor([[1.0], [3.0], [5.0]]), 2).tolist()
    [[2.0], [5.0]]
    """
    if block < 1:
        raise ValueError(f"expected block of at least 1, got {block}")
    tokens = x.shape[-2]
    whole = tokens - tokens % block
    means = x[..., :whole, :].unflatten(-2, (whole // block, block)).mean(-2)
    if whole == tokens:
        return means
    return torch.cat([means, x[..., whole:, :].mean(-2, keepdim=True)], -2)
