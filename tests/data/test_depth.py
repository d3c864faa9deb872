"""The motorcycle's points, against the pair itself and without a network."""

import socket

import numpy as np
import pytest
import torch

pytest.importorskip("skimage")
from gossamer.data import depth
from gossamer.data.depth import BASELINE, CENTRE, FOCAL, SHIFT, motorcycle_points


def test_points_project_back_to_their_pixels(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the pair was fetched")

    monkeypatch.setattr(socket, "socket", refuse)
    points = motorcycle_points().double()
    from skimage.data import stereo_motorcycle

    disparity = stereo_motorcycle()[2]
    row, column = np.nonzero(np.isfinite(disparity))
    assert points.shape == (len(row), 3) and bool(points.isfinite().all())
    x, forward, up = points.unbind(1)
    seen = torch.stack([CENTRE[0] + FOCAL * x / forward, CENTRE[1] - FOCAL * up / forward])
    torch.testing.assert_close(seen[0].round().long(), torch.from_numpy(column))
    torch.testing.assert_close(seen[1].round().long(), torch.from_numpy(row))
    apart = FOCAL * BASELINE / forward - SHIFT  # between the two cameras' images
    np.testing.assert_allclose(apart.numpy(), disparity[row, column], atol=1e-3)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(depth, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"gossamer\[estimators\]"):
        motorcycle_points()
