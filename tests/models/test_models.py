import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gossamer import models
from gossamer.errors import FormatError
from gossamer.models import PACKAGED_MODELS, packages
from gossamer.models.gguf import sha256
from gossamer.models.packages import PackagedModel, Part


def unreachable(*_: object, **__: object) -> None:
    raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")


@pytest.fixture
def packaged(tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of a model that an installed package holds."""
    path = tmp_path / "site" / "tiny_package" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    shutil.copy(tiny_gguf, path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    digest = sha256(path)
    part = Part("tiny-package", "1.0", "tiny_package/tiny.gguf", path.stat().st_size, digest)
    pinned = PackagedModel((part,), digest, "tiny, from a test", "no rights reserved")
    monkeypatch.setitem(PACKAGED_MODELS, "tiny", pinned)
    return "tiny"


def test_a_packaged_model_needs_no_package_the_second_time(
    packaged: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = models.load(packaged)
    shutil.rmtree(tmp_path / "site")
    monkeypatch.setattr(packages.subprocess, "run", None)
    second = models.load(packaged)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (second.name, second.source) == ("tiny", "tiny, from a test")
    assert (second.licence, second.context) == ("no rights reserved", 128)
    assert second.tokenizer.decode(second.tokenizer("the").input_ids) == "the"
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(first.model(ids).logits, second.model(ids).logits)


def test_weights_own_their_memory_and_stay_tied(packaged: str, tmp_path: Path) -> None:
    model = models.load(packaged).model
    assert "model.safetensors" not in Path("/proc/self/maps").read_text()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    stored = next((tmp_path / "cache").rglob("model.safetensors"))
    stored.write_bytes(bytes(stored.stat().st_size))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


def test_dtype(packaged: str) -> None:
    exact = models.load(packaged).model
    model = models.load(packaged, dtype=torch.bfloat16).model
    for weight, rounded in zip(exact.parameters(), model.parameters(), strict=True):
        assert rounded.dtype == torch.bfloat16
        assert torch.equal(weight.bfloat16(), rounded)


def test_a_directory(packaged: str, tmp_path: Path) -> None:
    original = models.load(packaged)
    original.model.save_pretrained(tmp_path / "saved")
    original.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = models.load(tmp_path / "saved")
    assert (loaded.source, loaded.licence) == (str(tmp_path / "saved"), "not recorded")
    for a, b in zip(original.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_gguf_file(tiny_gguf: Path, cache: Path) -> None:
    loaded = models.load(str(tiny_gguf))
    assert (loaded.source, loaded.licence, loaded.context) == (str(tiny_gguf), "not recorded", 128)


def test_weights_that_are_not_finite(nan_gguf: Path, cache: Path) -> None:
    with pytest.raises(
        FormatError,
        match=r"expected finite weights, got NaN or inf in model\.layers\.0\.input_layernorm",
    ):
        models.load(nan_gguf)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected a model that transformers can read") as raised:
        models.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_directory_with_damaged_weights(packaged: str, tmp_path: Path) -> None:
    models.load(packaged)
    shutil.copytree(tmp_path / "cache" / "models" / packaged, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(FormatError, match=r"copy: expected a model that transformers can read: \w"):
        models.load(tmp_path / "copy")


@pytest.mark.parametrize("name", ["some/model", "gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_hub_that_cannot_be_reached(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(
        ValueError,
        match=rf"^cannot load '{name}' from the hub \(We couldn't connect to the hub\); "
        "known without it: smollm2, gemma3-270m, try '(smollm2|gemma3-270m)'$",
    ):
        models.load(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2", "got 'smolm2', try 'smollm2'"),
        ("gemma3-270", "got 'gemma3-270', try 'gemma3-270m'"),
        ("", "got '': there is no such file"),
        ("missing.gguf", "got 'missing.gguf': there is no such file"),
        ("./missing", "got './missing': there is no such file"),
        ("/missing/model", "got '/missing/model': there is no such file"),
        ("~/missing/model", "got '~/missing/model': there is no such file"),
    ],
)
def test_names_that_cannot_be_a_model(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    with pytest.raises(ValueError, match=message):
        models.load(name)


def test_bad_arguments_are_refused_before_anything_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages.subprocess, "run", None)
    for dtype in (torch.int8, torch.complex64, "float32", None):
        with pytest.raises(TypeError, match="expected a floating-point dtype, got"):
            models.load("smollm2", dtype=dtype)  # pyright: ignore[reportArgumentType]
    for device in ("tpu9", "cuda:99", ""):
        with pytest.raises(ValueError, match=f"expected a device of this machine, got '{device}'"):
            models.load("smollm2", device=device)
    assert not cache.exists()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name)
    )
    with pytest.raises(ImportError, match=r"needs gguf, try: pip install 'gossamer\[llm\]'"):
        models.load("smollm2")


def test_transformers_is_imported_only_when_a_model_is_loaded() -> None:
    script = "import sys, gossamer.models; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_what_a_hub_model_yields(
    packaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models.load(packaged)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: loaded.tokenizer)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: loaded.model)
    other = models.load("some/model")
    assert (other.name, other.source, other.licence) == ("some/model", "some/model", "not recorded")
