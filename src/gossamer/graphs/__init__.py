"""Graphs: spectral sparsifiers that are found once, or kept current while edges come and go."""

try:
    import scipy  # noqa: F401
except ImportError as error:
    raise ImportError("gossamer.graphs needs SciPy: pip install gossamer[graphs]") from error

from gossamer.graphs.dygrass import DynamicSparsifier
from gossamer.graphs.formats import (
    as_adjacency,
    from_edge_index,
    from_laplacian,
    laplacian,
    largest_component,
    read_graph,
    to_edge_index,
    to_networkx,
    write_graph,
)
from gossamer.graphs.grass import spectral_sparsify
from gossamer.graphs.ingrass import InGRASS
from gossamer.graphs.spectrum import (
    RelativeSpectrum,
    effective_resistance,
    preconditioned_iterations,
    relative_condition_number,
)
from gossamer.graphs.storage import UpdateReport

__all__ = [
    "DynamicSparsifier",
    "InGRASS",
    "RelativeSpectrum",
    "UpdateReport",
    "as_adjacency",
    "effective_resistance",
    "from_edge_index",
    "from_laplacian",
    "laplacian",
    "largest_component",
    "preconditioned_iterations",
    "read_graph",
    "relative_condition_number",
    "spectral_sparsify",
    "to_edge_index",
    "to_networkx",
    "write_graph",
]
