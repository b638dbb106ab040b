"""Graphs of a data set, and batches of them as the parts of one large graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import numbers, runs, whole
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["CollatedGraphs", "GraphStore", "collate_graphs"]


@dataclass(frozen=True, eq=False, slots=True)
class GraphStore:
    """All graphs of a data set in a few flat arrays, from which batches are taken by number; `of` makes one of lists.

    Arrays are checked once, here. They become C-contiguous, and their numbers float32, float64 or int64: float16
    becomes float32, smaller integers int64. What is right already is not copied.

    Attributes:
        x: `[node, feature]` of all graphs, one after the other.
        node_starts: int64 `[graph + 1]`, the first node of each graph, and the number of nodes.
        edges: int64 `[2, edge]`, sources and targets by node number within the graph.
        edge_starts: int64 `[graph + 1]`, the first edge of each graph, and the number of edges.
        edge_attr: `[edge, feature]`, or None.
        positions: `[node, coordinate]`, or None.
        y: `[graph, target]`, or None.

    Raises:
        InputError: Arrays of other dimensions or kinds of numbers; starts that fall, do not lead from 0 to the number
            of rows, or are of another number of graphs; parts of another length; edges to nodes that their graph does
            not have.
    """

    x: np.ndarray
    node_starts: np.ndarray
    edges: np.ndarray
    edge_starts: np.ndarray
    edge_attr: np.ndarray | None = None
    positions: np.ndarray | None = None
    y: np.ndarray | None = None

    def __post_init__(self) -> None:
        x, edges = numbers("x", self.x, "node feature"), _pairs("edges", self.edges)
        node_starts = _starts("node_starts", self.node_starts, len(x), "nodes")
        edge_starts = _starts("edge_starts", self.edge_starts, edges.shape[1], "edges")
        if len(edge_starts) != len(node_starts):
            raise InputError(
                f"edge_starts has {len(edge_starts)} entries; expected {len(node_starts)}, as many as node_starts."
            )
        _check_ends(edges, node_starts, edge_starts)
        rows = (
            ("edge_attr", "edge feature", edges.shape[1]),
            ("positions", "node coordinate", len(x)),
            ("y", "graph target", len(node_starts) - 1),
        )
        parts = {"x": x, "node_starts": node_starts, "edges": edges, "edge_starts": edge_starts}
        for name, dims, count in rows:
            if (values := getattr(self, name)) is None:
                continue
            parts[name] = numbers(name, values, dims)
            if len(parts[name]) != count:
                raise InputError(
                    f"{name} has {len(parts[name])} rows; expected {count}, one for each {dims.split()[0]}."
                )
        for name, array in parts.items():
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.node_starts) - 1

    @classmethod
    def of(
        cls,
        x: Sequence[ArrayLike],
        edges: Sequence[ArrayLike],
        *,
        edge_attr: Sequence[ArrayLike] | None = None,
        positions: Sequence[ArrayLike] | None = None,
        y: Sequence[ArrayLike] | None = None,
    ) -> GraphStore:
        """A store of graphs that are given as lists of arrays, which are checked and copied.

        All arrays of one argument have one dtype: float32, float64 or int64; float16 becomes float32, smaller integers
        int64. NaN passes.

        Args:
            x: For each graph `[node, feature]`; there may be no nodes.
            edges: For each graph int64 `[2, edge]`, by node number within the graph.
            edge_attr: For each graph `[edge, feature]`.
            positions: For each graph `[node, coordinate]`.
            y: For each graph `[target]`.

        Raises:
            InputError: No graphs; lists of other lengths; arrays of other dimensions, or of another number of columns
                or dtype than those of the first graph; edges to nodes that a graph does not have. The graph is named.
        """
        lists: list[Any] = [part if part is None else list(part) for part in (x, edges, edge_attr, positions, y)]
        if not lists[0]:
            raise InputError("x is empty; expected the node features of at least one graph.")
        nodes, pairs, attributes, places, targets = _prepared(*lists)
        assert nodes is not None
        assert pairs is not None
        return cls(
            np.concatenate(nodes),
            np.cumsum([0, *map(len, nodes)]),
            np.concatenate(pairs, axis=1),
            np.cumsum([0, *(pair.shape[1] for pair in pairs)]),
            None if attributes is None else np.concatenate(attributes),
            None if places is None else np.concatenate(places),
            None if targets is None else np.stack(targets),
        )


class CollatedGraphs(NamedTuple):
    """Graphs laid one after the other.

    Attributes:
        x: `[node, feature]` of all graphs.
        edges: int64 `[2, edge]`, by node number over all graphs.
        edge_attr: `[edge, feature]`, or None.
        positions: `[node, coordinate]`, or None.
        y: `[graph, target]`, or None.
        batch: int64 `[node]`, the number of its graph within the batch.
        sizes: int64 `[graph]`, nodes of each.
    """

    x: np.ndarray
    edges: np.ndarray
    edge_attr: np.ndarray | None
    positions: np.ndarray | None
    y: np.ndarray | None
    batch: np.ndarray
    sizes: np.ndarray


def collate_graphs(
    store: GraphStore, indices: ArrayLike | None = None, *, threads: int | None = None
) -> CollatedGraphs:
    """Take graphs of a data set and lay them one after the other: features joined, edges moved by the nodes before.

    The form is that of `Batch` of PyTorch Geometric (Fey and Lenssen 2019, arXiv:1903.02428).

    Args:
        store: The graphs of the data set.
        indices: Whole numbers `[graph]`: which graphs, in which order; one may come several times. Default: all.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        New arrays.

    Raises:
        InputError: Indices that are no whole numbers, or not those of graphs of the store.
    """
    chosen = np.arange(len(store)) if indices is None else whole("indices", indices, "graph")
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(store)):
        wrong = chosen.min() if chosen.min() < 0 else chosen.max()
        raise InputError(f"indices has {wrong}; expected numbers of graphs from 0 to {len(store) - 1}.")
    x, edges, edge_attr, positions, batch, sizes = serve("collate_graphs")(
        store.x, store.node_starts, store.edges, store.edge_starts, store.edge_attr, store.positions, chosen,
        workers(threads),
    )  # fmt: skip
    y = None if store.y is None else store.y[chosen]
    return CollatedGraphs(x, edges, edge_attr, positions, y, batch, sizes)


@reference
def _collate_graphs(
    x: np.ndarray,
    node_starts: np.ndarray,
    edges: np.ndarray,
    edge_starts: np.ndarray,
    edge_attr: np.ndarray | None,
    positions: np.ndarray | None,
    indices: np.ndarray,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> tuple[np.ndarray | None, ...]:
    """Features, edges, edge features, positions, graph of each node, sizes."""
    nodes, sizes = _rows(node_starts, indices)
    links, counts = _rows(edge_starts, indices)
    return (
        x.take(nodes, axis=0),
        edges.take(links, axis=1) + np.repeat(np.cumsum(sizes) - sizes, counts),
        None if edge_attr is None else edge_attr.take(links, axis=0),
        None if positions is None else positions.take(nodes, axis=0),
        np.repeat(np.arange(len(sizes)), sizes),
        sizes,
    )


def _rows(starts: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the graphs, one graph after the other, and how many each has."""
    first = starts[indices]
    counts = starts[indices + 1] - first
    return runs(first, counts), counts


