"""Batches of small graphs out of a data set of 20,000, as a loader makes them for every step of training."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]

_GRAPHS = 20_000


def _store() -> accel.GraphStore:
    """20 to 60 nodes with 16 features, 2.2 bonds for each, both ways, with 4 features; three targets for each graph."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(20, 61, _GRAPHS)
    ends = np.round(4.4 * sizes).astype(np.int64)
    node_starts, edge_starts = (np.cumsum(np.append(0, counts)) for counts in (sizes, ends))
    room = np.repeat(sizes, ends)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    edges = (generator.random((2, edge_starts[-1])) * room).astype(np.int64)
    x, edge_attr, y = normal(node_starts[-1], 16), normal(edge_starts[-1], 4), normal(_GRAPHS, 3)
    return accel.GraphStore(x, node_starts, edges, edge_starts, edge_attr, y=y)


def _setup(count: int, threads: int) -> Setup:
    store = _store()
    generator = np.random.default_rng(1)
    # The loader shuffles: every batch takes other graphs, which no cache holds.
    draws = [generator.integers(0, _GRAPHS, count) for _ in range(max(8, 4096 // count))]
    ours, theirs, sliced, listed = (cycle(draws) for _ in range(4))

    def difference(mine: accel.CollatedGraphs, other: accel.CollatedGraphs) -> float:
        pairs = zip(mine, other, strict=True)
        return max(float(np.max(np.abs(one - two))) for one, two in pairs if one is not None)

    def with_numpy() -> accel.CollatedGraphs:
        """Vectorised: rows of all graphs by fancy indexing."""
        with accel.using("numpy"):
            return accel.collate_graphs(store, next(theirs))

    peers = {
        "numpy": Peer(with_numpy, "numpy", target=5.0, difference=difference, error=0.0),
        "numpy concatenate": Peer(
            lambda: _concatenated(store, next(sliced)), "numpy", difference=difference, error=0.0,
            why="it joins slices of the same flat arrays, one for each graph",
        ),
    }  # fmt: skip
    try:
        import torch
        from torch_geometric.data import Batch, Data
    except ModuleNotFoundError:  # the note about it comes from the case
        pass
    else:
        data = [_data(store, graph, torch, Data) for graph in range(_GRAPHS)]

        def same(mine: accel.CollatedGraphs, other: Any) -> float:
            arrays = (*(other[name].numpy() for name in ("x", "edge_index", "edge_attr", "y", "batch")),)
            parts = (mine.x, mine.edges, mine.edge_attr, mine.y, mine.batch)
            return max(float(np.max(np.abs(one - two))) for one, two in zip(parts, arrays, strict=True))

        peers["torch_geometric"] = Peer(
            lambda: Batch.from_data_list([data[graph] for graph in next(listed)]), "torch_geometric", difference=same,
            error=0.0, why="it also keeps what is needed to take the batch apart",
        )  # fmt: skip
    nodes, edges = store.x.nbytes + 8 * len(store.x), store.edges.nbytes + store.edge_attr.nbytes  # type: ignore[union-attr]
    size = round((nodes + edges) * count / _GRAPHS)
    return Setup(
        ours=lambda: accel.collate_graphs(store, next(ours), threads=threads),
        peers=peers,
        floor=Floor(read=size, written=size),
        notes=[f"{size / 1e6:.3g} MB"],
        calls=max(1, 2048 // count),
    )


def _concatenated(store: accel.GraphStore, indices: np.ndarray) -> accel.CollatedGraphs:
    """As one writes it by hand: slices of each graph in a loop, joined."""
    assert store.edge_attr is not None
    assert store.y is not None
    x, edges, edge_attr, sizes, first = [], [], [], [], 0
    for graph in indices.tolist():
        nodes, links = (slice(*starts[graph : graph + 2]) for starts in (store.node_starts, store.edge_starts))
        x.append(store.x[nodes])
        edges.append(store.edges[:, links] + first)
        edge_attr.append(store.edge_attr[links])
        sizes.append(len(x[-1]))
        first += sizes[-1]
    batch = np.repeat(np.arange(len(sizes)), sizes)
    joined = np.concatenate(x), np.concatenate(edges, axis=1), np.concatenate(edge_attr)
    return accel.CollatedGraphs(*joined, None, store.y[indices], batch, np.array(sizes))


def _data(store: accel.GraphStore, graph: int, torch: Any, data: Any) -> Any:
    nodes, edges = (slice(*starts[graph : graph + 2]) for starts in (store.node_starts, store.edge_starts))
    parts = {"x": store.x[nodes], "edge_index": store.edges[:, edges]}
    parts |= {"edge_attr": store.edge_attr[edges], "y": store.y[graph][None]}  # type: ignore[index]  # `_store` sets them
    return data(**{name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()})


CASES = [
    Case(
        "collate_graphs", f"{count:,} of 20,000 graphs of 20 to 60 nodes, float32", partial(_setup, count),
        needs={"torch_geometric": "torch_geometric"},
    )
    for count in (256, 2048)
]  # fmt: skip
