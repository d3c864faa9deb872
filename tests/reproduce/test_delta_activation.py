"""The evidence notices a stream that went wrong, and its quick claims hold."""

import pytest
import torch

from gossamer.conditional import calibrate, insert_delta
from gossamer.data.moving_digits import MovingDigits
from gossamer.reproduce import delta_activation, run


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_the_exactness_claim_notices_a_wrong_product(monkeypatch, error):
    torch.manual_seed(0)
    video = torch.rand(2, 1, 2, 48, 48).repeat(1, 4, 1, 1, 1)
    video[:, :, :, 10:20, 10:20] = torch.rand(2, 4, 2, 10, 10)
    model = insert_delta(delta_activation.frame_network(), video).eval()
    calibrate(model, video, scale=1.0)  # coarse: no value within rounding of an edge
    multiply = torch.ops.gossamer.activation_sparse_matmul

    def wrong(activations, weight_t):
        return multiply(activations, weight_t, "reference") * (1 + error)

    monkeypatch.setattr("gossamer.conditional.delta_inference.activation_sparse_matmul", wrong)
    claim = delta_activation._exact(model, MovingDigits(video, torch.zeros(2)))
    assert claim.holds == (error == 0)


def test_other_scales_are_refused():
    with pytest.raises(ValueError, match="expected quick or full for this paper, got 'gpu'"):
        next(delta_activation.reproduce("gpu", 0))


@pytest.mark.slow
def test_quick_claims_hold():
    evidence = run("delta-activation", scale="quick", seed=0)
    sparser, grows, exact, camera = evidence.claims
    assert all(claim.holds for claim in evidence.claims)
    assert 0 < sparser.ours < sparser.baseline / 3 < 1 / 3
    assert grows.baseline < 1 < grows.ours
    assert exact.ours < 1e-10
    assert 0 < camera.ours < 0.5
