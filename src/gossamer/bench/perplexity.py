"""Perplexity over windows of a text, and the windows themselves, drawn without overlap."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gossamer import measure

BATCH_TOKENS = 1024  # of a pass: the logits of more would take too much memory
ROWS = 64  # of float32 logits, so that they stay in the caches


def token_windows(tokenizer: Any, text: str, *, count: int, tokens: int, seed: int = 0) -> Tensor:
    """Draw windows of a text that do not overlap.

    A longer draw with one seed begins with the windows of a shorter one, so that calibration and
    held-out text can be split from one draw.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    text : str
    count, tokens : int
        Windows, and tokens of each.
    seed : int, default=0
        Which windows, in which order.

    Returns
    -------
    Tensor [count, tokens] int64

    Raises
    ------
    ValueError
        If a number is not positive or the text is too short.
    """
    if count < 1 or tokens < 2:
        raise ValueError(f"expected count >= 1 and tokens >= 2, got {count} and {tokens}")
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    windows = ids[: len(ids) // tokens * tokens].view(-1, tokens)
    if len(windows) < count:
        raise ValueError(
            f"expected a text of at least {count * tokens} tokens ({count} windows of {tokens}), "
            f"got {len(ids)}; try a longer text or fewer windows"
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[order[:count]]


@torch.no_grad()
def perplexity(model: Any, windows: Tensor) -> float:
    """Return a model's perplexity, each window read by itself and its first token not counted.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model.
    windows : Tensor [count, tokens] int64
    """
    losses: list[Tensor] = []
    for ids in windows.to(model.device).split(max(1, BATCH_TOKENS // windows.shape[1])):
        for logits, window in zip(model(input_ids=ids, use_cache=False).logits, ids, strict=True):
            parts = zip(logits[:-1].split(ROWS), window[1:].split(ROWS), strict=True)
            losses += [cross_entropy(part.float(), to, reduction="none") for part, to in parts]
    return measure.perplexity(torch.cat(losses))
