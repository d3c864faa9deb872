"""dyGRASS: short random walks keep a spectral sparsifier current while edges come and go."""
# pyright: reportOptionalSubscript=false
# scipy carries no types, and what is inferred lets a matrix have no shape.

import warnings
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra

from gossamer.graphs.formats import as_adjacency
from gossamer.graphs.grass import spectral_sparsify
from gossamer.graphs.storage import (
    Ints,
    SlottedGraph,
    UpdateReport,
    distinct_pairs,
    edge_pairs,
    weighted_batch,
)
from gossamer.kernels import random_walks, trace_walks

RECOVERY_WALKERS, RECOVERY_STEPS = 16, 2
STATE = ("graph", "sparsifier")
Pieces = NDArray[np.int32]


class DynamicSparsifier:
    """A sparsifier H of a graph G that is kept current by non-backtracking random walks.

    An inserted edge (p, q, w) is left out if one of its walkers gets from p to q in H by a path
    of resistance R with w R < `distortion`: its spectral distortion w R_eff is smaller still.
    Otherwise H takes it. After a deletion from H, the cheapest path that walkers find in G from
    one end to the other is added. All walks of a batch see the graph as the batch found it.

    Based on "dyGRASS: Dynamic Spectral Graph Sparsification via Localized Random Walks on GPUs"
    (arXiv 2505.02741). H keeps G's weights, so the smallest relative eigenvalue is at least 1.
    Dropped edges leave their weight nowhere: what a stream of them adds to the condition number
    is not undone. Where no walker arrives after a deletion, edges around both ends are added as
    in the paper's recovery, and then, if H is still in more pieces than G, a shortest path.

    Parameters
    ----------
    graph : adjacency as `as_adjacency` takes it
    sparsifier : adjacency, optional
        Of the same components; GRASS at density 1.1 by default.
    distortion : float
        K, the least distortion of an edge worth keeping (the authors tune it: 10 to 100).
    walkers, max_steps : int
        Of each edge (the authors' code: 512 and 100).
    seed : int
        Below 2**32.
    device : str
        Where the walks run.

    Examples
    --------
    >>> ring = csr_array(np.roll(np.eye(40), 1, 1) + np.roll(np.eye(40), -1, 1))
    >>> live = DynamicSparsifier(ring, ring, distortion=10)
    >>> live.insert([[0, 5], [0, 20]])  # the detours have resistance 5 and 20
    UpdateReport(added=1, dropped=1, reweighted=0, removed=0, skipped=0, recovered=0, fallback=0, \
components=None)
    >>> live.delete([[1, 2]]).recovered  # over the edge that was left out
    1
    """

    def __init__(
        self,
        graph: Any,
        sparsifier: Any = None,
        *,
        distortion: float,
        walkers: int = 512,
        max_steps: int = 100,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if not 0 < distortion < inf:
            raise ValueError(f"expected a positive, finite distortion, got {distortion}")
        if walkers < 1 or max_steps < 1:
            raise ValueError(f"expected walkers and max_steps >= 1, got {walkers} and {max_steps}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"expected seed in 0..2**32 - 1, got {seed}")
        whole = as_adjacency(graph)
        part = (
            spectral_sparsify(whole, density=1.1, seed=seed)
            if sparsifier is None
            else as_adjacency(sparsifier)
        )
        self.distortion, self.walkers, self.max_steps = distortion, walkers, max_steps
        self.seed, self.device = seed, device
        self._set(whole, part, batch=0)

    def _set(self, whole: csr_array, part: csr_array, batch: int) -> None:
        if whole.shape != part.shape:
            raise ValueError(
                f"expected a sparsifier of {whole.shape[0]} vertices, got {part.shape[0]}"
            )
        pieces, parts = (connected_components(a, directed=False)[0] for a in (whole, part))
        kept, every = SlottedGraph(part), SlottedGraph(whole)
        entries = part.tocoo()
        slots = every.find(entries.row.astype(np.int64), entries.col.astype(np.int64))
        if bool((slots < 0).any()) or not np.array_equal(every.weight[slots], entries.data):
            raise ValueError("expected a sparsifier whose edges and weights are the graph's own")
        if pieces != parts:
            raise ValueError(
                f"expected a sparsifier of {pieces} components like the graph, got {parts}; try "
                "sparsifier=None"
            )
        self._graph, self._sparsifier, self._batch = every, kept, batch

    @property
    def graph(self) -> csr_array:
        """Adjacency [n, n] of the graph as it is now."""
        return self._graph.to_csr()

    @property
    def sparsifier(self) -> csr_array:
        """Adjacency [n, n] of the sparsifier as it is now."""
        return self._sparsifier.to_csr()

    @property
    def density(self) -> float:
        """Edges of the sparsifier over vertices; a tree has nearly 1."""
        return self._sparsifier.edges / self._sparsifier.vertices

    def insert(self, edges: ArrayLike, weights: ArrayLike | None = None) -> UpdateReport:
        """Insert one batch of edges.

        Parameters
        ----------
        edges : array [count, 2] int
        weights : array [count], optional
            Ones by default. Weights of an edge given twice, or known already, add up.

        Returns
        -------
        UpdateReport

        Raises
        ------
        TypeError, ValueError
            If an id or weight does not fit; nothing is changed then.
        """
        pairs, weight = weighted_batch(edges, weights, self._graph.vertices)
        known = self._graph.has(pairs)
        old, more = pairs[known], weight[known]
        pairs, weight = pairs[~known], weight[~known]
        limit = torch.from_numpy(self.distortion / weight).float()
        critical = self._walk(self._sparsifier, pairs, "first", limit).walker.cpu().numpy() < 0
        kept = self._sparsifier.has(old)
        self._graph.increase(old, more)
        self._sparsifier.increase(old[kept], more[kept])
        self._graph.add(pairs, weight)
        self._sparsifier.add(pairs[critical], weight[critical])
        self._batch += 1
        added = int(critical.sum())
        return UpdateReport(added=added, dropped=len(pairs) - added, reweighted=int(known.sum()))

    def delete(self, edges: ArrayLike) -> UpdateReport:
        """Delete one batch of edges and mend the sparsifier.

        Parameters
        ----------
        edges : array [count, 2] int

        Returns
        -------
        UpdateReport

        Raises
        ------
        TypeError, ValueError
            If an id does not fit; nothing is changed then.

        Warns
        -----
        UserWarning
            If some of the edges do not exist; they are skipped.
        """
        n = self._graph.vertices
        pairs = distinct_pairs(edge_pairs(edges, n), n)[0]
        known = self._graph.has(pairs)
        skipped = int((~known).sum())
        if skipped:
            warnings.warn(
                f"skipped {skipped} edges that the graph does not have", UserWarning, stacklevel=2
            )
        pairs = pairs[known]
        torn = pairs[self._sparsifier.has(pairs)]
        self._graph.remove(pairs)
        self._sparsifier.remove(torn)
        found = self._walk(self._graph, torn, "best", None)
        arrived = found.walker.cpu().numpy() >= 0
        steps = found.steps.cpu().numpy()[arrived]
        path = self._trace(torn[arrived], found.walker[arrived], int(steps.max(initial=0)))
        beyond = np.arange(path.shape[1]) > steps[:, None]
        recovered = self._keep(np.where(beyond, -1, path))
        fallback, components = self._reconnect(torn[~arrived])
        self._batch += 1
        return UpdateReport(
            removed=len(pairs),
            skipped=skipped,
            recovered=recovered,
            fallback=fallback,
            components=components,
        )

    def _walk(self, where: SlottedGraph, pairs: Ints, report: Any, limit: Any) -> Any:
        source, target = torch.from_numpy(pairs).to(self.device).unbind(1)
        return random_walks(
            where.walk_graph(self.device),
            source,
            target,
            limit=None if limit is None else limit.to(self.device),
            walkers=self.walkers,
            max_steps=self.max_steps,
            report=report,
            seed=self._walk_seed,
        )

    @property
    def _walk_seed(self) -> int:
        return (self._batch % 2**31) << 32 | self.seed

    def _trace(self, pairs: Ints, walker: torch.Tensor, steps: int) -> Ints:
        """Vertices [walks, steps + 1] that walkers pass in the graph."""
        source, target = torch.from_numpy(pairs).unbind(1)
        graph = self._graph.walk_graph()
        path = trace_walks(graph, source, target, walker.cpu(), steps=steps, seed=self._walk_seed)
        return path.numpy()

    def _keep(self, path: Ints) -> int:
        """Add the edges of paths [count, length], ended by -1, that H lacks; return how many."""
        steps = np.stack([path[:, :-1].ravel(), path[:, 1:].ravel()], axis=1)
        steps = np.sort(steps[(steps >= 0).all(1)], axis=1)
        pairs = distinct_pairs(steps, self._graph.vertices)[0]
        new = pairs[~self._sparsifier.has(pairs)]
        self._sparsifier.add(new, self._graph.weights(new))
        return len(new)

    def _reconnect(self, pairs: Ints) -> tuple[int, int | None]:
        """Mend H around the ends of deleted edges that no walker joined again."""
        if not len(pairs):
            return 0, None
        both = np.concatenate([pairs, pairs[:, ::-1]]).repeat(RECOVERY_WALKERS, axis=0)
        walker = torch.arange(RECOVERY_WALKERS).repeat(2 * len(pairs))
        added = self._keep(self._trace(both, walker, RECOVERY_STEPS))
        count, whole = connected_components(self.graph, directed=False)
        pieces = connected_components(self.sparsifier, directed=False)[1]
        # Two ends of different edges may be apart too: every end meets the first of its component.
        ends = np.unique(pairs)
        first = np.unique(whole[ends], return_index=True, return_inverse=True)[1:]
        meet = np.stack([ends, ends[first[0]][first[1]]], axis=1)
        for p, q in np.concatenate([pairs, meet]):
            if pieces[p] != pieces[q] and whole[p] == whole[q]:
                added += self._keep(self._shortest(int(p), int(q)))
                pieces = connected_components(self.sparsifier, directed=False)[1]
        return added, int(count)

    def _shortest(self, p: int, q: int) -> Ints:
        """The path [1, length] of least resistance in the graph."""
        lengths = self.graph
        lengths.data = 1 / lengths.data
        before = dijkstra(lengths, directed=False, indices=p, return_predecessors=True)[1]
        path = [q]
        while path[-1] != p:
            path.append(int(before[path[-1]]))
        return np.array([path], dtype=np.int64)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return graph, sparsifier and batch number as tensors; options are not part of it."""
        state = {"batch": torch.tensor(self._batch)}
        for name in STATE:
            matrix: csr_array = getattr(self, name)
            for part in ("indptr", "indices", "data"):
                state[f"{name}.{part}"] = torch.from_numpy(getattr(matrix, part).copy())
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a `state_dict`; later batches do what they would have done.

        Raises
        ------
        KeyError
            If a part is missing.
        ValueError
            If graph and sparsifier do not fit together; nothing is changed then.
        """
        matrices = []
        for name in STATE:
            starts, column, data = (
                state[f"{name}.{part}"].numpy() for part in ("indptr", "indices", "data")
            )
            n = len(starts) - 1
            matrices.append(as_adjacency(csr_array((data, column, starts), shape=(n, n))))
        self._set(matrices[0], matrices[1], int(state["batch"]))
