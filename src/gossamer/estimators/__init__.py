"""Estimators with scikit-learn's interface: features, coefficients and codes that are sparse."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("estimators need scikit-learn: pip install 'gossamer[estimators]'") from error

from gossamer.estimators.ista import Encoding, ISTACoder, debias
from gossamer.estimators.sparse_coding import SparseCoding

__all__ = ["Encoding", "ISTACoder", "SparseCoding", "debias"]
