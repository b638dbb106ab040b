"""Encodings of a batch of 256 graphs that look like molecules, as a loader makes them for a graph transformer."""

from __future__ import annotations

from typing import Any

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]

_GRAPHS = 256
_STEPS = 16
_VECTORS = 8


def _molecules(least: int, most: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """`edges`, `sizes`, and the edges of each graph by its own numbers: trees with a ring for about ten nodes."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(least, most + 1, _GRAPHS)
    graphs = []
    for size in sizes:
        child = np.arange(1, size)
        parent = child - 1 - generator.integers(0, np.minimum(child, 4))
        start = generator.choice(size - 6, size // 10, replace=False)
        one_way = np.stack((np.append(child, start), np.append(parent, start + generator.integers(4, 7, len(start)))))
        graphs.append(np.unique(np.concatenate((one_way, one_way[::-1]), axis=1), axis=1))
    first = np.cumsum(sizes) - sizes
    return np.concatenate([edges + start for edges, start in zip(graphs, first, strict=True)], axis=1), sizes, graphs


def _shortest_paths(least: int, most: int, threads: int) -> Setup:
    from scipy import sparse
    from scipy.sparse import csgraph

    edges, sizes, graphs = _molecules(least, most)
    room = int(sizes.max())
    nodes = np.append(0, np.cumsum(sizes))
    links = np.append(0, np.cumsum([graph.shape[1] for graph in graphs]))
    matrices = [
        sparse.csr_array((np.ones(graph.shape[1]), tuple(graph)), shape=(size, size))
        for graph, size in zip(graphs, sizes, strict=True)
    ]

    def with_scipy() -> np.ndarray:
        padded = np.full((_GRAPHS, room, room), -1, np.int32)
        for place, matrix in zip(padded, matrices, strict=True):
            hops = csgraph.shortest_path(matrix, method="D", unweighted=True)
            place[: len(hops), : len(hops)] = hops
        return padded

    with_numba = _floyd_warshall()
    return Setup(
        ours=lambda: accel.shortest_paths(edges, sizes, threads=threads),
        peers={
            "numba": Peer(
                lambda: with_numba(edges, links, nodes, room), "numba", target=6.0, difference=_largest, error=0,
                why="Floyd and Warshall's algorithm, compiled, parallel over the graphs",
            ),
            "scipy": Peer(with_scipy, "scipy", difference=_largest, error=0, why="graph by graph, matrices are ready"),
        },
        floor=Floor(read=edges.nbytes, written=4 * _GRAPHS * room**2),
    )  # fmt: skip


def _floyd_warshall() -> Any:
    import numba

    @numba.njit(parallel=True)
    def hops_of(edges, links, nodes, room):  # type: ignore[no-untyped-def]  # numba finds the types
        far = np.int32(1 << 29)
        padded = np.empty((len(nodes) - 1, room, room), np.int32)
        for graph in numba.prange(len(nodes) - 1):
            first, size = nodes[graph], nodes[graph + 1] - nodes[graph]
            hops = padded[graph]
            hops[:] = -1
            hops[:size, :size] = far
            for node in range(size):
                hops[node, node] = 0
            for link in range(links[graph], links[graph + 1]):
                hops[edges[0, link] - first, edges[1, link] - first] = 1
            for middle in range(size):
                for start in range(size):
                    before = hops[start, middle]
                    if before < far:
                        for end in range(size):
                            hops[start, end] = min(hops[start, end], before + hops[middle, end])
            for start in range(size):
                for end in range(size):
                    if hops[start, end] == far:
                        hops[start, end] = -1
        return padded

    return hops_of


def _random_walk_pe(threads: int) -> Setup:
    import torch
    from torch_geometric.data import Data
    from torch_geometric.transforms import AddRandomWalkPE

    edges, sizes, graphs = _molecules(20, 60)
    data = [
        Data(edge_index=torch.from_numpy(graph), num_nodes=int(size)) for graph, size in zip(graphs, sizes, strict=True)
    ]
    encode = AddRandomWalkPE(_STEPS)
    return Setup(
        ours=lambda: accel.random_walk_pe(edges, sizes, _STEPS, threads=threads),
        peers={
            "torch_geometric": Peer(
                lambda: torch.cat([encode(graph).random_walk_pe for graph in data]).numpy(), "torch_geometric",
                target=15.0, difference=_largest, error=1e-5, why="graph by graph, in float32",
            ),
        },
        floor=Floor(read=edges.nbytes, written=4 * _STEPS * int(sizes.sum())),
    )  # fmt: skip


def _laplacian_pe(threads: int) -> Setup:
    from scipy.linalg import eigh

    edges, sizes, graphs = _molecules(20, 60)

    def with_scipy() -> np.ndarray:
        return np.stack([
            eigh(_laplacian(graph, size), subset_by_index=(1, _VECTORS), check_finite=False, overwrite_a=True)[0]
            for graph, size in zip(graphs, sizes, strict=True)
        ])  # fmt: skip

    return Setup(
        ours=lambda: accel.laplacian_pe(edges, sizes, _VECTORS, threads=threads),
        peers={
            "scipy": Peer(
                with_scipy, "scipy", target=3.0, difference=lambda ours, theirs: _largest(ours.values, theirs),
                why="graph by graph; it computes vectors too, the values are compared, as signs and bases are free",
            ),
        },
        floor=Floor(read=edges.nbytes, written=4 * _VECTORS * int(sizes.sum())),
    )  # fmt: skip


def _laplacian(edges: np.ndarray, size: int) -> np.ndarray:
    scale = 1 / np.sqrt(np.bincount(edges[0], minlength=size))
    matrix = np.eye(size)
    matrix[edges[0], edges[1]] = -scale[edges[0]] * scale[edges[1]]
    return matrix


def _largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max())


CASES = [
    Case(
        "shortest_paths", f"{_GRAPHS} graphs of 20 to 60 nodes", lambda threads: _shortest_paths(20, 60, threads),
        needs={"numba": "numba", "scipy": "scipy"},
    ),
    Case(
        "shortest_paths", f"{_GRAPHS} graphs of 100 to 200 nodes", lambda threads: _shortest_paths(100, 200, threads),
        needs={"numba": "numba", "scipy": "scipy"},
    ),
    Case(
        "random_walk_pe", f"{_GRAPHS} graphs of 20 to 60 nodes, {_STEPS} steps", _random_walk_pe,
        needs={"torch_geometric": "torch_geometric"},
    ),
    Case(
        "laplacian_pe", f"{_GRAPHS} graphs of 20 to 60 nodes, {_VECTORS} vectors", _laplacian_pe,
        needs={"scipy": "scipy"},
    ),
]  # fmt: skip
