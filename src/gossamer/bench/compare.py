"""The main job: what sparse attention saves, and costs, on one model and one document.

Every method runs two rounds, and the rounds go over all methods in turn, so that a machine that
drifts does so for all of them. Round one prefills the document and decodes its continuation, fed
with the true tokens: speed, work and quality. Round two prefills a haystack of the same length
and asks its passkeys one by one through the cache's fork: speed again, and retrieval.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.attention import AttentionMethod, Meter, TokenSelect, use
from gossamer.bench.machine import describe
from gossamer.bench.methods import STOCK, parse
from gossamer.bench.store import ResultStore
from gossamer.bench.timing import peak_rss
from gossamer.data import passkey
from gossamer.data.documents import Document
from gossamer.layers import LosslessLinear
from gossamer.measure import kl_divergence, top1_agreement
from gossamer.models import LoadedModel

ROUNDS = 2
PASSKEYS = 8
WARM_UP = 64  # tokens
FLOOR_STEPS = 32
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Task:
    """One comparison: a model, the tokens to read and the methods to read them with.

    Parameters
    ----------
    loaded : LoadedModel
    document : Document
    context : int
        Tokens in all: ``context - decode`` are prefilled, ``decode`` follow one by one.
    decode : int
        Tokens decoded for speed and quality.
    specs : tuple of str
        Methods as `gossamer.bench.methods.parse` reads them.
    seed : int
        Of the passkeys.

    Raises
    ------
    ValueError
        If the context does not fit the model or the text, or a method is unknown.
    """

    loaded: LoadedModel
    document: Document
    context: int
    decode: int
    specs: tuple[str, ...]
    seed: int = 0
    methods: Mapping[str, AttentionMethod | None] = field(init=False, repr=False)
    tokens: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        methods = {spec: parse(spec) for spec in self.specs}
        if not methods or len(methods) < len(self.specs):
            raise ValueError(f"expected each method once, got {', '.join(self.specs) or 'none'}")
        if not 2 <= self.decode < self.context:
            raise ValueError(
                f"expected 2 <= decode < context, got {self.decode} and {self.context}"
            )
        _check_limit(self.loaded, self.context, methods)
        tokens = self.loaded.tokenizer(self.document.text, return_tensors="pt").input_ids
        if tokens.shape[1] < self.context:
            raise ValueError(
                f"expected a text of at least {self.context} tokens, got {tokens.shape[1]}; try "
                f"--context {tokens.shape[1]}"
            )
        # The reference comes first: the others are judged against its distributions.
        order = sorted(methods, key=lambda spec: spec != reference_of(methods))
        object.__setattr__(self, "methods", {spec: methods[spec] for spec in order})
        tokens = tokens[:, : self.context].to(self.loaded.model.device)
        object.__setattr__(self, "tokens", tokens)

    def settings(self) -> dict[str, Any]:
        """Return everything that shapes the numbers, for the results file."""
        model = self.loaded.model
        machine = describe(model.device)
        return {
            "model": self.loaded.name,
            "model_source": self.loaded.source,
            "text": self.document.name,
            "context": self.context,
            "decode": self.decode,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "threads": torch.get_num_threads(),
            "seed": self.seed,
            "methods": {
                spec: "transformers SDPA, DynamicCache" if method is None else repr(method)
                for spec, method in self.methods.items()
            },
            "machine": machine.summary(),
            "versions": dict(machine.versions),
        }


def reference_of(methods: Mapping[str, Any]) -> str | None:
    """The dense row that quality is measured against: transformers' own, or else ours."""
    return next((spec for spec in (STOCK, "dense") if spec in methods), None)


