"""Which points lie near each other."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating, runs, whole
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["RadiusGraph", "radius_graph"]

_LARGEST = 1e150  # squares, and sums of three, are finite
_LEAST = 1e-150  # squares of less are zero, or nearly
_MARGIN = 1e-4  # cells are wider than the radius by this part: far more than rounding does to cell numbers
_CANDIDATES = 1 << 21  # pairs that the reference looks at together


class RadiusGraph(NamedTuple):
    """Pairs of points within a radius.

    Attributes:
        edges: int64 `[2, edge]`: the neighbor (source), and the point whose neighbor it is (target).
        distances: `[edge]`, in the dtype of the positions.
    """

    edges: np.ndarray
    distances: np.ndarray


def radius_graph(
    positions: ArrayLike,
    radius: float,
    *,
    sizes: ArrayLike | None = None,
    loop: bool = False,
    max_neighbors: int | None = None,
    threads: int | None = None,
) -> RadiusGraph:
    """All ordered pairs of points that are at most `radius` apart, sorted by target, then source.

    An edge is there where `dx * dx + dy * dy + dz * dz <= radius * radius`, computed in float64 in this order: the ball
    is closed, and both directions of a pair are there or none is (but for `max_neighbors`). The order of edges is that
    of `radius_graph` of PyTorch Geometric with `flow="source_to_target"`.

    Points are put into cells about as wide as the radius (cell lists: Hockney and Eastwood, Computer Simulation Using
    Particles, 1981), so time and memory follow the number of points and edges, not the volume they lie in.

    Args:
        positions: `[point, coordinate]` with one to three coordinates, float32 or float64, in any unit.
        radius: Largest distance, in the same unit.
        sizes: `[graph]`, points of each of several clouds that lie one after the other; no edge leads from one to
            another. Default: one cloud.
        loop: Whether every point is its own neighbor, at distance 0.
        max_neighbors: Keep the nearest of each target, itself included with `loop`; of equally near ones those with the
            lowest number. Default: all.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        Edges and their lengths.

    Raises:
        InputError: Positions that are not real numbers, not finite or above 1e150, or have other dimensions; sizes that
            do not add up to the points; a radius that is negative, not finite or above 1e150; fewer than one neighbor.
    """
    array = floating("positions", positions, dims="point coordinate")
    if not 1 <= array.shape[1] <= 3:
        raise InputError(f"positions has shape {array.shape}; expected one to three coordinates.")
    if array.size and not float(np.abs(array).max()) <= _LARGEST:
        point = int(np.argmin((np.abs(array.astype(np.float64)) <= _LARGEST).all(axis=1)))
        raise InputError(f"positions[{point}] is {array[point].tolist()}; expected finite numbers up to {_LARGEST:g}.")
    if array.shape[1] < 3:
        array = np.pad(array, ((0, 0), (0, 3 - array.shape[1])))
    if not 0 <= float(radius) <= _LARGEST:
        raise InputError(f"radius is {radius!r}; expected a number from 0 to {_LARGEST:g}.")
    most = len(array) if max_neighbors is None else operator.index(max_neighbors)
    if max_neighbors is not None and most < 1:
        raise InputError(f"max_neighbors is {max_neighbors!r}; expected a number of at least 1, or None for all.")
    clouds = _sizes(sizes, len(array))
    arguments = np.ascontiguousarray(array), clouds, float(radius), bool(loop), most
    return RadiusGraph(*serve("radius_graph")(*arguments, workers(threads)))


@reference
def _radius_graph(
    positions: np.ndarray,
    sizes: np.ndarray,
    radius: float,
    loop: bool,
    most: int,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> tuple[np.ndarray, np.ndarray]:
    """Edges and distances of `positions[point, 3]`, at most `most` for each target."""
    points = positions.astype(np.float64)
    square = radius * radius
    found = []
    for target, source in _candidates(points, sizes, radius):
        x, y, z = (points[source] - points[target]).T
        squares = x * x + y * y + z * z
        near = squares <= square if loop else (squares <= square) & (source != target)
        found.append((target[near], source[near], squares[near]))
    none = np.empty(0, np.int64)
    target, source, squares = (np.concatenate(parts) for parts in zip((none, none, np.empty(0)), *found, strict=True))
    if most < len(points):
        order = np.lexsort((source, squares, target))
        target, source, squares = target[order], source[order], squares[order]
        kept = np.arange(len(target)) - np.searchsorted(target, target) < most
        target, source, squares = target[kept], source[kept], squares[kept]
    order = np.lexsort((source, target))
    return np.stack((source[order], target[order])), np.sqrt(squares[order]).astype(positions.dtype)


def _candidates(points: np.ndarray, sizes: np.ndarray, radius: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Targets and sources that lie in the same or in adjacent cells of the same cloud, a part at a time."""
    if len(points) == 0:
        return
    cloud = np.repeat(np.arange(len(sizes)), sizes)
    low = points.min(axis=0)
    extent = points.max(axis=0) - low
    # A number for every cell there could be, in 62 bits; one more cell on each side keeps neighbors from wrapping.
    most = math.floor((2.0**62 / len(sizes)) ** (1 / 3)) - 4
    width = np.maximum(max(radius, _LEAST) * (1 + _MARGIN), extent / most)
    cells = ((points - low) / width).astype(np.int64) + 1
    across, along = (int(cells[:, axis].max()) + 2 for axis in (1, 2))
    down = int(cells[:, 0].max()) + 2
    key = ((cloud * down + cells[:, 0]) * across + cells[:, 1]) * along + cells[:, 2]
    order = np.argsort(key, kind="stable")
    keys = key[order]
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            middle = keys + (i * across + j) * along
            begin, end = np.searchsorted(keys, middle - 1), np.searchsorted(keys, middle + 1, side="right")
            yield from _pairs(order, begin, end)


def _pairs(order: np.ndarray, begin: np.ndarray, end: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each point of `order` with those from `begin` to `end` of it."""
    counts = end - begin
    total = np.cumsum(counts)
    first = 0
    while first < len(order):
        before = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, before + _CANDIDATES, side="right")))
        part = counts[first:last]
        yield np.repeat(order[first:last], part), order[runs(begin[first:last], part)]
        first = last


def _sizes(sizes: ArrayLike | None, points: int) -> np.ndarray:
    if sizes is None:
        return np.array([points])
    array = whole("sizes", sizes, "graph")
    if (array < 0).any() or array.sum() != points:
        raise InputError(f"sizes are {array.tolist()[:10]}, {array.sum()} points in all; expected {points} in all.")
    return array
