"""The claim on sparse products: what multiplies zeros, or multiplies wrongly, is noticed."""

from gossamer.reproduce import _sparse_products as module
from gossamer.reproduce._sparse_products import counted_products
from gossamer.testing import random_mask


def test_products_of_zeros_and_wrong_ones_are_noticed(monkeypatch):
    weights = [(random_mask((16, 32), density=0.3, seed=0).float(), 40)]

    def claim():
        return counted_products(weights, source="", drawn="", seed=0)

    assert claim().holds
    product = module.spmm
    monkeypatch.setattr(module, "spmm", lambda weight, dense: 1.001 * product(weight, dense))
    assert not claim().holds
    monkeypatch.setattr(module, "spmm", lambda weight, dense: weight.to_dense() @ dense)
    found = claim()
    assert not found.holds and found.ours > found.baseline