def compare(
    task: Task, store: ResultStore, *, report: Callable[[str], None] = lambda step: None
) -> None:
    """Measure what `store` has not finished of `task`, saving after every method and round.

    Parameters
    ----------
    task : Task
    store : ResultStore
        Made with ``task.settings()``. A row counts as finished after both rounds.
    report : callable
        Told what begins, before every step.
    """
    rows: dict[str, Row] = {row["method"]: row for row in store.rows}
    reference, judge = None, reference_of(task.methods)
    hidden = _haystack(task)
    for spec, method in task.methods.items():
        wanted = spec == judge and len(rows) < len(task.methods)
        if spec in rows and not wanted:
            continue
        report(f"{spec}: prefill, then decode")
        row, logits = _document_round(task, spec, method)
        if spec == judge:
            reference = logits
        if spec in rows:  # resumed: only its distributions were missing
            continue
        row |= _quality(logits, reference, task.tokens[:, -task.decode :])
        rows[spec] = _rated(row, rows)
        store.append(rows[spec])
    for spec, method in task.methods.items():
        if rows[spec]["rounds"] < ROUNDS and hidden is not None:
            report(f"{spec}: passkeys")
            rows[spec] = _rated(_passkey_round(task, method, rows[spec], hidden), rows)
            store.replace(rows[spec])
    store.finish(peak_rss_bytes=peak_rss())


