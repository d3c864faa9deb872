"""Sparse coding beyond L1: error of four thresholds at one sparsity, and the fields they learn.

"Beyond l1 sparse coding in V1" (arXiv 2301.10002; PLoS Computational Biology 19(9), e1011459)
reports that codes near L0 reconstruct natural images far better than L1 codes that are as sparse,
which L1 can make up for only with many more units. Measured here on seven photographs instead of
137, with smaller patches and dictionaries, every penalty at one density on fresh patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from gossamer.bench.timing import interleaved
from gossamer.data.photographs import photographs
from gossamer.estimators import ISTACoder, SparseCoding, debias
from gossamer.estimators.gabor import gabor_fit
from gossamer.estimators.patches import random_patches, whiten
from gossamer.penalties import PENALTIES
from gossamer.reproduce import Claim

JOURNAL = "PLoS Comput Biol 19(9) e1011459, abstract"
BATCH = 250
DENSITY = 0.05
COMPARED = ("soft", "half", "hard", "cel0")
SETTLED = 1e-3  # a tolerance at which codes move little; the paper stops at 1e-2
TEST_SEED = 10_000  # apart from the seeds of the patches learnt from
LONG_SEED = 20_000
GOOD_FIT = 0.5  # least R^2 of a field that counts as a Gabor function
GABOR_BATCHES = (400, 1000)


@dataclass(frozen=True)
class _Size:
    side: int  # of a patch, in pixels
    n_components: int
    batches: int
    test_patches: int


SIZES = {"quick": _Size(8, 128, 4, 300), "full": _Size(12, 288, 120, 1000)}


@dataclass(frozen=True)
class _Found:
    """What a model does to patches: shares of their variance that are lost, and units used."""

    error: float
    debiased: float
    density: float
    active: float


def reproduce(scale: str, seed: int) -> Iterator[Claim]:
    """Measure the claims on the photographs; "gpu" times the coding of many patches."""
    images = whiten([photo.pixels for photo in photographs()])
    if scale == "gpu":
        yield _throughput(images, seed, device="cuda", n_components=1000, side=16, n=8192)
        return
    size = SIZES[scale]
    if scale == "quick":
        yield _thresholds()
        test = _test_patches(images, size, seed)
        yield _optimal(test, size, seed)
        yield _counted(_learn(images, size, "cel0", seed), test, size)
        return
    seeds = (seed, seed + 1)
    models = {name: [_learn(images, size, name, s) for s in seeds] for name in COMPARED}
    tests = [_test_patches(images, size, s) for s in seeds]
    found = {
        name: [_measure(model, test) for model, test in zip(models[name], tests, strict=True)]
        for name in COMPARED
    }
    yield from _ratios(found, size)
    yield _settled(models["soft"][0], models["cel0"][0], tests[0], size)
    yield from _overcompleteness(images, size, tests[0], seed)
    yield _fields(images, size, models["cel0"][0], seed)


def _thresholds() -> Claim:
    """Search a grid for something that costs less than what a threshold returns."""
    z = torch.linspace(-3, 3, 301, dtype=torch.float64)
    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    lam, step, gaps = 0.7, 0.5, {}
    for name, penalty in PENALTIES.items():
        code = penalty.prox(z, lam, step)
        cost = (code - z) ** 2 / 2 + step * penalty.value(code, lam)
        least = ((grid - z[:, None]) ** 2 / 2 + step * penalty.value(grid, lam)).amin(1)
        gaps[name] = float((cost - least).max())
    return Claim(
        claim="each threshold returns the cheapest value under its penalty",
        paper="closed forms",
        source="arXiv 2301.10002, thresholds",
        baseline="the cheapest of a grid",
        ours=max(gaps.values()),
        criterion="ours <= 1e-9, by how much a point of the grid costs less",
        holds=max(gaps.values()) <= 1e-9,
        setting=f"{len(z)} values, a grid of {len(grid)}, weight {lam}, step {step}, float64; "
        + ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items()),
    )


def _optimal(test: NDArray[np.float32], size: _Size, seed: int) -> Claim:
    """Check the conditions of the minimum of soft codes, which is the only one."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(size.n_components, size.side**2, dtype=torch.float64, generator=generator)
    atoms /= atoms.norm(dim=1, keepdim=True)
    x = torch.from_numpy(test[:100]).double()
    coder = ISTACoder(PENALTIES["soft"], step=None, tol=1e-6, acceleration="fista")
    code = coder.encode(x, atoms).code
    slope = (x - code @ atoms) @ atoms.T
    short = (slope.abs() - coder.lam).clamp(min=0)
    violation = torch.where(code != 0, (slope - coder.lam * code.sgn()).abs(), short)
    ours = float(violation.max()) / coder.lam
    return Claim(
        claim="soft codes are at the minimum of what they minimise",
        paper="exact",
        source="conditions of optimality",
        baseline=0.0,
        ours=ours,
        criterion="slope of the error is the weight on used atoms and no more on others, within "
        "1e-3 of the weight",
        holds=ours <= 1e-3,
        setting=f"{len(x)} patches, {size.side}x{size.side}, {size.n_components} random atoms, "
        f"{float((code != 0).double().mean()):.3f} of the coefficients used, float64",
    )