def _starts(name: str, values: Any, rows: int, what: str) -> np.ndarray:
    """Where the rows of each graph start, as int64, and their number behind."""
    starts = np.asarray(values)
    if starts.dtype.kind not in "iu" or starts.ndim != 1 or not len(starts):
        raise InputError(f"{name} is {starts.dtype} {starts.shape}; expected int64 (graph + 1,).")
    starts = np.ascontiguousarray(starts, dtype=np.int64)
    if starts[0] != 0 or starts[-1] != rows:
        raise InputError(
            f"{name} goes from {starts[0]} to {starts[-1]}; expected 0 to {rows}: there are {rows} {what}."
        )
    falls = starts[1:] < starts[:-1]
    if falls.any():
        graph = int(np.argmax(falls))
        raise InputError(
            f"{name} of graph {graph} is {starts[graph]}, and {starts[graph + 1]} of the next; expected no fall."
        )
    return starts


def _check_ends(edges: np.ndarray, node_starts: np.ndarray, edge_starts: np.ndarray) -> None:
    """See that edges lead to nodes of their own graph."""
    limits = np.repeat(np.diff(node_starts), np.diff(edge_starts))
    wrong = (edges < 0) | (edges >= limits)
    if wrong.any():
        edge = int(np.argmax(wrong.any(axis=0)))
        node = edges[np.argmax(wrong[:, edge]), edge]
        graph = int(np.searchsorted(edge_starts, edge, side="right")) - 1
        raise InputError(
            f"edges of graph {graph} lead to node {node}; expected numbers from 0 to {limits[edge] - 1}: "
            f"it has {limits[edge]} nodes."
        )


def _prepared(
    x: list[Any], edges: list[Any], edge_attr: list[Any] | None, positions: list[Any] | None, y: list[Any] | None
) -> tuple[list[np.ndarray] | None, ...]:
    """The arrays of each graph as they can be joined, or the error that names the graph whose arrays cannot be."""
    for name, part in (("edges", edges), ("edge_attr", edge_attr), ("positions", positions), ("y", y)):
        if part is not None and len(part) != len(x):
            raise InputError(f"{name} has {len(part)} graphs; expected {len(x)}, as many as x.")
    nodes = _part("x", x, "node feature")
    pairs = [_pairs(f"edges of graph {graph}", pair) for graph, pair in enumerate(edges)]
    attributes = None if edge_attr is None else _part("edge_attr", edge_attr, "edge feature")
    places = None if positions is None else _part("positions", positions, "node coordinate")
    for name, part, rows, what in (
        ("edge_attr", attributes, [pair.shape[1] for pair in pairs], "edges"),
        ("positions", places, [len(features) for features in nodes], "nodes"),
    ):
        for graph, (array, count) in enumerate(zip(part or (), rows, strict=False)):
            if len(array) != count:
                raise InputError(
                    f"{name} of graph {graph} has {len(array)} rows; expected {count}, one for each of its {what}."
                )
    return nodes, pairs, attributes, places, None if y is None else _part("y", y, "target")


def _part(name: str, arrays: list[Any], dims: str) -> list[np.ndarray]:
    prepared: list[np.ndarray] = []
    for graph, values in enumerate(arrays):
        array = numbers(f"{name} of graph {graph}", values, dims)
        if prepared and (array.dtype, array.shape[-1]) != (prepared[0].dtype, prepared[0].shape[-1]):
            raise InputError(
                f"{name} of graph {graph} is {array.dtype} (..., {array.shape[-1]}); expected {prepared[0].dtype} "
                f"(..., {prepared[0].shape[-1]}), as in graph 0."
            )
        prepared.append(array)
    return prepared


def _pairs(name: str, values: Any) -> np.ndarray:
    """C-contiguous int64 `[2, edge]`; an empty list is no edges."""
    pairs = np.asarray(values)
    if pairs.shape in ((0,), (2, 0)):
        return np.empty((2, 0), np.int64)
    if pairs.dtype.kind not in "iu" or pairs.ndim != 2 or len(pairs) != 2:
        raise InputError(f"{name} is {pairs.dtype} {pairs.shape}; expected int64 (2, edge).")
    return np.ascontiguousarray(pairs, dtype=np.int64)
