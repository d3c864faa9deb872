import itertools
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gossamer.data import passkey
from gossamer.data.passkey import ANSWER_TOKENS, found, haystack

TEMPLATE = (
    "{{ '<s>system\nBe brief.<e>' }}"
    "{% for message in messages %}<s>{{ message['role'] + '\n' + message['content'] }}<e>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
PROSE = "".join(f"Sentence number {i} of a novel speaks of rain.\n" for i in range(300))


def byte_tokenizer(template: str | None = None, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, so that lengths can be counted by hand."""
    alphabet = ["<s>", "<e>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<e>")
    tokenizer.chat_template = template
    return tokenizer


CHAT = byte_tokenizer(TEMPLATE)


def decode(ids: Tensor) -> str:
    return str(CHAT.decode(ids))


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(2000, 9000),
    keys=st.integers(1, 8),
    seed=st.integers(0, 2**32),
    text=st.sampled_from([None, PROSE, "no full stop " * 2000, "x" * 20_000]),
)
def test_structure(tokens: int, keys: int, seed: int, text: str | None) -> None:
    hidden = haystack(CHAT, tokens=tokens, keys=keys, seed=seed, text=text)
    questions = [hidden.question(key.label) for key in hidden.keys]
    longest = max(question.shape[1] for question in questions)
    assert hidden.input_ids.shape == (1, tokens - longest - ANSWER_TOKENS)
    assert len(hidden.keys) == keys == len({key.label for key in hidden.keys})
    assert len({key.value for key in hidden.keys}) == keys

    prompt = decode(hidden.input_ids[0])
    assert prompt.startswith("<s>system\nBe brief.<e><s>user\n")
    for number, key in enumerate(hidden.keys):
        assert re.fullmatch("[1-9][0-9]{4}", key.value)
        # The label and its number stand together, and nowhere else.
        assert prompt.count(key.label) == prompt.count(f"{key.label}-{key.value}") == 2
        assert prompt.count(key.value) == 2
        start = round(key.depth * hidden.input_ids.shape[1])
        assert decode(hidden.input_ids[0, start:]).startswith(f" Remember the code {key.label}-")
        slack = 100 / tokens + 0.5 / keys + keys * 90 / tokens  # sentences, frame, other needles
        assert abs(key.depth - (number + 0.5) / keys) < slack
        question = decode(hidden.question(key.label)[0])
        assert question == (
            f"\n\nWhat is the {key.label} code?<e><s>assistant\nThe code is {key.label}-"
        )


def test_needles_stand_between_sentences() -> None:
    prompt = decode(haystack(CHAT, tokens=5000, text=PROSE).input_ids[0])
    assert len(re.findall(r"\. Remember the code", prompt)) == 8
    rest = re.sub(r" Remember the code \w+-\d+\. Again, the code is \w+-\d+\.", "", prompt)
    body = rest.partition("text.\n\n")[2]
    assert PROSE.startswith(body)
    assert len(body) > 3000


def test_depths_are_even() -> None:
    depths = [key.depth for key in haystack(CHAT, tokens=20_000, keys=8).keys]
    gaps = [b - a for a, b in itertools.pairwise(depths)]
    assert all(abs(gap - 1 / 8) < 0.01 for gap in gaps)
    assert abs(depths[0] - 1 / 16) < 0.02


def test_seed_decides_everything() -> None:
    one, same, other = (haystack(CHAT, tokens=3000, seed=seed) for seed in (1, 1, 2))
    assert one.keys == same.keys
    assert one.input_ids.equal(same.input_ids)
    assert [key.value for key in one.keys] != [key.value for key in other.keys]


@pytest.mark.parametrize("bos", [False, True])
def test_without_a_chat_template(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    hidden = haystack(tokenizer, tokens=3000)
    ids = hidden.input_ids[0].tolist()
    assert (ids[0] == 0) == bos and 0 not in ids[1:]
    question = decode(hidden.question(hidden.keys[0].label)[0])
    assert question.endswith(f"?\n\nThe code is {hidden.keys[0].label}-")
    assert 0 not in hidden.question(hidden.keys[0].label)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: haystack(CHAT, tokens=3000, keys=0), "expected 1 to 16 keys, got 0"),
        (lambda: haystack(CHAT, tokens=3000, keys=17), "expected 1 to 16 keys, got 17"),
        (lambda: haystack(CHAT, tokens=0), r"at least \d+ tokens for 8 keys, got 0"),
        (lambda: haystack(CHAT, tokens=-5), r"at least \d+ tokens for 8 keys, got -5"),
        (lambda: haystack(CHAT, tokens=600), r"at least \d+ tokens for 8 keys, got 600"),
        (lambda: haystack(CHAT, tokens=3000, text="Short."), r"at least \d+ tokens, got 6"),
        (lambda: haystack(CHAT, tokens=3000, text=""), r"at least \d+ tokens, got 0"),
        (lambda: haystack(CHAT, tokens=3000, keys=1).question("zebra"), "got 'zebra'"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_fewest_tokens_that_are_accepted() -> None:
    with pytest.raises(ValueError, match="expected at least") as raised:
        haystack(CHAT, tokens=0, keys=3)
    least = int(re.findall(r"\d+", str(raised.value))[0])
    assert len(haystack(CHAT, tokens=least, keys=3).keys) == 3
    with pytest.raises(ValueError, match=f"at least {least} tokens for 3 keys, got {least - 1}"):
        haystack(CHAT, tokens=least - 1, keys=3)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("48213", True),
        (" 48213.<|im_end|>", True),
        ("The code is tiger-48213, not tiger-11111.", True),
        ("11111, no: 48213", False),
        ("482130", False),
        ("4821", False),
        ("148213", False),
        ("48 213", False),
        ("", False),
        ("I do not know.", False),
    ],
)
def test_found(answer: str, expected: bool) -> None:
    assert found(answer, "48213") is expected


def test_labels_leave_no_trace_in_the_wording() -> None:
    wording = passkey._FILLER + passkey._INTRODUCTION + passkey._NEEDLE + passkey._QUESTION  # pyright: ignore[reportPrivateUsage]
    assert not any(label in wording for label in passkey._LABELS)  # pyright: ignore[reportPrivateUsage]
