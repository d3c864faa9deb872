"""Targets, loss and decoding are each other's inverses."""

import pytest
import torch

from gossamer.spatial.boxes import Boxes, bev_iou
from gossamer.spatial.center_head import CenterHead, CenterMaps

BOXES = torch.tensor(
    [[3.3, -2.1, -1.0, 4.4, 1.9, 1.5, 2.0], [-7.6, 5.2, -0.9, 0.6, 0.6, 1.7, -0.5]]
)
TRUTH = Boxes(BOXES, torch.tensor([0, 1]))


def head() -> CenterHead:
    return CenterHead(4, 3, corner=(-10.0, -10.0), cell=0.5, width=8)


def perfect(truth: Boxes) -> CenterMaps:
    """Maps that say exactly what is true."""
    heat = head().gaussians(truth, (3, 40, 40)).clamp(1e-4, 1 - 1e-4)
    box = torch.zeros(8, 40, 40)
    for row in truth.boxes:
        place = (row[:2] + 10) / 0.5
        x, y = place.floor().long().tolist()
        box[:, y, x] = torch.cat(
            [place - place.floor(), row[2:3], row[3:6].log(), row[6:].sin(), row[6:].cos()]
        )
    return CenterMaps(heat.logit()[None], box[None])


def test_decoding_true_maps_gives_the_objects_back():
    (found,) = head().decode(perfect(TRUTH), threshold=0.9)
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 1]
    torch.testing.assert_close(found.boxes[order], BOXES, rtol=1e-4, atol=1e-4)
    assert bool((bev_iou(found.boxes[order], BOXES).diagonal() > 0.99).all())


def test_the_loss_is_least_at_the_truth():
    model, right = head(), perfect(TRUTH)
    least = float(model.loss(right, [TRUTH]))
    wrong_heat = CenterMaps(right.heat.roll(3, -1), right.box)
    wrong_box = CenterMaps(right.heat, right.box + 0.1)
    assert least < 0.2
    assert float(model.loss(wrong_heat, [TRUTH])) > least + 1
    # 0.1 in each of 8 numbers, weight 2, a mean over objects and numbers
    assert float(model.loss(wrong_box, [TRUTH])) == pytest.approx(least + 0.2, abs=1e-4)


def test_gaussians_peak_at_the_centres_and_overlap_by_maximum():
    heat = head().gaussians(TRUTH, (3, 40, 40))
    assert float(heat[0, 15, 26]) == 1.0 and float(heat[1, 30, 4]) == 1.0
    assert int((heat == 1).sum()) == 2 and float(heat.max()) == 1.0
    assert float(heat[2].sum()) == 0.0
    assert heat[1, 30, 4:8].tolist() == pytest.approx([1.0, 0.4868, 0.0561, 0.0], abs=1e-3)


def test_the_limit_and_the_threshold_hold():
    maps = head()(torch.randn(2, 4, 40, 40))
    for scene in head().decode(maps, limit=5, threshold=0.0):
        assert len(scene.boxes) == 5 and bool((scene.scores.diff() <= 0).all())
    assert all(len(scene.boxes) == 0 for scene in head().decode(maps, threshold=1.0))


def test_a_scene_without_objects_has_a_loss():
    nothing = Boxes(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    maps = head()(torch.randn(1, 4, 40, 40))
    assert float(head().loss(maps, [nothing]).detach()) > 0


def test_bad_input_is_named():
    model = head()
    maps = model(torch.randn(1, 4, 40, 40))
    with pytest.raises(ValueError, match="boxes of 1 scenes, got 2"):
        model.loss(maps, [TRUTH, TRUTH])
    with pytest.raises(ValueError, match="centres of all boxes on the grid"):
        model.loss(maps, [Boxes(BOXES + 20, TRUTH.labels)])
    with pytest.raises(ValueError, match="positive cell, got 0"):
        CenterHead(4, 3, corner=(0, 0), cell=0)
