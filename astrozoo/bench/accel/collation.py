"""Batches of small graphs, as a loader makes them for every step of training."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]


def _graphs(count: int) -> dict[str, list[np.ndarray]]:
    """20 to 60 nodes with 16 features, four edges for each with 4 features, three targets for each graph."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(20, 61, count)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    return {
        "x": [normal(nodes, 16) for nodes in sizes],
        "edges": [generator.integers(0, nodes, (2, 4 * nodes)) for nodes in sizes],
        "edge_attr": [normal(4 * nodes, 4) for nodes in sizes],
        "y": [normal(3) for _ in sizes],
    }


def _with_numpy(x: list[Any], edges: list[Any], edge_attr: list[Any], y: list[Any]) -> tuple[np.ndarray, ...]:
    sizes = np.fromiter(map(len, x), np.int64, len(x))
    ends = np.fromiter((pairs.shape[1] for pairs in edges), np.int64, len(edges))
    shifted = np.concatenate(edges, axis=1)
    shifted += np.repeat(np.cumsum(sizes) - sizes, ends)
    batch = np.repeat(np.arange(len(sizes)), sizes)
    return np.concatenate(x), shifted, np.concatenate(edge_attr), np.array(y), batch, sizes


def _setup(count: int, threads: int) -> Setup:
    graphs = _graphs(count)

    def difference(ours: accel.CollatedGraphs, theirs: tuple[np.ndarray, ...]) -> float:
        mine = [part for part in ours if part is not None]
        return max(float(np.max(np.abs(one - other))) for one, other in zip(mine, theirs, strict=True))

    peers = {
        "numpy": Peer(
            lambda: _with_numpy(**graphs), "numpy", target=5.0, difference=difference, error=0.0,
            why="it does not check where edges lead",
        ),
    }  # fmt: skip
    try:
        import torch
        from torch_geometric.data import Batch, Data
    except ModuleNotFoundError:  # the note about it comes from the case
        pass
    else:
        tensors = {name: [torch.from_numpy(array) for array in arrays] for name, arrays in graphs.items()}
        data = [
            Data(x=x, edge_index=edges, edge_attr=edge_attr, y=y[None])
            for x, edges, edge_attr, y in zip(*tensors.values(), strict=True)
        ]

        def same(ours: accel.CollatedGraphs, theirs: Any) -> float:
            names = ("x", "edge_index", "edge_attr", "y", "batch")
            return difference(ours, (*(theirs[name].numpy() for name in names), np.diff(theirs.ptr.numpy())))

        peers["torch_geometric"] = Peer(
            lambda: Batch.from_data_list(data), "torch_geometric", difference=same, error=0.0,
            why="it also keeps what is needed to take the batch apart",
        )  # fmt: skip
    size = sum(array.nbytes for arrays in graphs.values() for array in arrays)
    owners = 8 * sum(map(len, graphs["x"]))
    return Setup(
        ours=lambda: accel.collate_graphs(**graphs, threads=threads),
        peers=peers,
        floor=Floor(read=size, written=size + owners),
        notes=[f"{size / 1e6:.3g} MB"],
        calls=max(1, 2048 // count),
    )


CASES = [
    Case(
        "collate_graphs", f"{count:,} graphs of 20 to 60 nodes, float32", partial(_setup, count),
        needs={"torch_geometric": "torch_geometric"},
    )
    for count in (256, 2048)
]  # fmt: skip
