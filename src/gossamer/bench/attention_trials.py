"""What an attention method does to a text, and what one layer of it computes and costs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from gossamer.attention import AttentionMethod, use
from gossamer.bench.attention_capture import Captured, RowMask
from gossamer.bench.timing import Samples, interleaved
from gossamer.data import passkey
from gossamer.measure import perplexity


@dataclass(frozen=True)
class Reading:
    """How a model reads a text with some attention.

    Parameters
    ----------
    perplexity : float
    density : float
        Share of the causal pairs attended to, over all layers and heads.
    """

    perplexity: float
    density: float


def read(
    model: Any, input_ids: Tensor, method: AttentionMethod, *, start: int, rows: int = 512
) -> Reading:
    """Let a model read a prompt with a method, and measure its perplexity.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    input_ids : Tensor [1, T] int64
    method : AttentionMethod
    start : int
        First token whose loss counts, at least 1.
    rows : int
        Positions whose logits exist at once.

    Returns
    -------
    Reading
    """
    head, losses = model.get_output_embeddings(), []
    with torch.no_grad(), use(model, method) as attachment, attachment.metered() as meter:
        hidden = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state[0]
        for first in range(start, input_ids.shape[1], rows):
            truth = input_ids[0, first : first + rows]
            logits = head(hidden[first - 1 : first - 1 + len(truth)]).float()
            losses.append(cross_entropy(logits, truth, reduction="none"))
    return Reading(perplexity(torch.cat(losses)), meter.density)


def passkeys_found(
    model: Any, tokenizer: Any, method: AttentionMethod, hidden: passkey.Haystack
) -> int:
    """Return how many hidden numbers a model finds, each asked after the same prefill.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    tokenizer : transformers.PreTrainedTokenizerBase
    method : AttentionMethod
    hidden : gossamer.data.passkey.Haystack
    """
    right = 0
    with torch.no_grad(), use(model, method) as attachment:
        cache = attachment.new_cache()
        model.get_decoder()(input_ids=hidden.input_ids, past_key_values=cache)
        for key in hidden.keys:
            question = hidden.question(key.label)
            answer = continued(model, cache.fork(), question, passkey.ANSWER_TOKENS)
            right += passkey.found(tokenizer.decode(answer), key.value)
    return right


def continued(model: Any, cache: Any, tokens: Tensor, count: int) -> list[int]:
    """Return the `count` most likely tokens after what `cache` holds and `tokens` [1, n]."""
    answer: list[int] = []
    while len(answer) < count:
        logits = model(input_ids=tokens, past_key_values=cache, logits_to_keep=1).logits
        answer.append(int(logits[0, -1].argmax()))
        tokens = tokens.new_tensor([answer[-1:]])
    return answer


def error_under(captured: Captured, output: Tensor, mask: RowMask, *, rows: int = 128) -> float:
    """Return how far an output is from exact attention over the keys that a mask keeps.

    Parameters
    ----------
    captured : Captured
    output : Tensor [B, H, q_len, D]
    mask : RowMask
        Every query keeps at least one key; see `gossamer.bench.attention_capture.row_mask`.
    rows : int
        Queries compared at once.

    Returns
    -------
    float
        Largest absolute difference to PyTorch in float64, over the largest absolute value.
    """
    q_len, shift = captured.query.shape[2], captured.key.shape[2] - captured.query.shape[2]
    worst = 0.0
    for first in range(0, q_len, rows):
        end = min(first + rows, q_len)
        causal = torch.ones(end - first, end + shift, dtype=torch.bool).tril(first + shift)
        exact = scaled_dot_product_attention(
            captured.query[:, :, first:end].double(),
            captured.key[:, :, : end + shift].double(),
            captured.value[:, :, : end + shift].double(),
            attn_mask=mask(first, end) & causal.to(output.device),
            scale=captured.scale,
            enable_gqa=True,
        )
        worst = max(worst, float((output[:, :, first:end] - exact).abs().max()))
    return worst / float(captured.value.abs().max())


def layer_times(
    captured: Captured, method: AttentionMethod, *, repeats: int = 5
) -> dict[str, Samples]:
    """Time one layer: "dense" (PyTorch's SDPA), and the method's "select" and "attend".

    With fewer queries than keys the dense layer shows every query every key: SDPA would align
    its causal mask to the first key.
    """
    query, key, value, state = captured.query, captured.key, captured.value, captured.state()
    selection = method.select(query, key, state)
    causal = query.shape[2] == key.shape[2]
    return interleaved(
        {
            "dense": lambda: scaled_dot_product_attention(
                query, key, value, is_causal=causal, scale=captured.scale, enable_gqa=True
            ),
            "select": lambda: method.select(query, key, captured.state()),
            "attend": lambda: method.attend(query, key, value, selection, state),
        },
        repeats=repeats,
        device=query.device,
    )
