"""Handwritten digits, 8x8 pixels: 1,797 that are part of scikit-learn."""

from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN = 1200


@dataclass(frozen=True, eq=False)
class Digits:
    """Images to train and to test on, and which digit each shows.

    Parameters
    ----------
    train, test : Tensor [1200, 64] and [597, 64] float32
        Brightness in 0..1, row by row.
    train_labels, test_labels : Tensor [1200] and [597] int64
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def digits() -> Digits:
    """Load the images, dealt out once and for all by a fixed shuffle.

    Raises
    ------
    ImportError
        If scikit-learn, of the `estimators` extra, is missing.

    Examples
    --------
    >>> digits().test.shape
    torch.Size([597, 64])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits need scikit-learn: pip install 'gossamer[estimators]'") from error
    pixels, targets = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels).float() / 16
    labels = torch.as_tensor(targets).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAIN], order[TRAIN:]
    return Digits(images[train], labels[train], images[test], labels[test])
