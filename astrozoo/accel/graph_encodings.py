"""Encodings of nodes and of pairs of nodes, for batches of small graphs such as molecules or reaction networks.

A batch is `edges[2, edge]` (source, target), with nodes numbered through all graphs as in PyTorch Geometric, and
`sizes[graph]`, the number of nodes of each; the nodes of a graph are consecutive.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from astrozoo.accel.arrays import floating
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["LaplacianPE", "laplacian_pe", "random_walk_pe", "shortest_paths"]


class LaplacianPE(NamedTuple):
    """Eigenvectors of normalised Laplacians.

    Attributes:
        vectors: `[node, k]`; 0 in the columns that a graph has too few nodes for.
        values: `[graph, k]`, their eigenvalues in ascending order; NaN where there is none.
    """

    vectors: np.ndarray
    values: np.ndarray


def shortest_paths(
    edges: ArrayLike,
    sizes: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    max_distance: float | None = None,
    directed: bool = False,
    threads: int | None = None,
) -> np.ndarray:
    """Lengths of the shortest paths between all nodes of each graph, `[graph, source, target]`, padded.

    What Graphormer biases attention with (Ying et al. 2021, arXiv:2106.05234). Every graph has the room of the largest.

    Args:
        edges: Whole numbers `[2, edge]`; parallel edges and loops may be there.
        sizes: Whole numbers `[graph]`.
        weights: Length of each edge `[edge]`, at least 0; infinity is as no edge. By default hops are counted.
        max_distance: Longer paths count as none, at least 0; default: no limit.
        directed: Whether an edge leads from its source to its target only; by default it leads both ways.
        threads: See `astrozoo.accel.threads.workers`; graphs are spread over them.

    Returns:
        Without weights hops, int32: -1 where there is no path, and in the padding. With weights lengths in their dtype
        (added up in float64): infinity where there is no path, and in the padding. 0 from a node to itself.

    Raises:
        InputError: Wrong shapes or dtypes, a node that does not exist, an edge between two graphs, or a weight or
            distance below 0 or NaN.
    """
    batch = _batch(edges, sizes)
    limit = math.inf if max_distance is None else _number("max_distance", max_distance)
    lengths, single = _weights(weights, batch[0])
    found: np.ndarray = serve("shortest_paths")(*batch, lengths, limit, bool(directed), single, workers(threads))
    return found


def random_walk_pe(
    edges: ArrayLike,
    sizes: ArrayLike,
    steps: int,
    *,
    weights: ArrayLike | None = None,
    dtype: DTypeLike = np.float32,
    threads: int | None = None,
) -> np.ndarray:
    """Probability that a random walk from each node is back there after 1, 2, ... steps, `[node, steps]`.

    The diagonals of the powers of D^-1 A (Dwivedi et al. 2022, arXiv:2110.07875), with A the weights from source (row)
    to target and D their sums. It is what `AddRandomWalkPE` of PyTorch Geometric gives for graphs without parallel
    edges and weights; here parallel edges add up, and an edge is taken in proportion to its weight, so that the
    probabilities of leaving a node always sum to 1. An undirected graph has every edge in both directions.

    Args:
        edges: Whole numbers `[2, edge]`.
        sizes: Whole numbers `[graph]`.
        steps: Number of steps, at least 1.
        weights: Of each edge `[edge]`, finite and at least 0; default: 1.
        dtype: float32 or float64, of the result; it is computed in float64.
        threads: See `astrozoo.accel.threads.workers`; graphs are spread over them.

    Returns:
        Probabilities; 0 for a node that no edge leaves.

    Raises:
        InputError: As for `shortest_paths`; weights that are not finite, no steps, or another dtype.
    """
    batch = _batch(edges, sizes)
    chances, _ = _weights(weights, batch[0])
    if chances is not None and not math.isfinite(chances.sum()):
        raise InputError("weights or their sum are infinite; expected finite weights.")
    found: np.ndarray = serve("random_walk_pe")(
        *batch, chances, _count("steps", steps), _single(dtype), workers(threads)
    )
    return found


def laplacian_pe(
    edges: ArrayLike, sizes: ArrayLike, k: int, *, dtype: DTypeLike = np.float32, threads: int | None = None
) -> LaplacianPE:
    """Eigenvectors of the symmetric normalised Laplacian for its smallest eigenvalues but the first, `[node, k]`.

    The encoding of Dwivedi et al. 2020 (arXiv:2003.00982). L = 1 - D^-1/2 A D^-1/2 without loops. Edges are taken as
    undirected: A counts the parallel edges between two nodes, in the direction that has more of them. A node without
    neighbours has 1 on the diagonal of L, as in PyTorch Geometric's `AddLaplacianEigenvectorPE`.

    Vectors have length 1; of the entries that are largest in magnitude (up to a millionth) the first is positive.
    Eigenvectors of equal eigenvalues are an orthonormal basis of their space, and which one is not determined: it may
    differ between providers and with the order of the nodes. That holds for all vectors of eigenvalue 0 of a graph in
    several parts, of which one is skipped.

    Args:
        edges: Whole numbers `[2, edge]`.
        sizes: Whole numbers `[graph]`. The matrix of a graph is dense: they are meant to be up to a few hundred.
        k: Number of eigenvectors, at least 1.
        dtype: float32 or float64, of the result; it is computed in float64.
        threads: See `astrozoo.accel.threads.workers`; graphs are spread over them.

    Returns:
        The vectors, 0 beyond the number of nodes less one of a graph; and their eigenvalues, NaN there.

    Raises:
        InputError: As for `shortest_paths`; k below 1, or another dtype.
    """
    batch = _batch(edges, sizes)
    return LaplacianPE(*serve("laplacian_pe")(*batch, _count("k", k), _single(dtype), workers(threads)))


@reference
def _shortest_paths(
    edges: np.ndarray,
    sizes: np.ndarray,
    weights: np.ndarray | None,
    limit: float,
    directed: bool,
    single: bool,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> np.ndarray:
    """`[graph, node, node]`: level by level for hops, until nothing falls any more for lengths; all nodes at once."""
    if not directed:
        edges = np.concatenate((edges, edges[::-1]), axis=1)
        weights = None if weights is None else np.concatenate((weights, weights))
    rows = _Rows(edges, sizes)
    if weights is None:
        hops = np.where(rows.start(), 0, -1).astype(np.int32)
        frontier, level = hops == 0, 1
        while level <= limit and frontier.any():
            frontier = rows.combine(np.logical_or, frontier, False) & (hops < 0)
            hops[frontier] = level
            level += 1
        return rows.padded(hops, -1)
    lengths = np.where(rows.start(), 0.0, np.inf)
    weights = weights[rows.order, None]
    while True:
        shorter = np.minimum(lengths, rows.combine(np.minimum, lengths, np.inf, lambda there: there + weights))
        if np.array_equal(shorter, lengths):
            break
        lengths = shorter
    lengths[lengths > limit] = np.inf
    return rows.padded(lengths.astype(np.float32 if single else np.float64), np.inf)


@reference
def _random_walk_pe(
    edges: np.ndarray,
    sizes: np.ndarray,
    weights: np.ndarray | None,
    steps: int,
    single: bool,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> np.ndarray:
    """`[node, steps]`: the powers of all graphs, as rows of all nodes over the columns of the largest graph."""
    rows = _Rows(edges, sizes)
    weights = np.ones(edges.shape[1]) if weights is None else weights
    total = np.bincount(edges[0], weights, minlength=len(rows.local))[edges[0]]
    chance = np.divide(weights, total, out=np.zeros(len(total)), where=total > 0)[rows.order, None]
    found = np.empty((len(rows.local), steps))
    power = rows.start().astype(np.float64)
    for step in range(steps):
        power = rows.combine(np.add, power, 0.0, lambda there: there * chance)
        found[:, step] = power[np.arange(len(power)), rows.local]
    return found.astype(np.float32) if single else found


@reference
def _laplacian_pe(
    edges: np.ndarray,
    sizes: np.ndarray,
    k: int,
    single: bool,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> tuple[np.ndarray, np.ndarray]:
    """`[node, k]` and `[graph, k]`: the graphs of each size as one stack of matrices."""
    rows = _Rows(edges, sizes)
    dtype = np.float32 if single else np.float64
    vectors = np.zeros((len(rows.local), k), dtype)
    values = np.full((len(sizes), k), np.nan, dtype)
    graph = rows.graph[edges[0]]
    for size in np.unique(sizes[sizes > 1]):
        members = np.flatnonzero(sizes == size)
        place = np.full(len(sizes), -1)
        place[members] = np.arange(len(members))
        mine = (place[graph] >= 0) & (edges[0] != edges[1])
        adjacency = np.zeros((len(members), size, size))
        np.add.at(adjacency, (place[graph[mine]], *rows.local[edges[:, mine]]), 1.0)
        adjacency = np.maximum(adjacency, adjacency.swapaxes(1, 2))
        degree = adjacency.sum(axis=2)
        scale = np.divide(1.0, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
        laplacian = np.eye(size) - scale[:, :, None] * adjacency * scale[:, None, :]
        found = min(k, int(size) - 1)
        exact, basis = np.linalg.eigh(laplacian)
        basis = basis[:, :, 1 : found + 1]
        size_of = np.abs(basis)
        decides = np.argmax(size_of >= (1 - 1e-6) * size_of.max(axis=1, keepdims=True), axis=1, keepdims=True)
        basis = np.where(np.take_along_axis(basis, decides, axis=1) < 0, -basis, basis)
        values[members, :found] = exact[:, 1 : found + 1]
        nodes = rows.first[members, None] + np.arange(size)
        vectors[nodes, :found] = basis
    return vectors, values


class _Rows:
    """Matrices of all graphs, one below the other: a row for each node, a column for each node of the largest graph."""

    def __init__(self, edges: np.ndarray, sizes: np.ndarray) -> None:
        self.sizes, self.most = sizes, int(sizes.max(initial=0))
        self.first = np.cumsum(sizes) - sizes
        self.graph = np.repeat(np.arange(len(sizes)), sizes)
        self.local = np.arange(len(self.graph)) - self.first[self.graph]
        self.order = np.argsort(edges[0], kind="stable")
        self.target = edges[1][self.order]
        # Nodes that edges leave, and the first edge of each.
        self.sources, self.starts = np.unique(edges[0][self.order], return_index=True)

    def start(self) -> np.ndarray:
        """Where a node meets itself, bool."""
        here: np.ndarray = self.local[:, None] == np.arange(self.most)
        return here

    def combine(self, ufunc: np.ufunc, rows: np.ndarray, empty: Any, change: Any = None) -> np.ndarray:
        """For each node, the rows of what its edges lead to, changed and put together; `empty` where there are none."""
        result = np.full_like(rows, empty)
        if len(self.sources):
            there = rows[self.target] if change is None else change(rows[self.target])
            result[self.sources] = ufunc.reduceat(there, self.starts, axis=0)
        return result

    def padded(self, rows: np.ndarray, empty: Any) -> np.ndarray:
        result = np.full((len(self.sizes), self.most, self.most), empty, rows.dtype)
        result[self.graph, self.local] = np.where(np.arange(self.most) < self.sizes[self.graph, None], rows, empty)
        return result


def _batch(edges: ArrayLike, sizes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    links, counts = _whole("edges", edges), _whole("sizes", sizes)
    if links.ndim != 2 or links.shape[0] != 2:
        raise InputError(f"edges has shape {links.shape}; expected (2, edge).")
    if counts.ndim != 1:
        raise InputError(f"sizes has shape {counts.shape}; expected (graph,).")
    if counts.min(initial=0) < 0:
        raise InputError(f"sizes has {counts.min()}; expected numbers of nodes, at least 0.")
    nodes = int(counts.sum())
    if links.size:
        low, high = links.min(), links.max()
        if low < 0 or high >= nodes:
            raise InputError(
                f"edges has node {low if low < 0 else high}; expected numbers from 0 to {nodes - 1}: sizes sum to "
                f"{nodes} nodes."
            )
        graph = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        source, target = graph.take(links[0]), graph.take(links[1])
        if not np.array_equal(source, target):
            edge = int(np.flatnonzero(source != target)[0])
            raise InputError(
                f"edges has an edge from node {links[0, edge]} of graph {source[edge]} to node {links[1, edge]} of "
                f"graph {target[edge]}; expected edges within a graph. Are sizes the numbers of nodes of the graphs?"
            )
    return links, counts


def _whole(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0 and not isinstance(values, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} has dtype {array.dtype}; expected whole numbers.")
    return np.ascontiguousarray(array, dtype=np.int64)


def _weights(weights: ArrayLike | None, edges: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """As float64, and whether they were float32."""
    if weights is None:
        return None, False
    array = floating("weights", weights)
    if array.shape != (edges.shape[1],):
        raise InputError(f"weights has shape {array.shape}; expected (edge,) = ({edges.shape[1]},), one for each edge.")
    if not (array >= 0).all():
        raise InputError(f"weights has {array[~(array >= 0)][0]}; expected numbers of at least 0.")
    return np.ascontiguousarray(array, dtype=np.float64), array.dtype == np.float32


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not value >= 0:
        raise InputError(f"{name} is {value!r}; expected a number of at least 0.")
    return float(value)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least 1.")
    return int(value)


def _single(dtype: DTypeLike) -> bool:
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise InputError(f"dtype is {np.dtype(dtype)}; expected float32 or float64.")
    return np.dtype(dtype) == np.float32
