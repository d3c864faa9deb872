"""A real dense point cloud: the Middlebury motorcycle, triangulated from its disparities."""

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

# Calibration of the pair as scikit-image ships it, in pixels and metres.
FOCAL, BASELINE = 994.978, 0.193001
CENTRE, SHIFT = (311.193, 254.877), 31.086


def motorcycle_points() -> Tensor:
    """Return the points of the motorcycle scene, seen from its left camera.

    Depth is ``focal * baseline / (disparity + shift)``; pixels without ground truth are left out.
    The pair is part of the Middlebury 2014 stereo benchmark and of scikit-image's package.

    Returns
    -------
    Tensor [343274, 3] float32
        x to the right, y forward (depth), z up, in metres.

    Raises
    ------
    ImportError
        If scikit-image is not installed.

    Examples
    --------
    >>> points = motorcycle_points()
    >>> points.shape, bool((points[:, 1] > 1).all())
    (torch.Size([343274, 3]), True)
    """
    if find_spec("skimage") is None:
        raise ImportError(
            "the motorcycle is part of scikit-image: pip install 'gossamer[estimators]'"
        )
    from skimage.data import stereo_motorcycle

    disparity = np.asarray(stereo_motorcycle()[2], dtype=np.float64)
    row, column = np.nonzero(np.isfinite(disparity))
    depth = FOCAL * BASELINE / (disparity[row, column] + SHIFT)
    right = (column - CENTRE[0]) * depth / FOCAL
    up = (CENTRE[1] - row) * depth / FOCAL
    return torch.from_numpy(np.stack([right, depth, up], 1)).float()
