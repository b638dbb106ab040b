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

__all__ = ["NanStats", "nan_stats", "quantiles"]


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
    cube, shape = _grouped(values, axis)
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


def quantiles(
    values: ArrayLike,
    q: ArrayLike,
    *,
    axis: int | tuple[int, ...] | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Exact quantiles that count NaN as missing, linear between the two nearest ranks.

    `values[variable, time, lat, lon]` and three quantiles give `[3, variable]`. This is NumPy's method "linear"
    (Hyndman and Fan 1996, type 7) of the known values, in float64.

    Args:
        values: Any shape, float32 or float64; other real numbers are converted. Infinities are values: a quantile
            beside one is infinite, and NaN between the two of them.
        q: Between 0 and 1: one number, or `[quantile]`.
        axis: The dimensions that are reduced; default: all but the first.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        float64, `[quantile, ...]` with the shape that remains, without the first dimension where `q` is one number; NaN
        where nothing is known.

    Raises:
        InputError: Not real numbers, a quantile outside 0 to 1, or an axis that is not there or given twice.
    """
    wanted = floating("q", q).astype(np.float64)
    if wanted.ndim > 1 or not np.all((wanted >= 0) & (wanted <= 1)):
        raise InputError(f"q is {q!r}; expected one number, or a list of numbers, between 0 and 1.")
    cube, shape = _grouped(values, axis)
    found: np.ndarray = serve("quantiles")(cube, np.atleast_1d(wanted), workers(threads))
    return found.reshape(wanted.shape + shape)


@reference
def _quantiles(values: np.ndarray, q: np.ndarray, threads: int) -> np.ndarray:  # noqa: ARG001 - NumPy has one thread
    """Quantiles `[q, kept]` of `values[outer, kept, inner]`."""
    outer, kept, inner = values.shape
    ordered = np.sort(np.moveaxis(values, 1, 0).reshape(kept, outer * inner), axis=1)  # NaN stands at the end
    count = (~np.isnan(ordered)).sum(axis=1)
    if ordered.shape[1] == 0:
        return np.full((len(q), len(count)), np.nan)
    place = q[:, None] * np.maximum(count - 1, 0)
    rank = np.floor(place).astype(np.int64)
    low, high = (
        np.take_along_axis(ordered, np.minimum(at, np.maximum(count - 1, 0)).T, axis=1).T.astype(np.float64)
        for at in (rank, rank + 1)
    )
    share = place - rank
    with np.errstate(invalid="ignore"):
        step = high - low
        found = np.where(share >= 0.5, high - step * (1.0 - share), low + step * share)
        found = np.where(np.isinf(step), low + high, found)
    return np.where((low == high) | (share == 0.0), low, found)


def _grouped(values: ArrayLike, axis: int | tuple[int, ...] | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """C-contiguous `[outer, kept, inner]`, of which the first and the last are reduced; the shape of the kept ones."""
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
    return np.ascontiguousarray(array).reshape(outer, math.prod(shape), inner), shape


def _axes(ndim: int, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(1, ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if any(not -ndim <= i < ndim for i in axes) or len({i % ndim for i in axes}) != len(axes):
        raise InputError(f"axis is {axis!r}; expected different dimensions from {-ndim} to {ndim - 1}.")
    return tuple(i % ndim for i in axes)