def _counted(model: SparseCoding, test: NDArray[np.float32], size: _Size) -> Claim:
    """Count the units in use after the weight was bisected."""
    density = _measure(model, test).density
    return Claim(
        claim="codes have the density that was asked for",
        paper=None,
        source="penalties are compared at one density",
        baseline=DENSITY,
        ours=density,
        criterion="within 2 % of the baseline, non-zero coefficients counted",
        holds=abs(density / DENSITY - 1) <= 0.02,
        setting=_setting(size),
    )


def _learn(
    images: list[NDArray], size: _Size, penalty: str, seed: int, n_components: int | None = None
) -> SparseCoding:
    model = SparseCoding(
        n_components or size.n_components,
        penalty=penalty,
        batch_size=BATCH,
        target_density=DENSITY,
        random_state=seed,
    )
    return model.fit(random_patches(images, BATCH * size.batches, size=size.side, seed=seed))


def _test_patches(images: list[NDArray], size: _Size, seed: int) -> NDArray[np.float32]:
    return random_patches(images, size.test_patches, size=size.side, seed=TEST_SEED + seed)


def _measure(model: SparseCoding, test: NDArray, **changes: float) -> _Found:
    """Bisect the weight to the target density on the test patches, then compare with them."""
    fitted = model.set_params(**changes).calibrate(test)
    code = torch.from_numpy(fitted.transform(test))
    x, atoms = torch.from_numpy(test), torch.from_numpy(fitted.components_)

    def lost(code: torch.Tensor) -> float:
        return float((x - code @ atoms).square().mean() / x.square().mean())

    used = (code != 0).double()
    return _Found(
        lost(code), lost(debias(x, code, atoms)), float(used.mean()), float(used.sum(1).mean())
    )


def _setting(size: _Size) -> str:
    return (
        f"7 photographs of scikit-learn and scikit-image, whitened, {size.side}x{size.side} "
        f"patches, K = {size.n_components} unless said, {size.batches} batches of {BATCH}, "
        f"{size.test_patches} fresh patches, density {DENSITY}, step 0.05, dict_lr 0.005, "
        "tolerance 0.01"
    )


def _listed(found: dict[str, list[_Found]]) -> str:
    return "; ".join(
        f"{name} {', '.join(f'{each.error:.3f}' for each in runs)} at density "
        f"{', '.join(f'{each.density:.4f}' for each in runs)}"
        for name, runs in found.items()
    )


def _ratios(found: dict[str, list[_Found]], size: _Size) -> Iterator[Claim]:
    """Compare the thresholds at one density."""
    setting = f"{_setting(size)}; error over variance: {_listed(found)}"
    for name, bound, paper in (("cel0", 2.0, "about 5"), ("half", 1.4, None)):
        ratios = [
            soft.error / other.error for soft, other in zip(found["soft"], found[name], strict=True)
        ]
        yield Claim(
            claim=f"soft thresholding loses several times what {name} loses at one density",
            paper=paper,
            source=JOURNAL,
            baseline=float(np.mean([each.error for each in found["soft"]])),
            ours=float(np.mean([each.error for each in found[name]])),
            criterion=f"baseline / ours >= {bound}, for each of {len(ratios)} seeds",
            holds=min(ratios) >= bound,
            setting=f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}; {setting}",
        )
    others = [runs for name, runs in found.items() if name != "cel0"]
    best = [min(each.error for each in runs) for runs in zip(*others, strict=True)]
    ours = [each.error for each in found["cel0"]]
    yield Claim(
        claim="CEL0 loses least of the four thresholds",
        paper="CEL0 is the proposed one",
        source=JOURNAL,
        baseline=float(np.mean(best)),
        ours=float(np.mean(ours)),
        criterion="ours < the best of the others, for each seed",
        holds=all(a < b for a, b in zip(ours, best, strict=True)),
        setting=setting,
    )


