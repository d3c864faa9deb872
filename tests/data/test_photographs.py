"""The photographs are what they say, and need no network."""

import importlib.util
import socket

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
from gossamer.data import photographs as module
from gossamer.data.photographs import photographs


def test_seven_grey_photographs_without_a_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a photograph was fetched")

    monkeypatch.setattr(socket, "socket", refuse)
    found = photographs()
    assert [photo.name for photo in found] == [
        *("china", "flower", "chelsea", "coffee", "rocket", "grass", "gravel")
    ]
    for photo in found:
        assert photo.pixels.ndim == 2 and min(photo.pixels.shape) >= 300
        assert photo.pixels.dtype == np.float32
        assert 0 <= photo.pixels.min() < 0.2 and 0.6 < photo.pixels.max() <= 1
        assert photo.licence and photo.source in ("scikit-learn", "scikit-image")


def test_grey_is_luma():
    from skimage.color import rgb2gray
    from sklearn.datasets import load_sample_image

    assert np.allclose(photographs()[0].pixels, rgb2gray(load_sample_image("china.jpg")), atol=1e-5)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(
        module, "find_spec", lambda name: None if name == "skimage" else importlib.util.find_spec
    )
    with pytest.raises(ImportError, match=r"gossamer\[estimators\]"):
        photographs()
