"""Graphs as samples: one object for each, and batches of many as one large graph.

    graphs = GraphDataset([connect(positions, radius=5.0, y=energy) for positions, energy in molecules])
    loader = DataLoader(graphs, batch_size=256, shuffle=True, collate_fn=collate_graphs)
    for batch in loader:
        x, edges = batch.inputs["x"], batch.inputs["edges"]
        geometry = graph_geometry(batch)          # for the attention `graph`

Arrays are NumPy's or PyTorch's on the CPU; nothing is copied that has the right type already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from astrozoo import accel
from astrozoo.accel.arrays import floating, numbers
from astrozoo.attention import Graph as Geometry
from astrozoo.batch import Batch
from astrozoo.errors import InputError

__all__ = ["Graph", "GraphDataset", "collate_graphs", "connect", "graph_geometry"]


@dataclass(frozen=True, eq=False, slots=True)
class Graph:
    """Nodes with features, and edges between them; NumPy arrays, whatever it was made from.

    Attributes:
        x: `[node, feature]`: float32, float64 or int64.
        edges: int64 `[2, edge]`: source and target of each edge, by node number.
        edge_attr: `[edge, feature]`, or None.
        y: `[target]`, what is known of the whole graph; a number becomes one target. Or None.
        positions: `[node, coordinate]`, or None.
    """

    x: Any
    edges: Any
    edge_attr: Any = None
    y: Any = None
    positions: Any = None

    def __post_init__(self) -> None:
        x = _array("x", self.x, "node feature")
        edges = np.asarray(self.edges)
        if edges.dtype.kind not in "iu" or edges.ndim != 2 or len(edges) != 2:
            raise InputError(f"Graph.edges is {edges.dtype} {edges.shape}; expected int64 (2, edge).")
        edges = np.ascontiguousarray(edges, dtype=np.int64)
        if edges.size and not (edges.min() >= 0 and edges.max() < len(x)):
            raise InputError(
                f"Graph.edges lead to nodes from {edges.min()} to {edges.max()}; expected 0 to {len(x) - 1}: "
                f"x has {len(x)} nodes."
            )
        y = None if self.y is None else _array("y", np.atleast_1d(np.asarray(self.y)), "target")
        edge_attr = self._of("edge_attr", "edge feature", edges.shape[1])
        positions = self._of("positions", "node coordinate", len(x))
        parts = {"x": x, "edges": edges, "edge_attr": edge_attr, "y": y, "positions": positions}
        for name, array in parts.items():
            object.__setattr__(self, name, array)

    def _of(self, name: str, dims: str, count: int) -> np.ndarray | None:
        """An array with a row for each node or edge, or None."""
        if (values := getattr(self, name)) is None:
            return None
        array = _array(name, values, dims)
        if len(array) != count:
            raise InputError(f"Graph.{name} has {len(array)} rows; expected one for each {dims.split()[0]}: {count}.")
        return array

    def __len__(self) -> int:
        return len(self.x)


def connect(
    positions: Any,
    radius: float,
    *,
    x: Any = None,
    y: Any = None,
    loop: bool = False,
    max_neighbors: int | None = None,
    threads: int | None = None,
) -> Graph:
    """The graph of a cloud of points: edges between points within `radius`, with their distance as the only feature.

    Turning, mirroring or moving the cloud changes no edge, but for pairs that are `radius` apart to the last digits.

    Args:
        positions: `[node, coordinate]` with one to three coordinates.
        radius: Largest distance of an edge, in the unit of the positions.
        x: `[node, feature]`; by default one feature that is 1.
        y: `[target]`.
        loop: Whether every node has an edge to itself.
        max_neighbors: Edges of each target, the shortest; default: all.
        threads: See `astrozoo.accel.threads.workers`.

    Raises:
        InputError: As `accel.radius_graph` and `Graph`.
    """
    places = floating("positions", np.asarray(positions), dims="node coordinate")
    edges, distances = accel.radius_graph(places, radius, loop=loop, max_neighbors=max_neighbors, threads=threads)
    features = np.ones((len(places), 1), places.dtype) if x is None else x
    return Graph(features, edges, distances[:, None], y, places)


class GraphDataset(Dataset[Graph]):
    """Graphs in a few flat arrays, out of which a loader takes whole batches at once.

    `dataset[i]` is one `Graph`. A DataLoader calls `__getitems__`, which gives the `Batch`; pass
    `collate_fn=collate_graphs`, which takes either.

    Args:
        graphs: Graphs of one kind, or the store that holds them.

    Attributes:
        store: The flat arrays.

    Raises:
        InputError: No graphs, some with a part that others lack, or parts that differ in dtype or number of columns.
    """

    def __init__(self, graphs: Sequence[Graph] | accel.GraphStore) -> None:
        self.store = graphs if isinstance(graphs, accel.GraphStore) else _store(graphs)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Graph:
        if not -len(self) <= index < len(self):
            raise IndexError(f"graph {index} of {len(self)}")
        one = accel.collate_graphs(self.store, [index % len(self)])
        return Graph(one.x, one.edges, one.edge_attr, None if one.y is None else one.y[0], one.positions)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return _batch(accel.collate_graphs(self.store, indices))


def collate_graphs(graphs: Sequence[Graph] | Batch) -> Batch:
    """Graphs as the parts of one large graph, in tensors: a `collate_fn` for `torch.utils.data.DataLoader`.

    The batch has the inputs `sizes` int64 `[graph]`, `x` `[node, feature]`, `edges` int64 `[2, edge]` (numbered over
    all nodes), `batch` int64 `[node]` (the graph of each node), and `edge_attr` and `positions` where the graphs have
    them; the target `y` `[graph, target]`. `len(batch)` is the number of graphs. What a `GraphDataset` has gathered is
    a batch already.

    Raises:
        InputError: No graphs, some with a part that others lack, or parts that differ in dtype or number of columns.
    """
    return graphs if isinstance(graphs, Batch) else _batch(accel.collate_graphs(_store(graphs)))


def graph_geometry(batch: Batch) -> Geometry:
    """The graphs of a batch as the attention `graph` takes them, with `x[None]`: one sequence of all nodes."""
    inputs = batch.inputs
    return Geometry(inputs["edges"], node_graph=inputs["batch"][None], edge_features=inputs.get("edge_attr"))


def _array(name: str, values: Any, dims: str) -> np.ndarray:
    return numbers(f"Graph.{name}", values.detach() if isinstance(values, torch.Tensor) else values, dims)


def _store(graphs: Sequence[Graph]) -> accel.GraphStore:
    if not graphs:
        raise InputError("graphs is empty; expected at least one graph.")
    lists: dict[str, Any] = {}
    for name in ("edge_attr", "positions", "y"):
        part = [getattr(graph, name) for graph in graphs]
        missing = [values is None for values in part]
        if any(missing) and not all(missing):
            without, having = missing.index(True), missing.index(False)
            raise InputError(
                f"graph {without} has no {name}, graph {having} has; expected all graphs to have it, or none."
            )
        lists[name] = None if missing[0] else part
    return accel.GraphStore.of([graph.x for graph in graphs], [graph.edges for graph in graphs], **lists)


def _batch(whole: accel.CollatedGraphs) -> Batch:
    tensors = {name: torch.from_numpy(part) for name, part in whole._asdict().items() if part is not None}
    names = [name for name in ("sizes", "x", "edges", "batch", "edge_attr", "positions") if name in tensors]
    return Batch({name: tensors[name] for name in names}, {"y": tensors["y"]} if "y" in tensors else {})
