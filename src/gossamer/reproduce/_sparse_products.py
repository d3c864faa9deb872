"""Whether sparse products are right, and multiply nothing but the weights that are left."""

from collections.abc import Iterable

import torch
from torch import Tensor

from gossamer.bench.counting import MacCounter
from gossamer.kernels import pack, spmm
from gossamer.reproduce import Claim


def counted_products(
    weights: Iterable[tuple[Tensor, int]], *, source: str, drawn: str, seed: int
) -> Claim:
    """Compare products with float64, and count what is multiplied.

    Parameters
    ----------
    weights : iterable of (Tensor [M, K], int)
        With their zeros, and how many random columns each multiplies.
    source : str
        Of the claim.
    drawn : str
        How the weights were drawn, for the setting.
    seed : int
        Of the columns.
    """
    generator, error, executed, kept = torch.Generator().manual_seed(seed), 0.0, 0, 0
    for weight, width in weights:
        dense = torch.randn(weight.shape[1], width, generator=generator)
        packed = pack(weight)
        with MacCounter() as counter:
            found = spmm(packed, dense)
        exact = weight.double() @ dense.double()
        error = max(error, float((found - exact).abs().max() / exact.abs().max()))
        executed += counter.total
        kept += int(weight.count_nonzero()) * width
    return Claim(
        claim="sparse products are right, and multiply the weights that are left alone",
        paper="exact",
        source=source,
        baseline=kept,
        ours=executed,
        criterion="multiply-adds executed = baseline, errors <= 1e-5 of the largest value",
        holds=executed == kept and error <= 1e-5,
        setting=f"{drawn}, float32; largest error {error:.1e}",
    )
