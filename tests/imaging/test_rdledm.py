"""RDLEDM: its iteration written out, errors kept apart, terms that cost nothing at weight 0."""

import numpy as np
import pytest
import torch

from gossamer.data.cine import cine
from gossamer.imaging import CartesianMRI, masks, proximal, rdledm, regularizers
from gossamer.imaging.metrics import psnr
from gossamer.imaging.primal_dual import SIGMA


def by_hand(kspace, mask, weights, sigma, iterations):
    """The steps of the algorithm in numpy, for data whose zero-filled image peaks at 1."""
    space, time, frames, rows, gamma = weights
    tau = 0.99 / (1 + sigma * 13)

    def forward(x):
        return np.fft.fft2(x, norm="ortho") * mask

    def adjoint(y):
        return np.fft.ifft2(y * mask, norm="ortho")

    def d(x, axis):
        return np.diff(x, axis=axis, append=np.take(x, [-1], axis))

    def dh(p, axis):
        p = p.copy()
        np.moveaxis(p, axis, 0)[-1] = 0
        return -np.diff(p, axis=axis, prepend=np.zeros_like(np.take(p, [0], axis)))

    def svt(x, t, axis):
        moved = np.moveaxis(x, axis, 0)
        u, s, v = np.linalg.svd(moved.reshape(len(moved), -1), full_matrices=False)
        return np.moveaxis(((u * np.maximum(s - t, 0)) @ v).reshape(moved.shape), 0, axis)

    x, e = adjoint(kspace), np.zeros_like(kspace)
    px, py, pt, q = (np.zeros_like(x) for _ in range(4))
    for _ in range(iterations):
        g = adjoint(forward(x + e) - kspace)
        new = svt(x - tau * (g + dh(px, 2) + dh(py, 1) + dh(pt, 0) + q), tau * frames, 0)
        e = e - tau * g
        e = e * np.maximum(1 - tau * gamma / np.maximum(np.abs(e), 1e-300), 0)
        ahead = 2 * new - x
        x = new
        px, py = px + sigma * d(ahead, 2), py + sigma * d(ahead, 1)
        size = np.maximum(1, np.sqrt(np.abs(px) ** 2 + np.abs(py) ** 2) / space)
        px, py = px / size, py / size
        pt = pt + sigma * d(ahead, 0)
        pt = pt / np.maximum(1, np.abs(pt) / time)
        a = q + sigma * ahead
        q = a - sigma * svt(a / sigma, rows / sigma, 1)
    return x, e


def test_the_iteration_is_the_one_written_out(small):
    weights = (0.02, 0.03, 0.2, 0.1, 0.05)
    kspace = small.kspace / small.physics.adjoint(small.kspace).abs().max()
    x, e = by_hand(kspace.numpy(), small.physics.mask.numpy(), weights, SIGMA, 8)
    names = ("lambda_s", "lambda_t", "mu_time", "mu_space", "gamma")
    options = dict(zip(names, weights, strict=True))
    found = rdledm(kspace, small.physics, n_iter=8, tol=0.0, **options)
    np.testing.assert_allclose(found.image.numpy(), x, atol=1e-9)
    np.testing.assert_allclose(found.error.numpy(), e, atol=1e-9)
    assert float(found.error.abs().max()) > 0.01


def test_errors_go_to_the_error_image_not_to_the_sequence():
    """Bright pixels of one frame, before sampling: the data cannot tell where they belong."""
    image = cine(32, 10)
    hit = torch.zeros_like(image)
    hit[4, 9, 20], hit[4, 22, 5] = 1.0, 1.0j
    physics = CartesianMRI(masks.cartesian(10, 32, 32, acceleration=3, seed=0))
    kspace = physics.forward(image + hit)
    weights = {"mu_time": 0.035, "mu_space": 0.02}  # for an eighth of the pixels
    apart = rdledm(kspace, physics, **weights)
    without = rdledm(kspace, physics, gamma=0.0, **weights)
    assert apart.error is not None and without.error is None
    found = apart.error.abs().flatten().topk(2).indices.tolist()
    assert set(found) == set(hit.abs().flatten().topk(2).indices.tolist())
    assert psnr(apart.image, image) > psnr(without.image, image) + 2
    assert psnr(apart.image, image) > psnr(apart.image + apart.error, image) + 2


