"""Trends of light curves: robust locations in a window of time that slides over uneven sampling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["biweight_detrend", "median_filter_time"]

_TOLERANCE = 1e-6  # of the biweight's last step, in units of the MAD
_STEPS = 200
_SLOPE = 0.25  # least slope, relative to the sum of weights, with which Newton's step is taken
_BLOCK = 1 << 20  # values of windows that the references lay out at once


def median_filter_time(
    time: ArrayLike,
    flux: ArrayLike,
    window: float,
    *,
    break_tolerance: float | None = None,
    edge_cutoff: float = 0.0,
    threads: int | None = None,
) -> np.ndarray:
    """Median of the flux in a window of time around each cadence; the flattened light curve is `flux / trend`.

    The window of a cadence at `t` holds the cadences with `t - window / 2 <= time < t + window / 2` of its segment. A
    segment ends where the known flux pauses for longer than `break_tolerance`; no window reaches across, and towards
    the ends of a segment windows are cut off. Flux that is not finite counts as missing: it is in no window and has the
    trend NaN. These are the conventions of wotan (Hippke et al. 2019, arXiv:1906.00966).

    Args:
        time: `[time]`, finite, ascending (equal times are allowed); in days or any other unit, which all lengths share.
        flux: `[..., time]`, one or many light curves; float32 or float64, other real numbers become float64.
        window: Length of the window.
        break_tolerance: Longest pause within a segment; infinity for none too long. Default: half the window.
        edge_cutoff: The trend is NaN nearer than this to the ends of a segment; at most half the window is cut off.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        The trend, in the shape and dtype of the flux.

    Raises:
        InputError: Not real numbers, lengths that differ, a time that is not finite or descends, or a window, tolerance
            or cutoff out of range.
    """
    at, curves, shape, limits = _prepare(time, flux, window, break_tolerance, edge_cutoff)
    trend: np.ndarray = serve("median_filter_time")(at, curves, *limits, workers(threads))
    return trend.reshape(shape)


def biweight_detrend(
    time: ArrayLike,
    flux: ArrayLike,
    window: float,
    *,
    cval: float = 5.0,
    break_tolerance: float | None = None,
    edge_cutoff: float = 0.0,
    threads: int | None = None,
) -> np.ndarray:
    """Tukey's biweight location of the flux in a window of time around each cadence, the default of wotan.

    With `u = (flux - centre) / (cval * MAD)`, the location is the centre at which the weighted deviations
    `u (1 - u^2)^2` of the values with `|u| < 1` cancel, reached from the median of the window; the MAD (median absolute
    deviation from the median) stays as it is. Steps are Newton's, or to the weighted mean where Newton's could lead
    astray, until one is shorter than 1e-6 MAD; so the trend does not depend on unit or offset of the flux. A transit
    that is shorter than half the window barely moves it (Hippke et al. 2019, arXiv:1906.00966; there, windows of three
    transit durations are found best). Where the MAD is zero, the trend is the median.

    Args:
        time: As in `median_filter_time`, which also says what a window holds and what happens at gaps and edges.
        flux: Likewise, `[..., time]`.
        window: Length of the window.
        cval: Deviations from which values weigh nothing, in units of the MAD: 5 is about 3.4 standard deviations.
        break_tolerance: Longest pause within a segment; infinity for none too long. Default: half the window.
        edge_cutoff: The trend is NaN nearer than this to the ends of a segment; at most half the window is cut off.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        The trend, in the shape and dtype of the flux; the flattened light curve is `flux / trend`.

    Raises:
        InputError: As `median_filter_time`; or cval is not a positive number.
    """
    at, curves, shape, (window, *limits) = _prepare(time, flux, window, break_tolerance, edge_cutoff)
    cval = _number("cval", cval, "a positive number", lambda value: 0.0 < value < np.inf)
    trend: np.ndarray = serve("biweight_detrend")(at, curves, window, cval, *limits, workers(threads))
    return trend.reshape(shape)


@reference
def _median_filter_time(
    time: np.ndarray,
    flux: np.ndarray,
    window: float,
    break_tolerance: float,
    edge_cutoff: float,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> np.ndarray:
    """Trend of each row of `flux[curve, time]`."""
    return _locations(time, flux, window, break_tolerance, edge_cutoff, _median)


@reference
def _biweight_detrend(
    time: np.ndarray,
    flux: np.ndarray,
    window: float,
    cval: float,
    break_tolerance: float,
    edge_cutoff: float,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> np.ndarray:
    """Trend of each row of `flux[curve, time]`."""
    return _locations(time, flux, window, break_tolerance, edge_cutoff, partial(_biweight, cval=cval))


def _locations(
    time: np.ndarray,
    flux: np.ndarray,
    window: float,
    break_tolerance: float,
    edge_cutoff: float,
    location: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """What `location` finds in each window; it gets sorted windows `[cadence, value]`, filled with inf, and counts."""
    trend = np.full_like(flux, np.nan)
    half = window / 2
    edge = min(edge_cutoff, half)
    for row, found in zip(flux, trend, strict=True):
        known = np.flatnonzero(np.isfinite(row))
        at, values = time[known], row[known].astype(np.float64)
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(at) > break_tolerance) + 1, [at.size]])
        first, end = (np.repeat(part, np.diff(bounds)) for part in (bounds[:-1], bounds[1:]))
        low = np.maximum(np.searchsorted(at, at - half), first)
        high = np.minimum(np.searchsorted(at, at + half), end)
        inside = (at >= at[first] + edge) & (at <= at[end - 1] - edge) & (low < high)
        cadences = np.flatnonzero(inside)
        if not cadences.size:
            continue
        step = max(1, _BLOCK // int(np.max(high - low)))
        for block in (cadences[i : i + step] for i in range(0, cadences.size, step)):
            count = high[block] - low[block]
            place = low[block, None] + np.arange(count.max())
            windows = np.where(place < high[block, None], values[np.minimum(place, at.size - 1)], np.inf)
            windows.sort(axis=1)
            found[known[block]] = location(windows, count)
    return trend


def _median(windows: np.ndarray, count: np.ndarray) -> np.ndarray:
    rows = np.arange(count.size)
    return (windows[rows, (count - 1) // 2] + windows[rows, count // 2]) / 2


def _biweight(windows: np.ndarray, count: np.ndarray, cval: float) -> np.ndarray:
    centre = _median(windows, count)
    scale = cval * _median(np.sort(np.abs(windows - centre[:, None]), axis=1), count)
    with np.errstate(divide="ignore", over="ignore"):
        moving = np.isfinite(scale) & np.isfinite(1 / scale)
    for _ in range(_STEPS):
        rows = np.flatnonzero(moving)
        if not rows.size:
            break
        u = (windows[rows] - centre[rows, None]) / scale[rows, None]
        u[np.abs(u) >= 1] = 1.0  # where weight and slope are zero
        outer = 1 - np.square(u)
        weight = np.square(outer).sum(axis=1)
        slope = (outer * (1 - 5 * np.square(u))).sum(axis=1)
        pull = (u * np.square(outer)).sum(axis=1)
        divisor = np.where(slope > _SLOPE * weight, slope, weight)
        step = np.divide(pull, divisor, out=np.zeros_like(pull), where=weight > 0)
        centre[rows] += step * scale[rows]
        moving[rows] = np.abs(step) > _TOLERANCE / cval
    return centre


def _prepare(
    time: ArrayLike, flux: ArrayLike, window: float, break_tolerance: float | None, edge_cutoff: float
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], tuple[float, float, float]]:
    """Checked and contiguous: `time`, `flux[curve, time]`, the shape of the trend, and the three lengths."""
    at = np.ascontiguousarray(floating("time", time, dims="time"), dtype=np.float64)
    values = floating("flux", flux)
    if values.ndim == 0 or values.shape[-1] != at.size:
        raise InputError(f"flux has shape {values.shape}; expected (..., {at.size}), as time has {at.size} cadences.")
    if not np.isfinite(at).all():
        where = int(np.flatnonzero(~np.isfinite(at))[0])
        raise InputError(f"time[{where}] is {at[where]}; expected finite times. Leave out cadences without a time.")
    if (at[1:] < at[:-1]).any():
        where = int(np.flatnonzero(at[1:] < at[:-1])[0])
        raise InputError(f"time falls from {at[where]} to {at[where + 1]} at {where + 1}; expected ascending times.")
    window = _number("window", window, "a positive number", lambda value: 0.0 < value < np.inf)
    if break_tolerance is None:
        break_tolerance = window / 2
    break_tolerance = _number("break_tolerance", break_tolerance, "a positive number or inf", lambda value: value > 0.0)
    edge_cutoff = _number("edge_cutoff", edge_cutoff, "a number of at least 0", lambda value: value >= 0.0)
    curves = np.ascontiguousarray(values).reshape(-1 if at.size else 0, at.size)
    return at, curves, values.shape, (window, break_tolerance, edge_cutoff)


def _number(name: str, value: float, expected: str, holds: Callable[[float], bool]) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not holds(number):
        raise InputError(f"{name} is {value!r}; expected {expected}.")
    return number
