"""The solver: it reaches the minimum, its steps converge, and its record is true."""

import pytest
import torch
from torch import Tensor

from gossamer.imaging import CartesianMRI, primal_dual
from gossamer.imaging.proximal import svt
from gossamer.imaging.regularizers import SPACE, TIME, Magnitude, NuclearNorm, TotalVariation

WEIGHTS = (0.02, 0.03, 0.2, 0.1, 0.05)  # space, time, frames, rows, error


def objective(x: Tensor, e: Tensor, kspace: Tensor, physics: CartesianMRI, smooth: float) -> Tensor:
    """The cost written out, its corners rounded off by `smooth`."""

    def length(*parts: Tensor) -> Tensor:
        return (sum(p.real**2 + p.imag**2 for p in parts) + smooth**2).sqrt().sum()

    def nuclear(unfolded: Tensor) -> Tensor:
        return (torch.linalg.svdvals(unfolded) ** 2 + smooth**2).sqrt().sum()

    down = torch.cat([x[:, 1:] - x[:, :-1], torch.zeros_like(x[:, :1])], 1)
    right = torch.cat([x[:, :, 1:] - x[:, :, :-1], torch.zeros_like(x[:, :, :1])], 2)
    space, time, frames, rows, error = WEIGHTS
    residual = torch.fft.fft2(x + e, norm="ortho") * physics.mask - kspace
    return (
        (residual.real**2 + residual.imag**2).sum() / 2
        + space * length(down, right)
        + time * length(x[1:] - x[:-1])
        + frames * nuclear(x.reshape(len(x), -1))
        + rows * nuclear(x.transpose(0, 1).reshape(x.shape[1], -1))
        + error * length(e)
    )


def solve(scan, **options):
    space, time, frames, rows, error = WEIGHTS
    return primal_dual(
        scan.kspace,
        scan.physics,
        primal=[NuclearNorm(frames), Magnitude(error)],
        dual=[TotalVariation(space, SPACE), TotalVariation(time, TIME), NuclearNorm(rows, -2)],
        peak=float(scan.physics.adjoint(scan.kspace).abs().max()),  # weights as they stand
        **options,
    )


def test_it_reaches_the_minimum_that_another_solver_finds(small):
    found = solve(small, n_iter=800, tol=0.0)
    ours = float(objective(found.image, found.error, small.kspace, small.physics, 0.0))
    x = small.physics.adjoint(small.kspace).requires_grad_()
    e = torch.zeros_like(x).requires_grad_()
    for smooth in (1e-1, 1e-2, 1e-3):
        descent = torch.optim.LBFGS([x, e], max_iter=60, line_search_fn="strong_wolfe")

        def cost(smooth=smooth):
            descent.zero_grad()  # noqa: B023
            value = objective(x, e, small.kspace, small.physics, smooth)
            value.backward()
            return value

        descent.step(cost)
    with torch.no_grad():
        theirs = float(objective(x, e, small.kspace, small.physics, 0.0))
    assert ours <= theirs * (1 + 1e-5)
    assert ours == pytest.approx(theirs, rel=2e-3)
    assert found.objective[-1] == pytest.approx(ours, rel=1e-4)


def test_with_all_sampled_and_one_norm_the_answer_is_in_closed_form(small):
    physics = CartesianMRI(torch.ones_like(small.physics.mask))
    kspace = physics.forward(small.image)
    peak = float(small.image.abs().max())
    found = primal_dual(
        kspace, physics, primal=[NuclearNorm(0.7)], dual=[], peak=peak, n_iter=200, tol=1e-10
    )
    assert found.converged
    assert torch.allclose(found.image, svt(small.image, 0.7, dim=-3), atol=1e-6)


def test_the_record_is_of_the_iterations_made(small):
    seen = []
    found = solve(
        small, n_iter=45, tol=0.0, callback=lambda k, image: seen.append((k, image.clone()))
    )
    assert [k for k, _ in seen] == list(range(45)) and len(found.change) == 45
    assert len(found.objective) == 3 and not found.converged
    assert torch.equal(seen[-1][1], found.image)
    last, before = seen[-1][1], seen[-2][1]
    assert found.change[-1] == pytest.approx(float((last - before).norm() / before.norm()))
    start = small.physics.adjoint(small.kspace)
    first = objective(start, torch.zeros_like(start), small.kspace, small.physics, 0.0)
    assert found.objective[0] == pytest.approx(float(first))
    x, e = seen[19][1], None
    at_20 = solve(small, n_iter=20, tol=0.0)
    e = at_20.error
    assert torch.equal(x, at_20.image)
    assert found.objective[1] == pytest.approx(
        float(objective(x, e, small.kspace, small.physics, 0.0))
    )


def test_it_stops_at_the_tolerance_but_not_where_it_starts(small):
    """At the start the data fit and duals are zero: the first change is 0, which is no end."""
    term = TotalVariation(0.05, TIME)
    found = primal_dual(small.kspace, small.physics, primal=[None], dual=[term], tol=1e-3)
    assert found.change[0] < 1e-12
    assert 10 <= len(found.change) < 200
    assert found.converged and found.change[-1] < 1e-3 <= max(found.change)


def test_steps_too_long_to_converge_are_refused(small):
    term = TotalVariation(0.05, SPACE)
    options = {"primal": [None], "dual": [term], "sigma": 0.25, "n_iter": 1}
    longest = 1 / (1 / 2 + 0.25 * 8)
    primal_dual(small.kspace, small.physics, tau=longest * 0.99, **options)
    with pytest.raises(ValueError, match=r"tau: expected less than 0\.4 to converge, got 0\.4"):
        primal_dual(small.kspace, small.physics, tau=longest, **options)
    options["primal"] = [None, Magnitude(0.1)]  # twice as steep
    with pytest.raises(ValueError, match=r"tau: expected less than 0\.3333"):
        primal_dual(small.kspace, small.physics, tau=longest * 0.99, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma: expected above 0, got 0.0"),
        ({"tau": -1.0}, "tau: expected less than .* got -1"),
        ({"n_iter": 0}, "n_iter: expected at least 1, got 0"),
        ({"tol": -1.0}, "tol: expected at least 0, got -1.0"),
        ({"tol": float("nan")}, "tol: .* got nan"),
    ],
)
def test_refuses(small, changes, message):
    with pytest.raises(ValueError, match=message):
        solve(small, **changes)


def test_no_signal_is_no_image(small):
    zero = torch.zeros_like(small.kspace)
    found = primal_dual(zero, small.physics, primal=[NuclearNorm(0.1)], dual=[])
    assert not bool(found.image.any()) and found.converged


def test_no_gradient_is_recorded(small):
    kspace = small.kspace.clone().requires_grad_()
    term = TotalVariation(0.05, SPACE)
    found = primal_dual(kspace, small.physics, primal=[None], dual=[term], n_iter=3)
    assert not found.image.requires_grad