def _settled(soft: SparseCoding, cel0: SparseCoding, test: NDArray, size: _Size) -> Claim:
    """Compare what is left of the gap without shrinkage, with codes that have settled."""
    runs = {
        tolerance: {
            name: _measure(model, test, tol=tolerance)
            for name, model in (("soft", soft), ("cel0", cel0))
        }
        for tolerance in (SETTLED, soft.tol)  # the models' own last, so that it stays
    }
    listed = "; ".join(
        f"tolerance {tolerance:g}: "
        + ", ".join(f"{n} {f.error:.3f} (debiased {f.debiased:.3f})" for n, f in found.items())
        for tolerance, found in runs.items()
    )
    ours, baseline = runs[SETTLED]["cel0"].debiased, runs[SETTLED]["soft"].debiased
    return Claim(
        claim="CEL0 picks better units: less error than soft after least squares on both supports",
        paper=None,
        source="not in the paper; shrinkage alone could explain its comparison",
        baseline=baseline,
        ours=ours,
        criterion=f"ours < baseline, codes settled to {SETTLED}",
        holds=ours < baseline,
        setting=f"{_setting(size)}; error over variance at {listed}",
    )


def _overcompleteness(
    images: list[NDArray], size: _Size, test: NDArray, seed: int
) -> Iterator[Claim]:
    """Give soft thresholding four times the units."""
    few = size.side**2
    ours = _measure(_learn(images, size, "cel0", seed, few), test)
    soft = _learn(images, size, "soft", seed, 4 * few)
    for what, density in (
        ("share of active units", DENSITY),
        ("number of active units", DENSITY / 4),
    ):
        baseline = _measure(soft, test, target_density=density)
        yield Claim(
            claim=f"soft with four times the units, at the same {what}, still loses no less",
            paper="about ten times the units for the same error",
            source=JOURNAL,
            baseline=baseline.error,
            ours=ours.error,
            criterion="ours <= baseline",
            holds=ours.error <= baseline.error,
            setting=f"CEL0 K = {few}, {ours.active:.1f} active; soft K = {4 * few}, "
            f"{baseline.active:.1f} active; otherwise {_setting(size)}",
        )


def _fields(images: list[NDArray], size: _Size, model: SparseCoding, seed: int) -> Claim:
    """Go on learning and fit Gabor functions to the atoms."""
    passed: dict[int, float] = {}
    for batches in GABOR_BATCHES:
        more = batches - model.n_iter_
        patches = random_patches(images, more * BATCH, size=size.side, seed=LONG_SEED + seed + more)
        for batch in patches.reshape(more, BATCH, -1):
            model.partial_fit(batch)
        fits = [gabor_fit(atom.reshape(size.side, size.side)) for atom in model.components_]
        passed[batches] = float(np.mean([fit.r2 >= GOOD_FIT for fit in fits]))
    listed = ", ".join(f"{share:.2f} after {batches}" for batches, share in passed.items())
    return Claim(
        claim="CEL0 learns receptive fields like those of V1: oriented, local, bandpass",
        paper="V1-like receptive fields",
        source=JOURNAL,
        baseline=None,
        ours=passed[GABOR_BATCHES[-1]],
        criterion=f"share of Gabor fits of R^2 >= {GOOD_FIT} at least 0.6",
        holds=passed[GABOR_BATCHES[-1]] >= 0.6,
        setting=f"share {listed} batches of {BATCH}; median frequency "
        f"{np.median([fit.frequency for fit in fits]):.2f} cycles a pixel, aspect "
        f"{np.median([fit.aspect for fit in fits]):.2f}; atoms re-seeded {model.n_reseeded_}; "
        f"otherwise {_setting(size)}",
    )


def _throughput(
    images: list[NDArray], seed: int, *, device: str, n_components: int, side: int, n: int
) -> Claim:
    """Code many patches on the device and on this machine's CPU."""
    size = _Size(side, n_components, batches=20, test_patches=n)
    model = SparseCoding(n_components, random_state=seed).fit(
        random_patches(images, BATCH * size.batches, size=side, seed=seed)
    )
    x, atoms = (
        torch.from_numpy(_test_patches(images, size, seed)),
        torch.from_numpy(model.components_),
    )
    coder = ISTACoder(lam=model.lam_)
    on_device = partial(coder.encode, x.to(device), atoms.to(device))
    seconds = interleaved({"device": on_device}, repeats=5, device=device)["device"].median
    on_cpu = interleaved({"cpu": partial(coder.encode, x, atoms)}, repeats=1)["cpu"].median
    code = on_device().code.cpu()
    error = [float((x - c @ atoms).square().mean()) for c in (code, coder.encode(x, atoms).code)]
    return Claim(
        claim="coding runs as well on a GPU",
        paper=None,
        source="no speed is reported",
        baseline=n / on_cpu,
        ours=n / seconds,
        criterion="ours >= baseline (patches a second on the CPU), errors within 1 %",
        holds=seconds <= on_cpu and abs(error[0] / error[1] - 1) <= 0.01,
        setting=f"CEL0, K = {n_components}, {side}x{side} patches, batch {n}, float32, {device}; "
        f"mean squared errors {error[0]:.5f} and {error[1]:.5f}",
    )
