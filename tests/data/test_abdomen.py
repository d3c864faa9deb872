"""The breathing volunteer: read without running anything, moved as the model says."""

import os
import pickle

import numpy as np
import pytest
import torch

from gossamer.data import abdomen
from gossamer.data.abdomen import breathing, read_arrays, volunteer
from gossamer.errors import FormatError
from gossamer.models import packages


class Trap:
    def __reduce__(self):
        return os.system, ("touch trapped",)


def arrays() -> dict:
    volume = np.random.default_rng(0).random((7, 6, 3, 5), dtype=np.float32)
    return {"array": volume, "FA": np.array([2, 10], np.int32), "spacing": [4.7, np.float64(5.0)]}


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """The package's file, made up: 'array' rises by one a voxel from head to foot."""
    volume = np.zeros((78, 96, 36, 5), np.float32)
    volume[...] = np.arange(96, dtype=np.float32)[:, None, None]
    calls = []

    def read_part(part, directory):
        calls.append(part)
        return dump({"array": volume})

    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    monkeypatch.setattr(packages, "read_part", read_part)
    volunteer.cache_clear()
    yield calls
    volunteer.cache_clear()


def dump(content: dict) -> bytes:
    return pickle.dumps(content, protocol=5)


def as_numpy_1(content: dict) -> bytes:
    """Pickle small arrays by the names of NumPy 1, as the package's file has them."""
    frame = dump(content)[11:]
    for part in ("numeric", "multiarray"):
        new, old = f"numpy._core.{part}".encode(), f"numpy.core.{part}".encode()
        frame = frame.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
    assert b"numpy._core" not in frame
    return b"\x80\x05\x95" + len(frame).to_bytes(8, "little") + frame


@pytest.mark.parametrize("written", [dump, as_numpy_1])
def test_arrays_and_numbers_are_read(tmp_path, written):
    path = tmp_path / "arrays.pkl"
    content = arrays()
    path.write_bytes(written(content))
    found = read_arrays(path)
    np.testing.assert_array_equal(found["array"], content["array"])
    np.testing.assert_array_equal(found["FA"], content["FA"])
    assert found["spacing"] == [4.7, 5.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"array": Trap()}), "posix.system is not allowed|nt.system"),
        (pickle.dumps({"array": np.empty(2, object)}), "expected a pickle of plain arrays"),
        (pickle.dumps(FormatError), "not allowed"),
        (pickle.dumps([1, 2]), "expected a dictionary, got list"),
        (b"", "expected a pickle of plain arrays"),
        (b"\x80\x05.", "expected a pickle of plain arrays"),
    ],
)
def test_anything_else_is_refused_before_it_runs(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_arrays(path)
    assert not (tmp_path / "trapped").exists()


def test_truncated_files_are_refused(tmp_path):
    whole = dump({"FA": np.arange(5, dtype=np.int32)})
    path = tmp_path / "cut.pkl"
    for end in range(len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError):
            read_arrays(path)


def test_the_volume_is_fetched_once(fetched):
    assert volunteer().shape == (78, 96, 36)
    volunteer.cache_clear()
    assert torch.equal(volunteer()[3, :, 7], torch.arange(96.0))
    assert fetched == [abdomen.VOLUNTEER]


def test_another_array_is_refused(fetched, monkeypatch):
    monkeypatch.setattr(
        packages, "read_part", lambda *_: dump({"array": np.ones((3, 4), np.float32)})
    )
    with pytest.raises(FormatError, match=r"expected an array \[78, 96, 36, 5\]"):
        volunteer()


def test_breathing_moves_the_diaphragm_by_three_voxels_and_the_sides_not_at_all(fetched):
    """The made-up volume shows heights as brightness, so motion can be read off."""
    image = breathing(16, seed=0)
    assert image.shape == (16, 96, 78) and image.dtype == torch.complex64
    height = image.abs() / float(image.abs().max()) * 95
    middle, rest = height[:, :, 39], height[4, :, 39]  # the fourth frame is at rest
    down = rest - middle
    assert float(down[0, 40]) == pytest.approx(3.0, abs=0.1)
    assert float(down[0, 85]) == pytest.approx(0.6, abs=0.1)
    assert float(down[:, 40].max()) == pytest.approx(3.0, abs=0.1)
    assert float((height[:, :, 2] - height[0, :, 2]).abs().max()) < 0.05
    assert torch.equal(breathing(16, seed=0), image)
    assert not torch.equal(breathing(16, seed=1), image)


def test_refuses_no_frames():
    with pytest.raises(ValueError, match="frames: expected at least 1, got 0"):
        breathing(0)