@dataclass
class _Reader:
    """A model that reads with one method: its caches, and what it counts."""

    model: Any
    new_cache: Callable[[], Any]
    fork: Callable[[Any], Any]
    meter: Meter

    def read(self, tokens: Tensor, cache: Any) -> tuple[Tensor, float]:
        """Return the logits [1, V] after the last token, and the seconds it took."""
        _wait(self.model)
        start = time.perf_counter()
        logits = self.model(tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        _wait(self.model)
        return logits, time.perf_counter() - start

    def warm_up(self) -> None:
        """Read a few tokens, then one, for what is made at first use."""
        cache = self.new_cache()
        for count in (WARM_UP, 1):
            self.read(torch.zeros(1, count, dtype=torch.int64, device=self.model.device), cache)

    def weight_bytes(self) -> int:
        """Return the bytes of linear layers that a decoded token reads."""
        linears = [part for part in self.model.modules() if isinstance(part, nn.Linear)]
        lossless = [part.lossless_weight() for part in linears if isinstance(part, LosslessLinear)]
        plain = [part.weight for part in linears if not isinstance(part, LosslessLinear)]
        return sum(weight.nbytes for weight in (*lossless, *plain) if weight is not None)


@contextmanager
def _reading(model: Any, method: AttentionMethod | None) -> Iterator[_Reader]:
    """Let `model` read with `method` (None: as it comes), warmed up."""
    from transformers import DynamicCache

    with torch.inference_mode():
        if method is None:
            stock = _Reader(
                model, lambda: DynamicCache(config=model.config), copy.deepcopy, Meter()
            )
            stock.warm_up()
            yield stock
            return
        with use(model, method) as attachment:
            reader = _Reader(model, attachment.new_cache, lambda cache: cache.fork(), Meter())
            reader.warm_up()
            with attachment.metered() as reader.meter:
                yield reader


def _document_round(task: Task, spec: str, method: AttentionMethod | None) -> tuple[Row, Tensor]:
    """Prefill the document and decode its continuation; the row and the logits [decode, V]."""
    with _reading(task.loaded.model, method) as reader:
        cache = reader.new_cache()
        split = task.context - task.decode
        last, prefill = reader.read(task.tokens[:, :split], cache)
        prefilled = reader.meter.density, reader.meter.selection_share
        logits, steps = [last.float()], []
        for token in task.tokens[0, split:-1]:
            last, seconds = reader.read(token[None, None], cache)
            logits.append(last.float())
            steps.append(seconds)
        kv_bytes = _kv_bytes(cache)
        read = reader.meter.bytes_read / len(steps)
        stock, floor = method is None, _floor(reader, task.tokens)
        weights = reader.weight_bytes()
    return {
        "method": spec,
        "kv_bytes": kv_bytes,
        "kv_bytes_read_per_token": kv_bytes if stock else round(read),
        "density": 1.0 if stock else prefilled[0],
        "selection_share": 0.0 if stock else prefilled[1],
        "decode_floor_ms": floor,
        "weight_bytes_read_per_token": weights,
        "passkey": None,
        "rounds": 1,
        "samples": {
            "prefill_seconds": [prefill],
            "decode_ms_per_token": [1e3 * median(steps)],
        },
        "notes": [],
    }, torch.cat(logits)


def _floor(reader: _Reader, tokens: Tensor) -> float:
    """Milliseconds a token with next to nothing in the cache: what is not attention."""
    cache = reader.new_cache()
    steps = [reader.read(tokens[:, i : i + 1], cache)[1] for i in range(FLOOR_STEPS)]
    return 1e3 * median(steps)


def _passkey_round(
    task: Task, method: AttentionMethod | None, row: Row, hidden: passkey.Haystack
) -> Row:
    """Prefill the haystack once and ask every key from a fork of its cache."""
    tokenizer, device = task.loaded.tokenizer, task.tokens.device
    with _reading(task.loaded.model, method) as reader:
        cache = reader.new_cache()
        _, prefill = reader.read(hidden.input_ids.to(device), cache)
        steps: list[float] = []
        found = 0
        for key in hidden.keys:
            branch = reader.fork(cache)
            logits, _ = reader.read(hidden.question(key.label).to(device), branch)
            answer = [int(logits.argmax())]
            while len(answer) < passkey.ANSWER_TOKENS:
                token = torch.tensor([[answer[-1]]], device=device)
                logits, seconds = reader.read(token, branch)
                steps.append(seconds)
                answer.append(int(logits.argmax()))
            found += passkey.found(tokenizer.decode(answer), key.value)
    samples = row["samples"]
    return row | {
        "passkey": {"found": found, "asked": len(hidden.keys)},
        "rounds": ROUNDS,
        "samples": {
            "prefill_seconds": [*samples["prefill_seconds"], prefill],
            "decode_ms_per_token": [*samples["decode_ms_per_token"], 1e3 * median(steps)],
        },
    }


def _quality(logits: Tensor, reference: Tensor | None, truth: Tensor) -> Row:
    """Perplexity of the continuation, and distance from the reference's distributions."""
    loss = torch.nn.functional.cross_entropy(logits, truth[0])
    close = reference is not None
    return {
        "perplexity": float(loss.exp()),
        "kl": float(kl_divergence(reference, logits)) if close else None,
        "top1_agreement": float(top1_agreement(reference, logits)) if close else None,
    }


def _rated(row: Row, rows: Mapping[str, Row]) -> Row:
    """Add medians over the rounds, and paired speed-ups over the stock row."""
    samples = row["samples"]
    base = rows.get(STOCK, row if row["method"] == STOCK else {}).get("samples", {})
    rated = dict(row)
    for name, speedup in (
        ("prefill_seconds", "prefill_speedup"),
        ("decode_ms_per_token", "decode_speedup"),
    ):
        rated[name] = median(samples[name])
        pairs = zip(base.get(name, []), samples[name], strict=False)
        ratios = [theirs / ours for theirs, ours in pairs]
        rated[speedup] = 1.0 if row["method"] == STOCK else median(ratios) if ratios else None
    return rated


def _haystack(task: Task) -> passkey.Haystack | None:
    """Hide keys in as many tokens as the document's prefill has; None where none fits."""
    length = task.context - task.decode
    tokenizer = task.loaded.tokenizer
    for keys in range(PASSKEYS, 0, -1):
        try:
            trial = passkey.haystack(tokenizer, tokens=length, keys=keys, seed=task.seed)
        except ValueError:
            continue
        asked = length - trial.input_ids.shape[1]  # longest question and answer
        if asked > task.decode:
            return trial
        return passkey.haystack(tokenizer, tokens=length + asked, keys=keys, seed=task.seed)
    return None


def _check_limit(
    loaded: LoadedModel, context: int, methods: Mapping[str, AttentionMethod | None]
) -> None:
    if loaded.context is None or context <= loaded.context:
        return
    bound = [
        spec
        for spec, method in methods.items()
        if not (isinstance(method, TokenSelect) and method.reindex_positions)
    ]
    if bound:
        raise ValueError(
            f"expected a context of at most {loaded.context} tokens for {loaded.name}, got "
            f"{context}; only token-select extrapolates: leave out {', '.join(bound)} or shorten "
            "the context"
        )


def _kv_bytes(cache: Any) -> int:
    held = [(layer.keys, layer.values) for layer in cache.layers]
    return sum(part.numel() * part.element_size() for pair in held for part in pair)


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
