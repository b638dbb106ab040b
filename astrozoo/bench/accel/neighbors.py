"""Pairs within a radius: a large cloud with some thirty neighbors for each point, and a batch of small ones."""

from __future__ import annotations

import math

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]


def _setup(positions: np.ndarray, radius: float, sizes: np.ndarray | None, threads: int) -> Setup:
    from scipy.spatial import cKDTree

    # Clouds that lie far apart along a fourth axis are one tree; distances within them are not touched by it.
    apart = np.zeros(len(positions)) if sizes is None else np.repeat(np.arange(len(sizes)) * 4 * radius, sizes)
    points = positions if sizes is None else np.column_stack((positions, apart))

    def with_scipy() -> tuple[np.ndarray, np.ndarray]:
        pairs = cKDTree(points).query_pairs(radius, output_type="ndarray")
        one, other = pairs.T
        apart = positions[one] - positions[other]
        distances = np.sqrt(np.einsum("ij,ij->i", apart, apart))
        edges = np.stack((np.concatenate((one, other)), np.concatenate((other, one))))
        return edges, np.concatenate((distances, distances))

    def difference(ours: accel.RadiusGraph, theirs: tuple[np.ndarray, np.ndarray]) -> float:
        edges, distances = theirs
        if edges.shape != ours.edges.shape:
            return math.inf
        order = np.lexsort(edges)
        if not np.array_equal(edges[:, order], ours.edges):
            return math.inf
        return float(np.max(np.abs(distances[order] - ours.distances)) / radius)

    edges = accel.radius_graph(positions, radius, sizes=sizes).edges.shape[1]
    return Setup(
        ours=lambda: accel.radius_graph(positions, radius, sizes=sizes, threads=threads),
        peers={
            "scipy": Peer(with_scipy, "scipy", target=2.5, difference=difference, why="its edges are left unsorted"),
        },
        floor=Floor(read=positions.nbytes, written=20 * edges),
        notes=[f"{edges} edges"],
    )


def _cloud(threads: int) -> Setup:
    positions = np.random.default_rng(0).random((50_000, 3), dtype=np.float32)
    return _setup(positions, float(np.cbrt(30 / 50_000 / (4 / 3 * np.pi))), None, threads)


def _batch(threads: int) -> Setup:
    positions = np.random.default_rng(0).random((256 * 60, 3), dtype=np.float32)
    return _setup(positions, 0.4, np.full(256, 60), threads)


CASES = [
    Case("radius_graph", "50,000 points with 30 neighbors, float32", _cloud, needs={"scipy": "scipy"}),
    Case("radius_graph", "256 clouds of 60 points, float32", _batch, needs={"scipy": "scipy"}),
]
