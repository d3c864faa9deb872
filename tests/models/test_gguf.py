import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gossamer.errors import FormatError
from gossamer.models import gguf as conversion
from gossamer.models.gguf import cache_directory, converted, converted_file, sha256

DIGEST = "a" * 64


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def stub_convert(source: Path, directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(source.read_bytes())
    (directory / "config.json").write_text("{}")


@pytest.fixture
def stubbed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a conversion that only copies."""
    monkeypatch.setattr(conversion, "convert", stub_convert)
    return cache


def provide(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def never(path: Path) -> None:
    raise AssertionError(f"asked for {path}")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"GOSSAMER_CACHE": "/own", "XDG_CACHE_HOME": "/shared"}, "/own"),
        ({"GOSSAMER_CACHE": "~/own"}, "/home/user/own"),
        ({"GOSSAMER_CACHE": "", "XDG_CACHE_HOME": "/shared"}, "/shared/gossamer"),
        ({"XDG_CACHE_HOME": ""}, "/home/user/.cache/gossamer"),
        ({}, "/home/user/.cache/gossamer"),
    ],
)
def test_cache_directory(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOSSAMER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/user", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


def test_a_conversion_is_bit_identical(tiny_gguf: Path, cache: Path, capfd) -> None:
    directory = converted_file(tiny_gguf)
    assert capfd.readouterr() == ("", "")
    stored = load_file(directory / "model.safetensors")

    kind = gguf.GGMLQuantizationType.Q4_1
    for tensor in gguf.GGUFReader(tiny_gguf).tensors:
        if tensor.name == "token_embd.weight":
            values = torch.from_numpy(gguf.dequantize(tensor.data, kind))
            assert torch.equal(stored["model.embed_tokens.weight"], values)
    assert "lm_head.weight" not in stored  # tied, so stored once

    expected = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32
    )
    actual = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert actual.lm_head.weight is actual.model.embed_tokens.weight
    assert actual.config.rope_parameters["rope_theta"] == 100_000.0
    assert not hasattr(actual.config, "quantization_config")
    state = actual.state_dict()
    assert list(state) == list(expected.state_dict())
    for name, weight in expected.state_dict().items():
        assert weight.dtype == state[name].dtype == torch.float32
        assert torch.equal(weight, state[name]), name

    tokenizer = AutoTokenizer.from_pretrained(directory)
    original = AutoTokenizer.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    text = "the other\n<|im_end|> thing"
    assert tokenizer(text).input_ids == original(text).input_ids
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 1)
    assert "message['content']" in tokenizer.chat_template


def test_a_conversion_may_be_read_by_whoever_may_read_a_new_file(
    tiny_gguf: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").touch()
    for file in converted_file(tiny_gguf).iterdir():
        assert file.stat().st_mode == (tmp_path / "new").stat().st_mode, file


def test_a_conversion_is_made_once(stubbed: Path) -> None:
    directory = converted("tiny", DIGEST, provide(b"one"))
    before = snapshot(stubbed)
    assert converted("tiny", DIGEST, never) == directory == stubbed / "models" / "tiny"
    assert snapshot(stubbed) == before
    assert sorted(path.name for path in directory.parent.iterdir()) == [".lock", "tiny"]
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "gossamer.json",
        "model.safetensors",
    ]


def test_another_source_replaces_the_conversion(stubbed: Path) -> None:
    converted("tiny", DIGEST, provide(b"one"))
    directory = converted("tiny", "b" * 64, provide(b"two"))
    assert (directory / "model.safetensors").read_bytes() == b"two"


def truncate(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 2)


def flip(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"onf")


def remove_file(directory: Path) -> None:
    (directory / "config.json").unlink()


def remove_marker(directory: Path) -> None:
    (directory / "gossamer.json").unlink()


def older_schema(directory: Path) -> None:
    marker = json.loads((directory / "gossamer.json").read_text())
    (directory / "gossamer.json").write_text(json.dumps({**marker, "schema": 0}))


def marker_of(text: str) -> Callable[[Path], None]:
    def overwrite(directory: Path) -> None:
        (directory / "gossamer.json").write_text(text)

    return overwrite


DAMAGES = {
    "truncated": truncate,
    "flipped": flip,
    "file missing": remove_file,
    "marker missing": remove_marker,
    "older schema": older_schema,
    "marker empty": marker_of(""),
    "marker a list": marker_of("[]"),
    "marker incomplete": marker_of('{"schema": 1}'),
    "marker of wrong types": marker_of(f'{{"schema": 1, "source": "{DIGEST}", "files": [1]}}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_conversion_is_rebuilt(damage: Callable[[Path], None], stubbed: Path) -> None:
    directory = converted("tiny", DIGEST, provide(b"one"))
    before = snapshot(stubbed)
    damage(directory)
    assert snapshot(stubbed) != before
    converted("tiny", DIGEST, provide(b"one"))
    assert snapshot(stubbed) == before


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["mkdir", "provide", "convert", "write_text", "rename"])
def test_a_full_disk_changes_nothing(
    step: str, stubbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(converted("tiny", DIGEST, provide(b"one")))
    with monkeypatch.context() as patch:
        if step == "convert":
            patch.setattr(conversion, "convert", full_disk)
        elif step != "provide":
            patch.setattr(conversion.Path, step, full_disk)
        source = full_disk if step == "provide" else provide(b"two")
        with pytest.raises(
            OSError, match=f"cannot write .* to {stubbed}/models/other: No space .* GOSSAMER_CACHE"
        ):
            converted("other", "b" * 64, source)
    assert snapshot(stubbed / "models" / "tiny") == before
    assert sorted(path.name for path in (stubbed / "models").iterdir()) == [".lock", "tiny"]
    directory = converted("other", "b" * 64, provide(b"two"))
    assert (directory / "model.safetensors").read_bytes() == b"two"


@pytest.mark.parametrize("owner", ["PreTrainedModel", "PreTrainedTokenizerBase"])
def test_a_disk_that_is_full_while_transformers_saves(
    owner: str, tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_pretrained(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(getattr(transformers, owner), "save_pretrained", save_pretrained)
    with pytest.raises(OSError, match=f"to {cache}/models/.*: No space left"):
        converted_file(tiny_gguf)
    assert [path.name for path in (cache / "models").iterdir()] == [".lock"]


def test_a_failed_rebuild_keeps_the_previous_conversion(stubbed: Path) -> None:
    older_schema(converted("tiny", DIGEST, provide(b"one")))
    before = snapshot(stubbed)
    with pytest.raises(OSError, match="No space"):
        converted("tiny", DIGEST, full_disk)
    with pytest.raises(KeyboardInterrupt):
        converted("tiny", DIGEST, lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert snapshot(stubbed) == before


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=f"to {tmp_path}/file/models/tiny: Not a directory"):
        converted("tiny", DIGEST, provide(b"one"))


def test_a_killed_conversion_leaves_the_previous_intact(stubbed: Path) -> None:
    older_schema(converted("tiny", DIGEST, provide(b"one")))
    before = snapshot(stubbed / "models" / "tiny")
    script = (
        "import os, signal\n"
        "from gossamer.models import gguf\n"
        "def convert(source, directory):\n"
        "    (directory / 'model.safetensors').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "gguf.convert = convert\n"
        f"gguf.converted('tiny', '{DIGEST}', lambda path: path.write_text('two'))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert killed.returncode == -9
    assert (stubbed / "models" / "tiny.partial" / "model.safetensors").read_text() == "half"
    assert snapshot(stubbed / "models" / "tiny") == before

    directory = converted("tiny", DIGEST, provide(b"two"))
    assert (directory / "model.safetensors").read_bytes() == b"two"
    assert sorted(path.name for path in directory.parent.iterdir()) == [".lock", "tiny"]


def test_two_at_once_convert_once(stubbed: Path) -> None:
    asked, second_started = [], threading.Event()

    def slow(path: Path) -> None:
        asked.append(path)
        assert second_started.wait(60)
        path.write_bytes(b"one")

    def second() -> None:
        second_started.set()
        converted("tiny", DIGEST, slow)

    threads = [threading.Thread(target=converted, args=("tiny", DIGEST, slow))]
    threads[0].start()
    while not asked:
        threads[0].join(0.01)
    threads.append(threading.Thread(target=second))
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert (stubbed / "models" / "tiny" / "model.safetensors").read_bytes() == b"one"


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip archive", b"\x80\x04 a pickle"])
def test_a_file_that_is_not_gguf(content: bytes, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="opens with b'GGUF'") as raised:
        converted_file(path)
    assert raised.value.path == path
    assert not cache.exists()


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.05, 0.5, 0.999])
def test_a_truncated_gguf_file(share: float, tiny_gguf: Path, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "cut.gguf"
    whole = tiny_gguf.read_bytes()
    path.write_bytes(whole[: max(4, int(share * len(whole)))])
    with pytest.raises(FormatError, match="that transformers can read") as raised:
        converted_file(path)
    assert raised.value.path == path
    assert [entry.name for entry in (cache / "models").iterdir()] == [".lock"]


def test_neighbours_of_a_gguf_file_are_not_read(
    tiny_gguf: Path, tmp_path: Path, cache: Path
) -> None:
    expected = snapshot(converted_file(tiny_gguf))
    path = tmp_path / tiny_gguf.name
    shutil.copy(tiny_gguf, path)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text('{"model_type": "gpt2", "eos_token_id": 7}')
    shutil.rmtree(cache)
    assert snapshot(converted_file(path)) == expected
    assert path.read_bytes() == tiny_gguf.read_bytes()
    assert converted_file(path).name == f"tiny model-{sha256(path)[:12]}"
