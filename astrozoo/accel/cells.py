"""Cells of rectilinear latitude-longitude grids, and how much of a target cell each source cell covers.

The area of a cell on the sphere is a difference of sines of latitude times a difference of longitudes, so overlaps of
two grids are products of overlaps along the two axes: two small lists instead of one for all pairs of cells.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.errors import InputError

__all__ = ["Overlaps", "latitude_overlaps", "longitude_overlaps"]

_SLIVER = 1e-10  # of a target cell: an overlap below this is rounding
_CIRCLE = 360.0


class Overlaps(NamedTuple):
    """Which source cells cover a target cell: a run of neighbours, around the circle in longitude.

    Attributes:
        first: `[target]`, int64: the first source cell of the run.
        start: `[target + 1]`, int64: where the weights of each run begin; the last entry is their number.
        weights: Shares of the target cell that the source cells cover, float64; a covered cell's sum to 1.
    """

    first: np.ndarray
    start: np.ndarray
    weights: np.ndarray


def latitude_overlaps(source: ArrayLike, target: ArrayLike) -> Overlaps:
    """Overlaps of rows of cells, as differences of the sine of latitude.

    Args:
        source: Centres `[lat]` or bounds `[lat, 2]` in degrees north, ascending or descending.
        target: Likewise.

    Raises:
        InputError: Values that do not describe rows of cells; the message says which axis and why.
    """
    return _latitude_overlaps(_key("source_lat", source), _key("target_lat", target))


def longitude_overlaps(source: ArrayLike, target: ArrayLike) -> Overlaps:
    """Overlaps of columns of cells.

    Args:
        source: Centres `[lon]` or bounds `[lon, 2]` in degrees east: any origin, eastward or westward.
        target: Likewise.

    Raises:
        InputError: Values that do not describe columns of cells; the message says which axis and why.
    """
    return _longitude_overlaps(_key("source_lon", source), _key("target_lon", target))


class _Axis(NamedTuple):
    """An axis by its bytes, which can be looked up in a cache."""

    name: str
    shape: tuple[int, ...]
    content: bytes

    def values(self) -> np.ndarray:
        return np.frombuffer(self.content).reshape(self.shape)


def _key(name: str, axis: ArrayLike) -> _Axis:
    values = np.asarray(axis)
    if values.dtype.kind not in "fiu" or not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 2)):
        raise InputError(
            f"{name} has shape {values.shape} and dtype {values.dtype}; expected centres [n] or bounds [n, 2] of cells "
            "in degrees (of edges [n + 1]: np.stack([edges[:-1], edges[1:]], axis=1))."
        )
    values = np.ascontiguousarray(values, dtype=np.float64)
    return _Axis(name, values.shape, values.tobytes())


@lru_cache(maxsize=64)
def _latitude_overlaps(source: _Axis, target: _Axis) -> Overlaps:
    low, high = _rows(source)
    return _overlaps(low, high, *_rows(target), len(low), period=None)


@lru_cache(maxsize=64)
def _longitude_overlaps(source: _Axis, target: _Axis) -> Overlaps:
    low, high = _columns(source)
    return _overlaps(low, high, *_columns(target), len(low), period=_CIRCLE)


def _overlaps(
    low: np.ndarray, high: np.ndarray, to_low: np.ndarray, to_high: np.ndarray, size: int, period: float | None
) -> Overlaps:
    """Overlaps of cells whose bounds ascend or descend along the axis."""
    width = to_high - to_low
    reverse = low[0] > low[-1]
    if reverse:
        low, high = low[::-1], high[::-1]
    if period is not None:
        # A target cell starts within one turn behind the first source cell, so it ends within two.
        to_low = low[0] + np.mod(to_low - low[0], period)
        to_high = to_low + width
        low, high = np.concatenate([low, low + period]), np.concatenate([high, high + period])
    first = np.searchsorted(high, to_low + _SLIVER * width, side="right")
    count = np.maximum(np.searchsorted(low, to_high - _SLIVER * width, side="left") - first, 0)
    start = np.concatenate([[0], np.cumsum(count)])
    owner = np.repeat(np.arange(len(to_low)), count)
    offset = np.arange(start[-1]) - start[owner]
    if reverse:
        offset = count[owner] - 1 - offset
    cell = first[owner] + offset
    covered = np.minimum(high[cell], to_high[owner]) - np.maximum(low[cell], to_low[owner])
    if reverse:
        first = size - first - count
    overlaps = Overlaps(np.mod(first, size).astype(np.int64), start.astype(np.int64), covered / width[owner])
    for part in overlaps:
        part.flags.writeable = False  # they are shared by all who ask for these axes
    return overlaps


def _rows(axis: _Axis) -> tuple[np.ndarray, np.ndarray]:
    """Sines of the lower and of the upper bounds, in the order of the axis."""
    values = _finite(axis)
    if np.any(np.abs(values) > 90.001):
        raise InputError(f"{axis.name} reaches {_largest(values):g}; expected degrees north, from -90 to 90.")
    if values.ndim == 1:
        step = _steps(axis, np.diff(values))
        edges = _edges(values, step, step[0], step[-1])
        up = np.sign(step[0])
        # The outermost row of a Gaussian grid reaches the pole, further than half a spacing.
        for end, pole, spacing in ((0, -90.0 * up, step[0]), (-1, 90.0 * up, step[-1])):
            if abs(pole - values[end]) < 0.999 * abs(spacing):
                edges[end] = pole
        low, high = _sorted_ends(edges[:-1], edges[1:])
    else:
        low, high = values.min(axis=1), values.max(axis=1)
        _steps(axis, np.diff(low)), _steps(axis, np.diff(high))
    low, high = (np.sin(np.deg2rad(np.clip(end, -90.0, 90.0))) for end in (low, high))
    if not np.all(low < high):
        raise InputError(f"{axis.name} has cells without area.")
    return low, high


def _columns(axis: _Axis) -> tuple[np.ndarray, np.ndarray]:
    """Western and eastern bounds, in the order of the axis, without a seam."""
    values = _finite(axis)
    if values.ndim == 1:
        step = _steps(axis, _turns(values))
        gap = _CIRCLE - abs(step.sum())
        typical = np.median(np.abs(step))
        if gap < 1e-3 * typical:
            raise InputError(
                f"{axis.name} runs from {values[0]:g} to {values[-1]:g}, more than once around the circle; leave out "
                "the columns that are given twice."
            )
        closed = gap < 1.5 * typical  # around the globe: the last column neighbours the first
        ends = [min(abs(end), gap) for end in (step[0], step[-1])]
        before, after = (gap, gap) if closed else ends
        sign = np.sign(step[0])
        edges = _edges(values[0] + np.concatenate([[0.0], np.cumsum(step)]), step, sign * before, sign * after)
        if closed:
            edges[-1] = edges[0] + sign * _CIRCLE
        low, high = _sorted_ends(edges[:-1], edges[1:])
    else:
        width = np.abs(values[:, 1] - values[:, 0])
        centre = values.mean(axis=1)
        if len(values) > 1:  # bounds 359.5 and 0.5 mean the cell between them
            centre = np.where(width > 180.0, centre + 180.0, centre)
            width = np.where(width > 180.0, _CIRCLE - width, width)
        step = _steps(axis, _turns(centre))
        centre = centre[0] + np.concatenate([[0.0], np.cumsum(step)])
        low, high = centre - width / 2, centre + width / 2
        _steps(axis, np.diff(low)), _steps(axis, np.diff(high))
    if not np.all(low < high) or max(high[0], high[-1]) - min(low[0], low[-1]) > _CIRCLE * (1 + 1e-6):
        raise InputError(f"{axis.name} has cells without width, or cells that reach more than once around the circle.")
    return low, high


def _edges(centres: np.ndarray, step: np.ndarray, before: float, after: float) -> np.ndarray:
    """Midpoints, and half a spacing beyond both ends."""
    middle = centres[:-1] + step / 2
    return np.concatenate([[centres[0] - before / 2], middle, [centres[-1] + after / 2]])


def _sorted_ends(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.minimum(one, other), np.maximum(one, other)


def _turns(values: np.ndarray) -> np.ndarray:
    """Steps between longitudes, the short way round."""
    return 180.0 - np.mod(180.0 - np.diff(values), _CIRCLE)


def _steps(axis: _Axis, step: np.ndarray) -> np.ndarray:
    if not (np.all(step > 0) or np.all(step < 0)):
        raise InputError(f"{axis.name} is neither strictly ascending nor strictly descending.")
    return step


def _finite(axis: _Axis) -> np.ndarray:
    values = axis.values()
    least = 2 if values.ndim == 1 else 1
    if len(values) < least:
        raise InputError(f"{axis.name} has {len(values)} cells; expected at least two centres, or bounds [n, 2].")
    if not np.isfinite(values).all():
        raise InputError(f"{axis.name} holds NaN or infinity.")
    return values


def _largest(values: np.ndarray) -> float:
    return float(values.flat[np.abs(values).argmax()])
