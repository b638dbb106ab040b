"""Many small graphs as the parts of one large one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["CollatedGraphs", "collate_graphs"]


class CollatedGraphs(NamedTuple):
    """Graphs laid one after the other.

    Attributes:
        x: `[node, feature]` of all graphs.
        edges: int64 `[2, edge]`, by node number over all graphs.
        edge_attr: `[edge, feature]`, or None.
        positions: `[node, coordinate]`, or None.
        y: `[graph, target]`, or None.
        batch: int64 `[node]`, the number of its graph.
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
    x: Sequence[ArrayLike],
    edges: Sequence[ArrayLike],
    *,
    edge_attr: Sequence[ArrayLike] | None = None,
    positions: Sequence[ArrayLike] | None = None,
    y: Sequence[ArrayLike] | None = None,
    threads: int | None = None,
) -> CollatedGraphs:
    """Lay graphs one after the other: features joined, edges shifted by the nodes of the graphs before.

    The form is that of `Batch` of PyTorch Geometric (Fey and Lenssen 2019, arXiv:1903.02428). All arrays of one
    argument have one dtype: float32, float64 or int64; float16 becomes float32, smaller integers int64. NaN passes.

    Lists of C-contiguous arrays of these dtypes are taken as they are; nothing is looked at twice then.

    Args:
        x: For each graph `[node, feature]`; there may be no nodes.
        edges: For each graph int64 `[2, edge]`, sources and targets by node number within the graph.
        edge_attr: For each graph `[edge, feature]`.
        positions: For each graph `[node, coordinate]`.
        y: For each graph `[target]`.
        threads: See `astrozoo.accel.threads.workers`.

    Raises:
        InputError: No graphs; lists of other lengths; arrays of other dimensions, or of another number of columns or
            dtype than those of the first graph; edges to nodes that a graph does not have. The graph is named.
    """
    lists: list[Any] = [x, edges, edge_attr, positions, y]
    lists = [part if part is None or isinstance(part, list) else list(part) for part in lists]
    if not lists[0]:
        raise InputError("x is empty; expected the node features of at least one graph.")
    kernel, count = serve("collate_graphs"), workers(threads)
    found = kernel(*lists, count)
    if found is None:
        found = kernel(*_prepared(*lists), count)
    return CollatedGraphs(*found)


@reference
def _collate_graphs(
    x: list[np.ndarray],
    edges: list[np.ndarray],
    edge_attr: list[np.ndarray] | None,
    positions: list[np.ndarray] | None,
    y: list[np.ndarray] | None,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> tuple[np.ndarray | None, ...] | None:
    """The fields of `CollatedGraphs`; None where the arrays are not such that they can be taken as they are."""
    columns = ((x, 2, "x"), (edge_attr, 2, "edge_attr"), (positions, 2, "positions"), (y, 1, "y"))
    if not all(part is None or (len(part) == len(x) and _alike(part, dims)) for part, dims, _ in columns):
        return None
    if len(edges) != len(x) or not all(
        isinstance(pairs, np.ndarray) and pairs.dtype == np.int64 and pairs.ndim == 2 and len(pairs) == 2
        for pairs in edges
    ):
        return None
    sizes, ends = np.array([len(nodes) for nodes in x]), np.array([pairs.shape[1] for pairs in edges])
    for part, rows in ((edge_attr, ends), (positions, sizes)):
        if part is not None and [len(array) for array in part] != rows.tolist():
            return None
    joined = np.concatenate(edges, axis=1)
    if ((joined < 0) | (joined >= np.repeat(sizes, ends))).any():
        return None
    return (
        np.concatenate(x),
        joined + np.repeat(np.cumsum(sizes) - sizes, ends),
        None if edge_attr is None else np.concatenate(edge_attr),
        None if positions is None else np.concatenate(positions),
        None if y is None else np.stack(y),
        np.repeat(np.arange(len(sizes)), sizes),
        sizes,
    )


def _alike(arrays: list[Any], dims: int) -> bool:
    """Whether these are arrays of `dims` dimensions, of one dtype that kernels take, and as wide as the first."""
    first = arrays[0]
    return all(
        isinstance(array, np.ndarray)
        and array.ndim == dims
        and array.dtype in (np.float32, np.float64, np.int64)
        and array.dtype == first.dtype
        and array.shape[-1] == first.shape[-1]
        for array in arrays
    )


def _prepared(
    x: list[Any], edges: list[Any], edge_attr: list[Any] | None, positions: list[Any] | None, y: list[Any] | None
) -> tuple[list[np.ndarray] | None, ...]:
    """The arrays as kernels take them, or the error that says why they cannot be."""
    for name, part in (("edges", edges), ("edge_attr", edge_attr), ("positions", positions), ("y", y)):
        if part is not None and len(part) != len(x):
            raise InputError(f"{name} has {len(part)} graphs; expected {len(x)}, as many as x.")
    nodes = _part("x", x, "node feature")
    pairs = []
    for graph, (array, features) in enumerate(zip(edges, nodes, strict=True)):
        pair = np.asarray(array)
        if pair.size == 0 and pair.shape in ((0,), (2, 0)):
            pair = np.empty((2, 0), np.int64)
        if pair.dtype.kind not in "iu" or pair.ndim != 2 or len(pair) != 2:
            raise InputError(f"edges of graph {graph} is {pair.dtype} {pair.shape}; expected int64 (2, edge).")
        pair = np.ascontiguousarray(pair, dtype=np.int64)
        wrong = pair[(pair < 0) | (pair >= len(features))]
        if wrong.size:
            raise InputError(
                f"edges of graph {graph} lead to node {wrong[0]}; expected numbers from 0 to {len(features) - 1}: "
                f"it has {len(features)} nodes."
            )
        pairs.append(pair)
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
        array = np.asarray(values)
        if array.dtype.kind in "iub":
            array = array.astype(np.int64, copy=False)
        array = np.ascontiguousarray(floating(f"{name} of graph {graph}", array)) if array.dtype != np.int64 else array
        if array.ndim != len(dims.split()):
            raise InputError(f"{name} of graph {graph} has shape {array.shape}; expected ({', '.join(dims.split())}).")
        if prepared and (array.dtype, array.shape[-1]) != (prepared[0].dtype, prepared[0].shape[-1]):
            raise InputError(
                f"{name} of graph {graph} is {array.dtype} (..., {array.shape[-1]}); expected {prepared[0].dtype} "
                f"(..., {prepared[0].shape[-1]}), as in graph 0."
            )
        prepared.append(np.ascontiguousarray(array))
    return prepared
