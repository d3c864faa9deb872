"""The taxonomy: closed terms for what a method makes sparse, when, and at what cost.

The fields follow the themes of "Ten Lessons We Have Learned in the New 'Sparseland'" (arXiv
2302.02596), in our own reading. They describe the papers of the catalogue and the methods of
reports alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

TERMS: dict[str, dict[str, str]] = {
    "object": {
        "weights": "parameters of a model, regression coefficients included",
        "updates": "differences between two states of a model",
        "gradients": "derivatives in the backward pass",
        "activations": "values between layers, codes included",
        "attention": "query-key pairs",
        "kv_cache": "keys and values kept or read while decoding",
        "tokens": "elements of a sequence, in all layers that follow",
        "units": "channels, heads, layers, neurons or experts",
        "graph_edges": "edges of a graph",
        "inputs": "sensors, features, measurements or occupied places",
        "optimizer_state": "moments kept for each parameter",
        "data": "training examples",
    },
    "granularity": {
        "unstructured": "single elements",
        "n:m": "n of every m neighbours",
        "block": "rectangles of elements",
        "row_or_column": "whole lines: stripes, sensors, examples",
        "channel": "channels or neurons",
        "head": "attention heads",
        "layer": "layers or blocks of a network",
        "token": "tokens",
        "page": "pages of a cache",
        "diagonal": "diagonals of a matrix",
        "graph": "edges or vertices of a graph",
    },
    "count": {
        "exact": "as many as the budget says",
        "expected": "as many on average; the realised density is reported",
        "threshold": "whatever passes a threshold",
    },
    "allocation": {
        "none": "there is only one tensor to spread over",
        "uniform": "the same density everywhere",
        "erdos_renyi": "by the number of inputs and outputs",
        "erk": "by inputs, outputs and kernel size",
        "global": "one ranking over all layers",
        "searched": "by a search over allocations",
        "learned": "trained with the model",
        "per_input": "by each input anew",
    },
    "decided": {
        "before_training": "before the first step",
        "sparse_to_sparse": "during training that is sparse throughout",
        "dense_to_sparse": "during training that begins, or stays underneath, dense",
        "one_shot": "after training, without any more of it",
        "retrained": "after training, which then goes on",
        "inference": "at inference, for an input, a step or a query",
    },
    "mode": {
        "static": "the pattern is decided once",
        "dynamic_topology": "the pattern moves while training (dynamic sparse training)",
        "input_dependent": "the pattern follows the input (dynamic inference)",
    },
    "needs": {
        "nothing": "neither a trained model nor data",
        "dense_weights": "dense weights at some time of training",
        "pretrained": "a trained model",
        "calibration": "a sample of data without labels",
        "labels": "a training set with a loss",
    },
    "exactness": {
        "exact": "the result is the dense one",
        "approximate": "the error against the dense result is reported",
        "changes_model": "another model, compared by its quality",
    },
    "peak_dense": {
        "none": "nothing that the method makes sparse is ever held densely",
        "weights": "a dense weight, even if masked",
        "gradients": "a dense gradient, if only at times",
        "optimizer_state": "a dense optimizer state",
        "scores": "a dense score matrix",
    },
    "overhead": {
        "none": "the pattern is given or drawn",
        "at_hand": "from values that are computed anyway",
        "scoring": "a cheap estimate of the skipped work itself",
        "passes": "extra passes through the model",
        "search": "many evaluations of candidates",
        "training": "a predictor, a gate or scores that are trained",
    },
    "hardware": {
        "none": "no kernel of this library skips the work: sparsity is simulated",
        "cpu": "a C++ kernel skips it",
        "cuda": "a CUDA kernel skips it",
    },
    "basis": {
        "official_code": "checked against the authors' code",
        "paper_text": "from the full text of the paper",
        "reconstructed": "from an abstract, related code and common knowledge, in part",
    },
    "data": {
        "real": "measured on real data",
        "synthetic": "measured on generated data",
        "both": "measured on real and on generated data",
    },
}
GROUPS = {
    "what": ("object", "granularity"),
    "counted": ("density_of", "count", "allocation"),
    "when": ("decided", "mode", "needs"),
    "cost": ("exactness", "peak_dense", "overhead", "hardware"),
    "evidence": ("basis", "data"),
}
SEVERAL = ("object", "granularity", "decided", "needs", "peak_dense", "hardware")
_ALONE = ("none", "nothing")


@dataclass(frozen=True)
class Taxonomy:
    """How a method is sparse. `TERMS` lists and explains the terms of each field.

    Parameters
    ----------
    object, granularity : tuple of str
        What is sparse, in which pieces.
    density_of : str
        What the density counts, and what it leaves out, in a few words.
    count, allocation : str
        How strictly the budget is kept, and how it is spread.
    decided : tuple of str
        When the pattern is decided.
    mode : str
        Whether it changes afterwards, and with what.
    needs : tuple of str
        What must be there before.
    exactness : str
        What becomes of the result.
    peak_dense : tuple of str
        What is held densely at some time all the same.
    overhead : str
        What it costs to find the pattern; how often is the schedule's word.
    hardware : tuple of str
        Where a kernel of this library really skips the work.
    basis, data : str
        What our implementation was checked against, and what it is measured on.

    Raises
    ------
    ValueError
        If a field holds something else than its terms, or terms that contradict each other.

    Examples
    --------
    >>> from gossamer import catalog
    >>> catalog.get("hip-attention").taxonomy.mode
    'input_dependent'
    """

    object: tuple[str, ...]
    granularity: tuple[str, ...]
    density_of: str
    count: str
    allocation: str
    decided: tuple[str, ...]
    mode: str
    needs: tuple[str, ...]
    exactness: str
    peak_dense: tuple[str, ...]
    overhead: str
    hardware: tuple[str, ...]
    basis: str
    data: str

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name in SEVERAL:
                _check_terms(name, value)
            elif name in TERMS:
                _check_terms(name, (value,))
            elif not isinstance(value, str) or len(value.split()) < 2:
                raise ValueError(f"{name}: expected a few words, got {value!r}")
        if (self.mode == "input_dependent") != ("inference" in self.decided):
            raise ValueError(
                f"mode: expected input_dependent exactly for what is decided at inference, got "
                f"{self.mode!r} for {', '.join(self.decided)}"
            )
        if "sparse_to_sparse" in self.decided and "dense_weights" in self.needs:
            raise ValueError("needs: expected no dense_weights where training is sparse_to_sparse")


def _check_terms(name: str, terms: object) -> None:
    known = TERMS[name]
    if not isinstance(terms, tuple) or not terms:
        raise ValueError(f"{name}: expected at least one term, got {terms!r}")
    for term in terms:
        if not isinstance(term, str) or term not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {term!r}")
    if len(set(terms)) < len(terms):
        raise ValueError(f"{name}: expected each term once, got {', '.join(terms)}")
    if len(terms) > 1 and any(term in _ALONE for term in terms):
        raise ValueError(f"{name}: expected none alone, got {', '.join(terms)}")


def from_table(table: Mapping[str, Any]) -> Taxonomy:
    """Build a taxonomy from parsed TOML or JSON, in which several terms are a list.

    Parameters
    ----------
    table : mapping
        The fields of `Taxonomy`, or the groups of them that ``papers.toml`` has.

    Raises
    ------
    ValueError
        If a field is missing, unknown or wrong; the message names it.

    Examples
    --------
    >>> from dataclasses import asdict
    >>> from gossamer import catalog
    >>> one = catalog.get("dsnot").taxonomy
    >>> from_table(asdict(one)) == one
    True
    """
    flat: dict[str, Any] = {}
    for name, value in table.items():
        group = GROUPS.get(name)
        if group is None:
            flat[name] = value
        elif not isinstance(value, dict) or set(value) != set(group):
            raise ValueError(f"{name}: expected a table of {', '.join(group)}, got {value!r}")
        else:
            flat |= value
    names = [field.name for field in fields(Taxonomy)]
    if missing := [name for name in names if name not in flat]:
        raise ValueError(f"expected {', '.join(missing)}, got no such field")
    if unknown := [name for name in flat if name not in names]:
        raise ValueError(f"expected the fields {', '.join(names)}, got {', '.join(unknown)}")
    for name in SEVERAL:
        if not isinstance(flat[name], list | tuple):
            raise ValueError(f"{name}: expected a list of terms, got {flat[name]!r}")
        flat[name] = tuple(flat[name])
    return Taxonomy(**flat)
