"""Statistics over cubes with missing values."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["NanStats", "nan_stats"]


class NanStats(NamedTuple):
    """Statistics of each group of values; NaN counts as missing.

    Attributes:
        count: Known values, int64.
        mean: Their mean, float64; NaN where none is known.
        std: Their population standard deviation (divided by the count), float64; NaN where none is known.
        min: The smallest, in the dtype of the values; NaN where none is known.
        max: The largest, likewise.
    """

    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray


def nan_stats(values: ArrayLike, *, axis: int | tuple[int, ...] | None = None, threads: int | None = None) -> NanStats:
    """Count, mean, standard deviation, minimum and maximum, in one pass over memory.

    `values[variable, time, lat, lon]` gives five arrays `[variable]`. Sums are kept in float64 and merged block by
    block (Chan, Golub and LeVeque 1979), so that float32 values with a large mean lose no digits.

    Args:
        values: Any shape, float32 or float64; other real numbers are converted. Infinities are values: they make the
            mean infinite or NaN, as in NumPy.
        axis: The dimensions that are reduced; default: all but the first.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        Arrays with the shape that remains.

    Raises:
        InputError: Not real numbers, or an axis that is not there or given twice.
    """
    array = floating("values", values)
    reduced = _axes(array.ndim, axis)
    kept = [i for i in range(array.ndim) if i not in reduced]
    shape = tuple(array.shape[i] for i in kept)
    # Most cubes reduce what stands before and behind the kept dimensions; that takes no copy.
    if kept and kept != list(range(kept[0], kept[-1] + 1)):
        array = np.moveaxis(array, kept, range(len(kept)))
        first = 0
    else:
        first = kept[0] if kept else 0
    outer, inner = math.prod(array.shape[:first]), math.prod(array.shape[first + len(kept) :])
    cube = np.ascontiguousarray(array).reshape(outer, math.prod(shape), inner)
    return NanStats(*(result.reshape(shape) for result in serve("nan_stats")(cube, workers(threads))))


@reference
def _nan_stats(values: np.ndarray, threads: int) -> tuple[np.ndarray, ...]:  # noqa: ARG001 - NumPy has one thread
    """Five arrays `[kept]` of `values[outer, kept, inner]`."""
    known = ~np.isnan(values)
    count = known.sum(axis=(0, 2))
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf, and 0 / 0 where nothing is known
        mean = np.where(known, values, 0.0).sum(axis=(0, 2), dtype=np.float64) / count
        deviation = np.where(known, values - mean[:, None], 0.0)
        std = np.sqrt(np.square(deviation).sum(axis=(0, 2)) / count)
    some = count > 0
    low = np.where(known, values, np.inf).min(axis=(0, 2), initial=np.inf)
    high = np.where(known, values, -np.inf).max(axis=(0, 2), initial=-np.inf)
    nan = values.dtype.type(np.nan)
    return (
        count,
        mean,
        std,
        np.where(some, low, nan).astype(values.dtype),
        np.where(some, high, nan).astype(values.dtype),
    )


def _axes(ndim: int, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(1, ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if any(not -ndim <= i < ndim for i in axes) or len({i % ndim for i in axes}) != len(axes):
        raise InputError(f"axis is {axis!r}; expected different dimensions from {-ndim} to {ndim - 1}.")
    return tuple(i % ndim for i in axes)
