"""The evidence on RDLEDM: fair scans and searches, and claims that notice a worse image."""

import pytest
import torch

from gossamer.data.cine import cine
from gossamer.imaging import CartesianMRI
from gossamer.reproduce import rdledm as module
from gossamer.reproduce import run

TINY = module._Size(pixels=48, frames=6, seeds=1, n_iter=20, searched=("FTVNNR", "L+S"))


def levels(**psnr):
    names = {"ftvnnr": "FTVNNR", "ls": "L+S", "without": module.WITHOUT, "ours": module.OURS}
    return {
        names.get(name, name): [module._Quality(value, 0.9, 0.1, 0.1)]
        for name, value in psnr.items()
    }


def verdicts(condition, **psnr):
    found = levels(**psnr)
    return [c.holds for c in module._compared("cine", condition, found, module.MARGINS, "")]


@pytest.mark.parametrize(
    ("psnr", "expected"),
    [
        ({"ftvnnr": 30.0, "ls": 30.0, "without": 31.5}, [True] * 4),
        ({"ftvnnr": 30.1, "ls": 30.0, "without": 31.5}, [False, True, True, True]),
        ({"ftvnnr": 30.0, "ls": 30.1, "without": 31.5}, [True, False, True, True]),
        ({"ftvnnr": 30.0, "ls": 30.0, "without": 31.6}, [True, True, False, True]),
        ({"ftvnnr": 30.0, "ls": 30.0, "without": 31.0, "window": 33.1}, [True, True, True, False]),
    ],
)
def test_errors_in_the_image_each_margin_counts(psnr, expected):
    assert verdicts("corrupt", ours=33.0, **psnr) == expected


@pytest.mark.parametrize(
    ("psnr", "expected"),
    [
        ({"ftvnnr": 30.0, "without": 35.0}, [True] * 3),
        ({"ftvnnr": 30.0, "without": 35.1}, [True, False, True]),
        ({"ftvnnr": 30.0, "without": 35.0, "window": 34.0}, [True, True, False]),
    ],
)
def test_clean_data_may_cost_a_little(psnr, expected):
    assert verdicts("clean", ours=33.0, ls=20.0, **psnr) == expected


def test_the_best_baseline_is_named_and_an_ablation_is_none():
    found = levels(ftvnnr=30.0, ls=29.0, without=40.0, ours=33.0)
    *_, last = module._compared("cine", "corrupt", found, module.MARGINS, "notes")
    assert "best: FTVNNR" in last.claim and last.baseline == 30.0 and last.setting == "notes"


def test_conditions_differ_in_the_spikes_alone():
    truth = cine(48, 8)
    clean, corrupt = (module._scan(truth, c, seed=3) for c in ("clean", "corrupt"))
    assert torch.equal(clean.physics.mask, corrupt.physics.mask)
    assert clean.truth is truth and corrupt.truth is truth
    full = CartesianMRI(torch.ones_like(clean.physics.mask))
    noise = clean.kspace - clean.physics.forward(truth)
    assert float(noise[clean.physics.mask].abs().square().mean().sqrt()) == pytest.approx(
        0.01, rel=0.1
    )
    assert float(clean.physics.mask.float().mean()) == pytest.approx(1 / 6, abs=0.03)
    added = full.adjoint(corrupt.kspace - clean.kspace).abs().flatten(1).amax(1)
    assert int((added > 0.02).sum()) == module.SPIKED_FRAMES


def test_the_search_takes_what_is_best_on_its_own_scans(monkeypatch):
    scores = iter([1.0, 5.0, 3.0, 9.0, 0.0, 2.0])
    seen = []

    def method(kspace, physics, *, weight):
        seen.append(weight)
        return module.DynamicReconstruction(kspace)

    grid = tuple({"weight": float(w)} for w in range(3))
    monkeypatch.setattr(module, "GRIDS", {"FTVNNR": (method, grid)})
    monkeypatch.setattr(module, "psnr", lambda image, truth: next(scores))
    assert module._searched(TINY, 7) == {"FTVNNR": {"weight": 1.0}}
    assert seen == [0, 0, 1, 1, 2, 2]


def test_every_grid_has_as_many_settings():
    assert {len(grid) for _, grid in module.GRIDS.values()} == {6}


def test_throughput_runs_with_coils_whose_squares_add_up_to_one():
    maps = module._coil_maps(3, 24, 20)
    assert torch.allclose(maps.abs().square().sum(0), torch.ones(24, 20))
    against_cpu, against_ftvnnr = module._throughput(
        cine(48, 5), 0, device="cpu", coils=3, n_iter=2
    )
    assert 0 < float(against_cpu.ours) < 60 and 0 < float(against_ftvnnr.baseline) < 60


def test_convergence_is_that_of_the_objective():
    scan = module._scan(cine(48, 6), "corrupt", 0)
    claim = module._convergence(scan, TINY)
    assert not claim.holds  # not after twenty iterations
    assert float(claim.ours) > 1.01 * float(claim.baseline)


def test_a_map_without_its_adjoint_is_noticed(monkeypatch):
    assert module._adjoints(0).holds
    right = module.tv_adjoint
    monkeypatch.setattr(module, "tv_adjoint", lambda dual, dims: 1.001 * right(dual, dims=dims))
    assert not module._adjoints(0).holds


def test_a_solution_that_is_off_is_noticed(monkeypatch):
    assert module._closed_forms(0).holds
    right = module.rdledm

    def heavier(kspace, physics, *, mu_space, **options):
        return right(kspace, physics, mu_space=1.01 * mu_space, **options)

    monkeypatch.setattr(module, "rdledm", heavier)
    assert not module._closed_forms(0).holds


def test_a_look_at_what_was_not_sampled_is_noticed(monkeypatch):
    scan = module._scan(cine(48, 6), "corrupt", 0)
    assert module._sampled_alone(scan).holds
    right = module.rdledm

    def peeking(kspace, physics, **options):
        found = right(kspace, physics, **options)
        return module.DynamicReconstruction(found.image + 1e-6 * torch.fft.ifft2(kspace))

    monkeypatch.setattr(module, "rdledm", peeking)
    assert not module._sampled_alone(scan).holds


def test_quick_claims_hold():
    evidence = run("rdledm", scale="quick", seed=0)
    assert evidence.holds and len(evidence.claims) == 3
