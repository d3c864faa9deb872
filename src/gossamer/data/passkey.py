"""Passkey retrieval: numbers hidden in a long prompt, asked for one by one from one prefill.

Several keys, each a label and a five-digit number, are planted at evenly spaced depths of one
haystack. Every question follows the same tokens, so a model reads them once and answers each
question from a copy of the same KV cache.

The wording is kept to what a model of 135 million parameters can do: the label stands directly
before the number, and the question ends where the number is due.
"""

import itertools
import random
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_TOKENS = 8
"""New tokens that an answer may take: five digits and what may stand around them."""

_LABELS = (
    "tiger violin harbor copper meadow rocket lantern walnut "
    "glacier pepper falcon button canyon saddle orchid hammer"
).split()
_INTRODUCTION = "Remember the numbers in this text.\n\n"
_NEEDLE = " Remember the code {label}-{value}. Again, the code is {label}-{value}."
_QUESTION = "\n\nWhat is the {label} code?"
_ANSWER = "The code is {label}-"
_FILLER = (
    " The road follows the river through the valley."
    " In the morning the market opens and people buy bread."
    " A light wind moves the leaves of the old trees."
    " Children walk to school along the stone wall."
    " By noon the clouds have gone and the roofs are warm."
    " The evening train is late, as it is on most days."
)


@dataclass(frozen=True)
class Key:
    """One hidden number.

    Parameters
    ----------
    label : str
        The word that the question names.
    value : str
        Five digits.
    depth : float
        Where in the haystack it stands, from 0 (start) to 1 (end).
    """

    label: str
    value: str
    depth: float


@dataclass(frozen=True, eq=False)
class Haystack:
    """A prompt that hides several keys, and the questions that ask for them.

    Parameters
    ----------
    input_ids : Tensor [1, T], int64
        What every question follows: prefill it once.
    keys : tuple of Key
        The hidden keys, in the order of their depth.
    questions : dict of str to Tensor [1, n], int64
        For each label, the tokens that follow `input_ids` and end where the number is due.
    """

    input_ids: Tensor
    keys: tuple[Key, ...]
    questions: dict[str, Tensor]

    def question(self, label: str) -> Tensor:
        """Return the tokens [1, n] that ask for one key, to follow `input_ids`.

        Raises
        ------
        ValueError
            No key has this label.
        """
        if label not in self.questions:
            raise ValueError(f"expected one of {', '.join(self.questions)}, got {label!r}")
        return self.questions[label]


def haystack(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int,
    keys: int = 8,
    seed: int = 0,
    text: str | None = None,
) -> Haystack:
    """Hide numbers in a prompt of a given length.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Its chat template frames the prompt, if it has one.
    tokens : int
        Length of the prompt with its longest question and `ANSWER_TOKENS` of an answer.
    keys : int, default 8
        How many numbers to hide, at most 16.
    seed : int, default 0
        Chooses labels and numbers.
    text : str, optional
        What to hide them in, cut to length; by default a few plain sentences, repeated.

    Returns
    -------
    Haystack
        `input_ids`, the longest question and an answer add up to exactly `tokens`.

    Raises
    ------
    ValueError
        `keys` is out of range, or `tokens` too few for them, or `text` too short for `tokens`.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    >>> hidden = haystack(tokenizer, tokens=500, keys=3, seed=0)
    >>> [key.label for key in hidden.keys]
    ['canyon', 'hammer', 'lantern']
    >>> hidden.input_ids.shape, hidden.question("canyon").shape
    (torch.Size([1, 481]), torch.Size([1, 11]))
    """
    if not 1 <= keys <= len(_LABELS):
        raise ValueError(f"expected 1 to {len(_LABELS)} keys, got {keys}")

    def ids(piece: str) -> list[int]:
        return tokenizer(piece, add_special_tokens=False).input_ids

    generator = random.Random(seed)
    labels = generator.sample(_LABELS, keys)
    values = [str(value) for value in generator.sample(range(10_000, 100_000), keys)]
    opening, closing = _frame(tokenizer)
    head = opening + ids(_INTRODUCTION)
    needles = [
        ids(_NEEDLE.format(label=label, value=value))
        for label, value in zip(labels, values, strict=True)
    ]
    questions = {
        label: ids((_QUESTION + closing + _ANSWER).replace("{label}", label)) for label in labels
    }
    fixed = len(head) + sum(map(len, needles))
    fixed += max(map(len, questions.values())) + ANSWER_TOKENS
    if tokens < fixed + keys:
        raise ValueError(f"expected at least {fixed + keys} tokens for {keys} keys, got {tokens}")

    filler, ends = _filler(ids, text, tokens - fixed)
    body, hidden, cut = list(head), [], 0
    for number, (label, value, needle) in enumerate(zip(labels, values, needles, strict=True)):
        target = round((number + 0.5) / keys * len(filler))
        end = ends[bisect_right(ends, target) - 1]  # of the last sentence that fits
        start, cut = cut, end if end > cut else target
        body += filler[start:cut]
        hidden.append((label, value, len(body)))
        body += needle
    body += filler[cut:]
    return Haystack(
        input_ids=torch.tensor([body]),
        keys=tuple(Key(label, value, position / len(body)) for label, value, position in hidden),
        questions={label: torch.tensor([question]) for label, question in questions.items()},
    )


def found(answer: str, value: str) -> bool:
    """Tell whether the first number in a model's answer is the hidden one, digit for digit.

    Examples
    --------
    >>> found("48213. The code is tiger-48213", "48213"), found("482130", "48213")
    (True, False)
    """
    number = re.search(r"\d+", answer)
    return number is not None and number.group() == value


def _frame(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], str]:
    """Return what stands before the user's text, as tokens, and after it, as text."""
    if not tokenizer.chat_template:
        first = list(tokenizer("x").input_ids[:1])
        return first if first == [tokenizer.bos_token_id] else [], "\n\n"
    mark = "<text>"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    opening, _, closing = str(prompt).partition(mark)
    return tokenizer(opening, add_special_tokens=False).input_ids, closing


def _filler(
    ids: Callable[[str], list[int]], text: str | None, length: int
) -> tuple[list[int], list[int]]:
    """Return exactly `length` tokens of running text, and where its sentences end."""
    sentences = re.split(r"(?<=[.!?])(?=\s)|(?=\n\n)", _FILLER if text is None else text)
    filler, ends = [], [0]
    for sentence in itertools.cycle(sentences) if text is None else sentences:
        filler += ids(sentence)
        ends.append(len(filler))
        if len(filler) >= length:
            return filler[:length], ends
    raise ValueError(f"expected a text of at least {length} tokens, got {len(filler)}")