@pytest.mark.parametrize("factor", [1e-6, 40.0, 1j])
def test_the_scale_and_phase_of_data_do_not_matter(small, factor):
    found = rdledm(small.kspace, small.physics, n_iter=30)
    scaled = rdledm(small.kspace * factor, small.physics, n_iter=30)
    assert torch.allclose(scaled.image, found.image * factor, rtol=1e-6, atol=1e-9 * abs(factor))
    assert scaled.objective == pytest.approx(found.objective)


def test_one_coil_that_sees_all_alike_is_no_coil(small):
    one = CartesianMRI(small.physics.mask, torch.ones(1, 12, 10, dtype=torch.complex128))
    found = rdledm(small.kspace[None], one, n_iter=20)
    assert torch.allclose(found.image, rdledm(small.kspace, small.physics, n_iter=20).image)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_type_of_data_is_that_of_the_image(small, dtype):
    found = rdledm(small.kspace.to(dtype), small.physics, n_iter=30)
    assert found.image.dtype == dtype and found.image.shape == small.image.shape
    wanted = rdledm(small.kspace, small.physics, n_iter=30).image
    assert torch.allclose(found.image.to(torch.complex128), wanted, atol=1e-4)


def test_a_term_of_weight_zero_costs_nothing(small, monkeypatch):
    calls = []

    def counted(module, name):
        real = getattr(module, name)

        def call(*arguments, **options):
            calls.append((name, options.get("dim") or options.get("dims")))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(regularizers, "svt")
    counted(regularizers, "soft")
    counted(regularizers, "tv_dual_ascent")
    counted(proximal, "singular_values")
    for left_out, call in {
        "lambda_s": ("tv_dual_ascent", (-2, -1)),
        "lambda_t": ("tv_dual_ascent", (-3,)),
        "mu_time": ("svt", -3),
        "mu_space": ("svt", -2),
        "gamma": ("soft", None),
    }.items():
        calls.clear()
        rdledm(small.kspace, small.physics, n_iter=2)
        assert calls.count(call) == 2
        calls.clear()
        rdledm(small.kspace, small.physics, n_iter=2, **{left_out: 0.0})
        assert call not in calls and len(set(calls)) == 4


def test_what_was_not_sampled_is_ignored_and_nothing_given_changes(small):
    kspace = small.kspace.clone()
    kspace[~small.physics.mask] = torch.nan
    before = kspace.clone()
    found = rdledm(kspace, small.physics, n_iter=5)
    assert torch.equal(found.image, rdledm(small.kspace, small.physics, n_iter=5).image)
    assert torch.equal(kspace.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lambda_s": -1.0}, ValueError, "lambda_s: expected a finite weight .* got -1.0"),
        ({"lambda_t": float("inf")}, ValueError, "lambda_t: .* got inf"),
        ({"mu_time": float("nan")}, ValueError, "mu_time: .* got nan"),
        ({"mu_space": -0.1}, ValueError, "mu_space: .* got -0.1"),
        ({"gamma": -0.1}, ValueError, "gamma: .* got -0.1"),
        ({"n_iter": 0}, ValueError, "n_iter: expected at least 1, got 0"),
        ({"tol": -1.0}, ValueError, "tol: expected at least 0"),
    ],
)
def test_refuses_settings(small, changes, error, message):
    with pytest.raises(error, match=message):
        rdledm(small.kspace, small.physics, **changes)


def test_refuses_data(small):
    with pytest.raises(TypeError, match=r"kspace: expected complex, got torch.float64"):
        rdledm(small.kspace.real, small.physics)
    with pytest.raises(ValueError, match=r"kspace: expected \[5, 12, 10\]"):
        rdledm(small.kspace[:, :6], small.physics)
    with pytest.raises(ValueError, match="kspace: expected finite samples"):
        rdledm(small.kspace * torch.inf, small.physics)
    still = CartesianMRI(small.physics.mask[:1])
    with pytest.raises(ValueError, match=r"lambda_t: expected 0 for a single frame, got 0.006"):
        rdledm(small.kspace[:1], still)
    rdledm(small.kspace[:1], still, lambda_t=0.0, n_iter=2)
