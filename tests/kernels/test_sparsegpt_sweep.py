"""The sweep against OBS solved afresh at every column, in float64."""

import numpy as np
import pytest
import torch

from gossamer.budgets import Density
from gossamer.errors import BackendError
from gossamer.kernels import sparsegpt_sweep
from gossamer.patterns import NM, Block


def problem(rows: int, width: int, seed: int):
    """A weight, inputs [tokens, width] that are correlated, and the factor of their inverse."""
    torch.manual_seed(seed)
    tokens = 4 * width + 8
    x = torch.randn(tokens, width) + torch.randn(tokens, 6) @ torch.randn(6, width)
    hessian = (x.mT @ x).double() + 0.01 * torch.eye(width, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True).float()
    return torch.randn(rows, width), x, hessian, factor.contiguous()


def solved_afresh(weight: torch.Tensor, hessian: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Remove each pruned weight with the best repair of the columns behind it, no factor kept."""
    found = weight.double().numpy().copy()
    for i in range(found.shape[1]):
        inverse = np.linalg.inv(hessian.numpy()[i:, i:])
        for r in np.flatnonzero(~mask[:, i].numpy()):
            found[r, i:] -= found[r, i] / inverse[0, 0] * inverse[0]
            found[r, i] = 0.0
    return found


def lost(x: torch.Tensor, weight: torch.Tensor, pruned) -> torch.Tensor:
    return (x.double() @ (weight.double() - torch.as_tensor(pruned).double()).mT).square().sum(0)


@pytest.mark.parametrize("block", [1, 5, 16, 128])
def test_a_given_mask_leads_where_direct_solves_lead(impl, block, nan_memory):
    weight, _, hessian, factor = problem(7, 37, seed=1)
    mask = torch.rand(7, 37) < 0.5
    swept = sparsegpt_sweep(weight, factor, mask=mask, block=block, impl=impl)
    np.testing.assert_allclose(
        swept.weight, solved_afresh(weight, hessian, mask), rtol=2e-4, atol=2e-5
    )
    assert torch.equal(swept.mask, mask) and not swept.weight[~mask].any()


@pytest.mark.parametrize("block", [7, 128])
def test_the_repair_is_between_zeroing_and_least_squares(impl, block):
    weight, x, _, factor = problem(60, 30, seed=9)
    mask = torch.rand(60, 30) < 0.6
    swept = sparsegpt_sweep(weight, factor, mask=mask, block=block, impl=impl).weight
    best = torch.zeros(60, 30, dtype=torch.float64)
    for r, kept in enumerate(mask):
        target = x.double() @ weight[r].double()
        best[r, kept] = torch.linalg.lstsq(x[:, kept].double(), target[:, None]).solution[:, 0]
    found = lost(x, weight, swept)
    assert bool((found >= lost(x, weight, best) * (1 - 1e-4)).all())
    assert float(found.sum()) < 0.7 * float(lost(x, weight, weight * mask).sum())


def test_the_loss_is_half_the_squared_growth_of_the_error(impl):
    """What is lost grows by e^2 at each column while the kept columns behind can still move."""
    weight, x, hessian, factor = problem(3, 24, seed=2)
    mask = torch.ones(3, 24, dtype=torch.bool)
    mask[:, 0] = False
    swept = sparsegpt_sweep(weight, factor, mask=mask, impl=impl)
    change = weight.double() - swept.weight.double()
    growth = ((change @ hessian) * change).sum(1)
    np.testing.assert_allclose(swept.loss, growth / 2, rtol=1e-4)
    np.testing.assert_allclose(lost(x, weight, swept.weight) / 2, swept.loss, rtol=1e-2)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8), NM(2, 3)])
@pytest.mark.parametrize("block", [10, 128])
def test_groups_are_chosen_by_what_the_sweep_has_made_of_them(impl, pattern, block):
    weight, _, hessian, factor = problem(9, 48, seed=3)
    swept = sparsegpt_sweep(weight, factor, pattern=pattern, block=block, impl=impl)
    assert bool((pattern.units(swept.mask).sum(-1) == pattern.n).all())
    # A plain loop: choose at each group from weights that earlier columns have changed.
    mask = torch.ones_like(swept.mask)
    for first in range(0, 48, pattern.m):
        mask[:, first:] = True
        current = solved_afresh(weight, hessian, mask)
        group = slice(first, first + pattern.m)
        scores = np.abs(current[:, group] / factor.diagonal().double().numpy()[group])
        order = np.argsort(-scores, axis=1, kind="stable")[:, : pattern.n]
        mask[:, group] = False
        np.put_along_axis(mask[:, group].numpy(), order, True, axis=1)
    assert torch.equal(swept.mask, mask)
    np.testing.assert_allclose(
        swept.weight, solved_afresh(weight, hessian, mask), rtol=2e-4, atol=2e-5
    )


def test_a_density_holds_in_every_block_of_columns(impl):
    weight, _, _, factor = problem(11, 50, seed=4)
    swept = sparsegpt_sweep(weight, factor, density=0.3, block=16, impl=impl)
    for first in (0, 16, 32, 48):
        part = swept.mask[:, first : first + 16]
        assert int(part.sum()) == Density(0.3).count(part.numel())
    again = sparsegpt_sweep(weight, factor, mask=swept.mask, block=16, impl=impl)
    assert torch.equal(again.weight, swept.weight)


def test_a_diagonal_hessian_prunes_by_size_and_repairs_nothing(impl):
    scale = torch.rand(20) + 0.5
    weight = torch.randn(6, 20)
    swept = sparsegpt_sweep(weight, torch.diag(scale), density=0.5, block=20, impl=impl)
    expected = Density(0.5, dim=None).select((weight / scale).square())
    assert torch.equal(swept.mask, expected)
    assert torch.equal(swept.weight, weight * expected)


def test_full_density_returns_the_weight(impl):
    weight, _, _, factor = problem(4, 30, seed=5)
    swept = sparsegpt_sweep(weight, factor, density=1.0, impl=impl)
    assert torch.equal(swept.weight, weight) and not swept.loss.any()


def test_threads_do_not_change_the_result(impl):
    weight, _, _, factor = problem(33, 40, seed=6)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(sparsegpt_sweep(weight, factor, pattern=NM(2, 4), impl=impl).weight)
    torch.set_num_threads(before)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_the_kernel_stays_inside_its_block(guarded):
    """Weight, mask and errors lie at the edge of memory that nothing may touch."""
    from gossamer.kernels import backend

    weight, _, _, factor = problem(5, 37, seed=7)
    expected = sparsegpt_sweep(weight, factor, mask=weight > 0, block=37, impl="cpu")
    part, kept = guarded(weight), guarded((weight > 0).view(torch.uint8))
    errors, loss = guarded(torch.zeros(5, 37)), guarded(torch.zeros(5))
    backend.launch("sparsegpt_sweep", part, guarded(factor), kept, errors, loss, 0, 0, 1)
    assert torch.equal(part, expected.weight) and torch.equal(loss, expected.loss)


def test_inputs_stay_as_they_were_and_the_operator_traces():
    weight, _, _, factor = problem(4, 12, seed=8)
    mask = weight > 0
    before = [weight.clone(), factor.clone(), mask.clone()]
    sparsegpt_sweep(weight, factor, mask=mask)
    assert all(map(torch.equal, before, [weight, factor, mask]))
    for mode in ({"density": 0.5}, {"pattern": NM(2, 4)}, {"mask": mask}):
        pattern = mode.get("pattern")
        arguments = (
            weight, factor, mode.get("mask"), mode.get("density", 1.0),
            *((pattern.n, pattern.m) if pattern else (0, 0)), 8, "reference",
        )  # fmt: skip
        torch.library.opcheck(
            torch.ops.gossamer.sparsegpt_sweep,
            arguments,
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, ValueError, "exactly one of density"),
        ({"density": 0.5, "mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, "exactly one"),
        ({"density": 0.0}, ValueError, r"density in \(0, 1\]"),
        ({"pattern": NM(1, 3)}, ValueError, "groups of 3, got 4"),
        ({"pattern": Block(1, 2)}, TypeError, "NM or Unstructured"),
        ({"mask": torch.ones(2, 4)}, ValueError, "expected mask to be bool"),
        ({"density": 0.5, "block": 0}, ValueError, "block of at least 1"),
        ({"density": 0.5, "impl": "triton"}, ValueError, "expected impl"),
        (
            {"density": 0.5, "weight": torch.ones(2, 4).bfloat16()},
            TypeError,
            "weight to be float32",
        ),
        ({"density": 0.5, "weight": torch.ones(2, 5)}, ValueError, r"factor \[in, in\]"),
        ({"density": 0.5, "factor": -torch.eye(4)}, ValueError, "positive diagonal"),
        ({"density": 0.5, "factor": torch.eye(4) * torch.nan}, ValueError, "positive diagonal"),
        (
            {"density": 0.5, "weight": torch.ones(2, 4, requires_grad=True)},
            ValueError,
            "without gradient",
        ),
    ],
)
def test_bad_input_is_refused(changes, error, message):
    arguments = {"weight": torch.ones(2, 4), "factor": torch.eye(4), **changes}
    with pytest.raises((error, BackendError), match=message):
        sparsegpt_sweep(**arguments)
