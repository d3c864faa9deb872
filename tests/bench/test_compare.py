"""The comparison, end to end on a tiny model: every row true, resumable, and refused early."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gossamer.bench import compare as job
from gossamer.bench.methods import DEFAULT, parse
from gossamer.bench.store import ResultStore
from gossamer.data.documents import Document
from gossamer.models import LoadedModel

CONTEXT, DECODE = 640, 24
SPECS = (
    "stock",
    "dense",
    "streaming:sink=4:local=60",
    "hip:k=32:window=32:dense_layers=0",
    "anchor:block=16:step=2:theta=0:dense_layers=0",
    "token-select:n_init=4:n_local=32:top_k=32:chunk=32",
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
    )
    words = Tokenizer(models.WordLevel({"?": 0, **{str(i): i for i in range(1, 400)}}, "?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    model = LlamaForCausalLM(config).eval().bfloat16().float()  # numbers of 16 bits
    return LoadedModel(model, tokenizer, "tiny", "made here", "none", 1024)


@pytest.fixture(scope="module")
def document() -> Document:
    generator = torch.Generator().manual_seed(1)
    text = " ".join(str(int(i)) for i in torch.randint(1, 400, (900,), generator=generator))
    return Document(text, "random words", "none")


@pytest.fixture(scope="module")
def finished(loaded, document, tmp_path_factory) -> dict:
    task = job.Task(loaded, document, CONTEXT, DECODE, SPECS)
    store = ResultStore(tmp_path_factory.mktemp("run") / "results.json", task.settings())
    job.compare(task, store)
    return store.document()


def row(document: dict, name: str) -> dict:
    return next(row for row in document["rows"] if row["method"].split(":")[0] == name)


def test_every_method_has_a_finished_row(finished):
    assert [row["method"] for row in finished["rows"]] == list(SPECS)
    assert finished["complete"] and finished["schema"] == 1
    assert {row["rounds"] for row in finished["rows"]} == {job.ROUNDS}
    assert finished["peak_rss_bytes"] > 0
    for found in finished["rows"]:
        assert found["prefill_seconds"] > 0 and found["decode_ms_per_token"] > 0
        assert len(found["samples"]["prefill_seconds"]) == job.ROUNDS
        assert found["passkey"]["asked"] > 0


def test_every_row_has_a_floor_and_reads_fewer_bytes_of_weights_than_stock(finished):
    stock = row(finished, "stock")
    assert all(found["decode_floor_ms"] > 0 for found in finished["rows"])
    read = {found["weight_bytes_read_per_token"] for found in finished["rows"] if found != stock}
    assert len(read) == 1 and 0 < max(read) < 0.6 * stock["weight_bytes_read_per_token"]


def test_dense_row_is_dense(finished):
    stock, dense = row(finished, "stock"), row(finished, "dense")
    assert dense["density"] == 1.0 and dense["selection_share"] == 0.0
    assert abs(dense["kl"]) < 1e-6 and dense["top1_agreement"] == 1.0
    assert dense["perplexity"] == pytest.approx(stock["perplexity"], rel=1e-4)
    assert dense["passkey"] == stock["passkey"]
    split = CONTEXT - DECODE
    token_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, key heads, dim, bytes
    assert stock["kv_bytes"] == dense["kv_bytes"] == (CONTEXT - 1) * token_bytes
    mean_length = sum(range(split + 1, CONTEXT)) / (DECODE - 1)
    assert dense["kv_bytes_read_per_token"] == pytest.approx(mean_length * token_bytes)


def test_sparse_rows_skip_and_pay_for_it(finished):
    dense = row(finished, "dense")
    for name in ("streaming", "hip", "anchor", "token-select"):
        sparse = row(finished, name)
        assert 0 < sparse["density"] < 1
        assert sparse["kl"] > 1e-6
        if name != "anchor":  # decodes densely
            assert sparse["kv_bytes_read_per_token"] < dense["kv_bytes_read_per_token"]
    assert row(finished, "streaming")["selection_share"] == 0
    for name in ("hip", "anchor", "token-select"):
        assert 0 < row(finished, name)["selection_share"] < 1


def test_streaming_density_is_the_window(finished):
    split, window = CONTEXT - DECODE, 64
    kept = sum(min(i + 1, window) for i in range(split))
    assert row(finished, "streaming")["density"] == pytest.approx(kept / (split * (split + 1) / 2))


def test_perplexity_is_of_the_true_continuation(finished, loaded, document):
    tokens = loaded.tokenizer(document.text, return_tensors="pt").input_ids[:, :CONTEXT]
    with torch.no_grad():
        logits = loaded.model(tokens).logits[0, -DECODE - 1 : -1].double()
    loss = torch.nn.functional.cross_entropy(logits, tokens[0, -DECODE:])
    assert row(finished, "stock")["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)


def test_speedups_are_paired_by_round(finished):
    stock, dense = row(finished, "stock"), row(finished, "dense")
    pairs = zip(
        stock["samples"]["prefill_seconds"], dense["samples"]["prefill_seconds"], strict=True
    )
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    assert dense["prefill_speedup"] == pytest.approx(sum(ratios) / 2)
    assert stock["prefill_speedup"] == stock["decode_speedup"] == 1.0


def test_resume_measures_only_what_is_missing(loaded, document, tmp_path, monkeypatch):
    specs = ("stock", "dense", "streaming:local=64")
    task = job.Task(loaded, document, CONTEXT, DECODE, specs)
    path = tmp_path / "results.json"
    done: list[str] = []

    def stop_at_last(description: str) -> None:
        if description.startswith("streaming"):
            raise KeyboardInterrupt
        done.append(description)

    with pytest.raises(KeyboardInterrupt):
        job.compare(task, ResultStore(path, task.settings()), report=stop_at_last)
    kept = ResultStore.resume(path, task.settings())
    before = {row["method"]: row["samples"]["prefill_seconds"][0] for row in kept.rows}
    assert list(before) == ["stock", "dense"]

    resumed: list[str] = []
    job.compare(task, kept, report=resumed.append)
    assert "dense: prefill, then decode" not in resumed
    assert "stock: prefill, then decode" in resumed  # the reference's distributions are needed
    for found in kept.rows[:2]:
        assert found["samples"]["prefill_seconds"][0] == before[found["method"]]
    assert kept.document()["complete"]
    again: list[str] = []
    job.compare(task, ResultStore.resume(path, task.settings()), report=again.append)
    assert again == []


def test_model_is_left_as_it_was(finished, loaded):
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not loaded.model.get_decoder()._forward_pre_hooks


@pytest.mark.parametrize(
    ("context", "decode", "specs", "message"),
    [
        (2000, 10, ("dense",), r"at most 1024 tokens for tiny, got 2000; only token-select"),
        (1000, 10, ("dense",), r"text of at least 1000 tokens, got 900"),
        (100, 100, ("dense",), r"2 <= decode < context, got 100 and 100"),
        (100, 1, ("dense",), r"2 <= decode"),
        (100, 10, ("dense", "dense"), r"each method once"),
        (100, 10, (), r"each method once, got none"),
        (100, 10, ("desne",), r"unknown method 'desne'.*did you mean dense"),
    ],
)
def test_refuses_before_it_runs(loaded, document, context, decode, specs, message):
    with pytest.raises(ValueError, match=message):
        job.Task(loaded, document, context, decode, specs)


def test_token_select_alone_may_pass_the_limit(loaded, document):
    long = Document(document.text * 3, "long", "none")
    task = job.Task(loaded, long, 1500, 10, ("token-select:top_k=64:n_local=64:chunk=64",))
    assert task.tokens.shape == (1, 1500)


@pytest.mark.parametrize("spec", DEFAULT)
def test_every_default_method_parses(spec):
    method = parse(spec)
    assert (method is None) == (spec == "stock")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hip:q=3", r"unknown parameter 'q=3' of hip, expected block_k"),
        ("hip:k", r"unknown parameter 'k' of hip"),
        ("hip:k=3", r"multiple of block_k 2, got 3"),
        ("stock:x=1", r"unknown method 'stock'|unknown parameter"),
        ("anchor:share=both", r"share to be 'head' or 'group'"),
        ("", r"unknown method ''"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        parse(spec)


def test_paper_settings_undo_a_preset():
    assert parse("anchor:paper").theta == 12.0
    assert parse("anchor:paper:theta=3").theta == 3
    assert parse("anchor:theta=-inf").theta == -float("inf")
