"""Missing values along time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["fill_gaps"]


def fill_gaps(
    values: ArrayLike,
    *,
    axis: int = 0,
    times: ArrayLike | None = None,
    max_gap: float | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Fill NaN on the straight line between the known values before and after it.

    What comes before the first known value and after the last stays NaN, as in `xarray.DataArray.interpolate_na`.

    Args:
        values: Any shape with a dimension of time, float32 or float64; other real numbers are converted. Not modified.
        axis: The dimension of time.
        times: `[time]`, finite and increasing, in any unit; default: 0, 1, 2, ...
        max_gap: The longest gap that is filled, in the unit of `times`, measured from the known value before it to the
            one after; default: any.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        A new array of the same shape. Values are computed in float64 and rounded to the dtype of the input.

    Raises:
        InputError: Not real numbers, times that do not increase or do not fit, an axis that is not there, or a
            `max_gap` that is negative or NaN.
    """
    array = floating("values", values)
    if not -array.ndim <= axis < array.ndim:
        raise InputError(f"axis is {axis}; expected a dimension of values with shape {array.shape}.")
    axis %= array.ndim
    length = array.shape[axis]
    clock = np.arange(length, dtype=np.float64) if times is None else floating("times", times).astype(np.float64)
    if clock.shape != (length,) or not np.isfinite(clock).all() or not np.all(np.diff(clock) > 0):
        raise InputError(f"times has shape {clock.shape}; expected {length} finite numbers that increase.")
    longest = math.inf if max_gap is None else float(max_gap)
    if not longest >= 0:
        raise InputError(f"max_gap is {max_gap}; expected a length of time of at least 0.")
    outer, inner = math.prod(array.shape[:axis]), math.prod(array.shape[axis + 1 :])
    cube = np.ascontiguousarray(array).reshape(outer, length, inner)
    filled: np.ndarray = serve("fill_gaps")(cube, np.ascontiguousarray(clock), longest, workers(threads))
    return filled.reshape(array.shape)


@reference
def _fill_gaps(values: np.ndarray, times: np.ndarray, max_gap: float, threads: int) -> np.ndarray:  # noqa: ARG001
    """`values[outer, time, inner]` with its gaps filled."""
    filled = values.copy()
    known = ~np.isnan(values)
    if not values.size or known.all():
        return filled
    length = len(times)
    row = np.arange(length, dtype=np.int32)[:, None]
    # The nearest known row at or before each, and at or after each; out of range where there is none.
    before = np.maximum.accumulate(np.where(known, row, np.int32(-1)), axis=1)
    after = np.minimum.accumulate(np.where(known, row, np.int32(length))[:, ::-1], axis=1)[:, ::-1]
    outer, now, inner = np.nonzero(~known & (before >= 0) & (after < length))
    start, end = before[outer, now, inner], after[outer, now, inner]
    short = times[end] - times[start] <= max_gap
    outer, now, inner, start, end = (part[short] for part in (outer, now, inner, start, end))
    y0, y1 = (values[outer, at, inner].astype(np.float64) for at in (start, end))
    with np.errstate(invalid="ignore", over="ignore"):  # beside infinite values
        slope = (y1 - y0) / (times[end] - times[start])
        filled[outer, now, inner] = y0 + slope * (times[now] - times[start])
    return filled
