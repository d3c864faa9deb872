"""Set attention in plain PyTorch: gather every slot, attend densely, scatter the slots back."""

import torch
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, repeated: Tensor, scale: float
) -> Tensor:
    """Return [heads, tokens, dim]; differentiable, and made of standard operators only."""
    scores = query[:, indices] @ key[:, indices].mT * scale  # [heads, sets, size, size]
    scores = scores.masked_fill(repeated[:, None], float("-inf"))
    attended = scores.softmax(-1) @ value[:, indices]
    # A repeated slot computes what the slot it repeats does, so that writing both changes nothing.
    output = torch.zeros_like(query)
    where = indices.flatten()[:, None].expand(-1, query.shape[2])
    return output.scatter(1, where.expand(len(query), -1, -1), attended.flatten(1, 2))


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    repeated: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    kept = ~repeated
    scores = query[:, indices] @ key[:, indices].mT * scale
    shares = scores.masked_fill(repeated[:, None], float("-inf")).softmax(-1)
    grads = grad[:, indices] * kept[..., None].to(grad.dtype)  # a token's gradient counts once
    slopes = grads @ value[:, indices].mT
    slopes = shares * (slopes - (shares * slopes).sum(-1, keepdim=True)) * scale
    results = []
    for part in (slopes @ key[:, indices], slopes.mT @ query[:, indices], shares.mT @ grads):
        result = torch.zeros_like(query)
        result[:, indices[kept]] = part[:, kept]
        results.append(result)
    return results[0], results[1], results[2]
