"""`gossamer prune` on a tiny model: what is printed, what is saved, and what is refused."""

import json

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from gossamer.cli import app
from gossamer.compression import load


@pytest.fixture(scope="module")
def command(checkpoint) -> list[str]:
    text = checkpoint / "text.txt"
    options = ("--text", str(text), "--sequences", "4", "--tokens", "16", "--held-out", "2")
    return ["prune", str(checkpoint), *options]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", [[], ["--packed"]])
def test_the_saved_model_is_the_one_that_was_measured(command, tmp_path, kind):
    out = tmp_path / "out"
    result = invoke(*command, "--method", "wanda,dsnot", "--out", out, "--json", *kind)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((out / "report.json").read_text())
    assert document["density"] == 0.5 and len(document["layers"]) == 14
    assert all(layer["mean_error"] > 0 for layer in document["layers"])
    assert document["perplexity"]["before"] != document["perplexity"]["after"]
    assert (out / "tokenizer.json").is_file()
    model = load(out)
    dense = model if kind else AutoModelForCausalLM.from_pretrained(out)
    weight = dense.model.layers[0].mlp.up_proj.weight
    weight = weight.to_dense() if kind else weight
    assert float((weight != 0).double().mean()) == 0.5


def test_n_m_and_a_repair_are_printed_as_a_table(command):
    result = invoke(*command, "--method", "magnitude,sparsegpt", "--pattern", "1:4")
    assert result.exit_code == 0, result.output
    for words in ("2 up_proj", "25", "Magnitude(", "SparseGPT(", "perplexity"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "dsnot"], "try wanda,dsnot"),
        (["--method", "wanda,magnitude"], "then any of dsnot, sparsegpt"),
        (["--density", "1.5"], r"density in (0, 1]"),
        (["--pattern", "2/4"], "try 2:4"),
        (["--pattern", "5:4"], "1 <= n <= m"),
        (["--pattern", "2:4", "--density", "0.3"], "expected density 0.5 with"),
        (["--pattern", "2:5"], "model.layers.0.self_attn.q_proj"),
        (["--packed"], "try --out"),
        (["--sequences", "0"], "--sequences >= 1"),
        (["--sequences", "90"], "text of at least"),
        (["--text", "no such file"], "cannot read the text"),
    ],
)
def test_bad_input_is_one_line(command, options, message):
    result = invoke(*command, *options)
    assert isinstance(result.exception, ValueError | TypeError)
    assert message in str(result.exception)


def test_a_directory_of_the_other_kind_is_refused_before_anything_slow(command, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    result = invoke("prune", "no such model", "--out", tmp_path, "--packed")
    assert "try another directory" in str(result.exception)
