"""The command line as a user meets it: one clear line and exit code 2 on bad input."""

import json
import subprocess
import sys

import pytest


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gossamer", *arguments]
    return subprocess.run(command, capture_output=True, input=stdin, check=False, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (("compare", "--methods", "hipp"), b"", "unknown method 'hipp'"),
        (("compare", "--context", "0"), b"", "expected positive --context"),
        (("compare", "--text", "no/such/file"), b"", "no/such/file"),
        (("compare", "--text", "-"), b"", "0 characters of space"),
        (("compare", "--text", "-"), b"\x00\x01binary", "text"),
        (("compare", "--model", "smolm2"), b"", "smollm2"),
        (("compare", "--dtype", "float8"), b"", "float8"),
        (("show", "hip-atention"), b"", "hip-attention"),
        (("reproduce", "no-such-paper"), b"", "no-such-paper"),
        (("papers", "--wing", "nowhere"), b"", "nowhere"),
        (("nonsense",), b"", "nonsense"),
    ],
)
def test_bad_input_is_exit_code_two(arguments, stdin, message, tmp_path):
    out = ("--out", str(tmp_path / "out")) if arguments[0] == "compare" else ()
    result = run(*arguments, *out, stdin=stdin)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr.decode()
    assert b"Traceback" not in result.stderr
    assert not (tmp_path / "out" / "results.json").exists()


def test_papers_as_json():
    result = run("papers", "attention", "--json")
    assert result.returncode == 0
    assert all("slug" in paper for paper in json.loads(result.stdout))


def test_unwritable_results_directory(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("here first")
    result = run("compare", "--out", str(blocked / "sub"))
    assert result.returncode == 2
    assert b"could not make" in result.stderr
    assert blocked.read_text() == "here first"


def test_package_imports_without_optional_extras():
    code = (
        "import sys; sys.modules.update(dict.fromkeys("
        "('transformers', 'matplotlib', 'jinja2', 'triton', 'safetensors', 'gguf')));"
        "import gossamer, gossamer.kernels, gossamer.attention, gossamer.catalog; print('fine')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=120
    )
    assert result.stdout.strip() == b"fine", result.stderr.decode()
