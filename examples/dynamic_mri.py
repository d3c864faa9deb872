"""Reconstruct a generated cine from a sixth of its k-space: python examples/dynamic_mri.py."""

import argparse
from pathlib import Path

import torch

from gossamer.data.cine import cine
from gossamer.imaging import CartesianMRI, ftvnnr, l_plus_s, masks, metrics, rdledm, zero_filled
from gossamer.report.sequences import plot_convergence, plot_sequences

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--size", type=int, default=96)
parser.add_argument("--out", type=Path, default=Path())
options = parser.parse_args()

truth = cine(options.size, 24)
spiked = truth.clone()
generator = torch.Generator().manual_seed(0)
for frame in (3, 9, 14, 20):  # flashes that no prior expects
    hit = torch.rand(truth.shape[1:], generator=generator) < 0.03
    spiked[frame, hit] += 0.6 * torch.exp(
        2j * torch.pi * torch.rand(int(hit.sum()), generator=generator)
    )
physics = CartesianMRI(masks.cartesian(*truth.shape, acceleration=6, seed=0))
noise = 0.01 * torch.randn(truth.shape, dtype=truth.dtype, generator=generator)
kspace = physics.measured(physics.forward(spiked) + noise)

found = {
    "zero-filled": zero_filled(kspace, physics),
    "FTVNNR": ftvnnr(kspace, physics, lambda_s=0.5, mu_time=150),
    "L+S": l_plus_s(kspace, physics, lambda_s=0.01),
    "RDLEDM without E": rdledm(kspace, physics, gamma=0),
    "RDLEDM": rdledm(kspace, physics),
}
titled = {
    f"{name}\n{metrics.psnr(each.image, truth):.1f} dB": each.image for name, each in found.items()
}
middle = options.size // 2
picture = plot_sequences(titled, truth, frame=9, column=middle)
picture.savefig(options.out / "dynamic_mri.png", dpi=100)
changes = {name: each.change for name, each in found.items() if each.change}
plot_convergence(changes, tol=1e-4).savefig(options.out / "dynamic_mri_convergence.png", dpi=100)
