"""A report that leaves nothing to say, to be spoilt one way at a time."""

import pytest

from gossamer.catalog.reports import (
    Environment,
    Measured,
    Quality,
    Report,
    Row,
    Statement,
)
from gossamer.catalog.taxonomy import Taxonomy

COST = Measured((1e9,), "measured_here")
SEEDS = (0, 1, 2)


def row(name: str, arm: str, density: float, quality: float, **changes) -> Row:
    regime = {"ours": "sparse_to_sparse", "random_growth": "sparse_to_sparse"}
    regime |= {"static": "before_training", "shuffled": "one_shot"}
    decided = regime.get(arm)
    fields = {
        "name": name,
        "arm": arm,
        "density": density,
        "parameters": round(1000 * density),
        "kernel": "sparse" if decided else "dense",
        "quality": (quality, quality + 0.02, quality - 0.02),
        "decided": decided,
        "macs": Measured((1000 * density,), "measured_here"),
        "training_macs": COST,
        "nbytes": Measured((8000 * density,), "measured_here"),
    }
    if arm == "ours":
        fields |= {"peak_density": density, "exploration": 0.6, "peak_dense": ("gradients",)}
    return Row(**(fields | changes))


@pytest.fixture
def good() -> Report:
    """Dynamic sparse training, compared as it should be."""
    return Report(
        title="A moving mask, on something",
        taxonomy=Taxonomy(
            object=("weights",),
            granularity=("unstructured",),
            density_of="weights of all layers, without biases",
            count="exact",
            allocation="erk",
            decided=("sparse_to_sparse",),
            mode="dynamic_topology",
            needs=("labels",),
            exactness="changes_model",
            peak_dense=("gradients",),
            overhead="at_hand",
            hardware=("cpu",),
            basis="official_code",
            data="real",
        ),
        quality=Quality("test accuracy, something", True, "validation"),
        environment=Environment(
            device="cpu",
            machine="Example CPU",
            dtype="float32",
            threads=2,
            batch=1,
            commit="0123abc",
            data_hash="0123456789abcdef",
            baseline_kernel="torch.nn.Linear",
            settings={"lr": 0.1, "epochs": 3},
            equal_budget=True,
        ),
        seeds=SEEDS,
        rows=(
            row("a", "ours", 0.2, 0.9),
            row("b", "ours", 0.1, 0.85, milliseconds=Measured((1.0,) * 30, "measured_here")),
            row("c", "ours", 0.05, 0.8),
            row("still", "static", 0.05, 0.6),
            row("grown", "random_growth", 0.05, 0.7),
            row("moved", "shuffled", 0.05, 0.3),
            row("dense", "dense", 1.0, 0.9, milliseconds=Measured((4.0,) * 30, "measured_here")),
            row("small", "small_dense", 1.0, 0.7, parameters=98),
        ),
        statements=(
            Statement("faster", "b", "dense", 4.0),
            Statement("fewer_macs", "b", "dense", 10.0),
            Statement("smaller", "b", "dense", 10.0),
            Statement("better", "c", "still"),
            Statement("as_good", "a", "dense"),
            Statement("right_weights", "c", "moved"),
        ),
    )
