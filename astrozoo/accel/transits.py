"""Search for transits in light curves."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["BoxSearch", "box_least_squares", "known_cadences"]

_MOST_BINS = 1 << 27


class BoxSearch(NamedTuple):
    """The best box at each period, float64 arrays `[period]`.

    Where no box dims the light curve (no cadences, or all within one box), `power` and `log_likelihood` are negative
    infinity and the others NaN.

    Attributes:
        power: What is maximised: `log_likelihood`.
        depth: Flux outside of the box less flux inside.
        depth_err: Its standard error.
        duration: Length of the box, in days: the given one, rounded to whole bins.
        transit_time: Middle of the first box after the first cadence, in the time of the light curve, in days.
        depth_snr: `depth / depth_err`.
        log_likelihood: Log likelihood of box and constant over that of the constant alone; in squared flux where no
            errors are given.
    """

    power: np.ndarray
    depth: np.ndarray
    depth_err: np.ndarray
    duration: np.ndarray
    transit_time: np.ndarray
    depth_snr: np.ndarray
    log_likelihood: np.ndarray


def box_least_squares(
    time: ArrayLike,
    flux: ArrayLike,
    flux_err: ArrayLike | None = None,
    *,
    periods: ArrayLike,
    durations: ArrayLike,
    oversample: int = 10,
    threads: int | None = None,
) -> BoxSearch:
    """Box least squares: how well a periodic dip in the shape of a box describes a light curve.

    The search of Kovács, Zucker and Mazeh (2002, arXiv:astro-ph/0206099). At each period the light curve is folded
    and summed, weighted by its inverse variances, in bins of phase that are `min(durations) / oversample` wide. Of all
    boxes that start at a bin and have one of the durations, the one with the highest likelihood is kept; of equals the
    first. Only dips count, not brightenings.

    The numbers are those of `astropy.timeseries.BoxLeastSquares(time, flux, flux_err).power(periods, durations,
    objective="likelihood", method="fast")` up to rounding, its habits at the end of the period included: the last bin
    is left out, and only the first `oversample` bins are repeated behind it, so that boxes longer than the shortest
    are not tried across the end at all phases. One habit is not copied: boxes without cadences are recognised by their
    share of the weights instead of by an absolute limit, so that a unit of flux changes nothing.

    Args:
        time: `[cadence]`, in days, in any order. Everything is computed in float64; give absolute times in float64.
        flux: `[cadence]`, best relative to the median, detrended.
        flux_err: `[cadence]`, or one number: standard errors of the flux; default 1. Cadences where time, flux or error
            is NaN or infinite are left out.
        periods: `[period]`, in days.
        durations: `[duration]` or one number, in days, shorter than the shortest period.
        oversample: Bins in the shortest duration.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        The best box of each period, arrays `[period]` of float64.

    Raises:
        InputError: Arrays of other shapes, errors, periods or durations that are not positive, durations that do not
            fit, or more than 2^27 bins in a period.
    """
    days, values, errors = known_cadences(time, flux, flux_err)
    checked_periods = _positive("periods", periods)
    checked_durations = _positive("durations", durations)
    if isinstance(oversample, bool) or not isinstance(oversample, int) or oversample < 1:
        raise InputError(f"oversample is {oversample!r}; expected a whole number of at least 1.")
    longest, shortest = checked_durations.max(), checked_periods.min()
    if not longest < shortest:
        raise InputError(f"durations reach {longest} d; expected less than the shortest period, {shortest} d.")
    bins = checked_periods.max() / (checked_durations.min() / oversample)
    if not bins + oversample + 1 <= _MOST_BINS:
        raise InputError(
            f"periods reach {checked_periods.max()} d, which is {bins:.3g} bins of min(durations) / oversample; "
            f"expected at most {_MOST_BINS}."
        )
    start = days.min(initial=math.inf)
    # A power of two changes no digit, and keeps products of weights far from the limits of floating point.
    unit = 2.0 ** round(math.log2(np.median(errors))) if len(errors) else 1.0
    found = serve("box_least_squares")(
        days - start,
        values - np.median(values) if len(values) else values,
        1.0 / np.square(errors / unit),
        checked_periods,
        checked_durations,
        oversample,
        workers(threads),
    )
    likelihood, depth, error, duration, middle = found
    likelihood, error = likelihood / unit**2, error * unit
    return BoxSearch(likelihood, depth, error, duration, middle + start, depth / error, likelihood.copy())


@reference
def _box_least_squares(
    time: np.ndarray,
    flux: np.ndarray,
    weight: np.ndarray,
    periods: np.ndarray,
    durations: np.ndarray,
    oversample: int,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> tuple[np.ndarray, ...]:
    """Likelihood, depth, its error, duration and mid-time `[period]`; times count from the first cadence."""
    width = durations.min() / oversample
    lengths = [math.floor(duration / width + 0.5) for duration in durations]
    weighted = flux * weight
    total_flux, total_weight = weighted.sum(), weight.sum()
    least = np.finfo(np.float64).eps * len(time) * total_weight
    best = np.full((len(periods), 5), np.nan)
    best[:, 0] = -np.inf
    for row, period in zip(best, periods, strict=True):
        whole = math.ceil(period / width)
        count = whole + oversample
        phase = np.maximum(time - period * np.floor(time / period), 0.0)
        places = np.floor(phase / width).astype(np.int64) + 1
        sums = []
        for values in (weighted, weight):
            bins = np.bincount(places, values, minlength=count + 1)
            bins[whole:count] = bins[1 : oversample + 1]
            bins[count:] = 0.0
            sums.append(np.cumsum(bins[: count + 1]))
        for length in lengths:
            inside_flux, inside = (total[length:] - total[:-length] for total in sums)
            outside = total_weight - inside
            with np.errstate(divide="ignore", invalid="ignore"):
                depth = (total_flux - inside_flux) / outside - inside_flux / inside
                likelihood = 0.5 * inside * depth * depth
            box = (inside > least) & (outside > least) & (depth >= 0)
            likelihood[~box] = -np.inf
            i = int(np.argmax(likelihood))
            if likelihood[i] > row[0]:
                duration = length * width
                error = math.sqrt(1.0 / inside[i] + 1.0 / outside[i])
                row[:] = likelihood[i], depth[i], error, duration, math.fmod(i * width + 0.5 * duration, period)
    return tuple(np.ascontiguousarray(best.T))


def known_cadences(
    time: ArrayLike, flux: ArrayLike, flux_err: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, flux and its error (default 1) of the cadences at which all are known, in float64.

    Raises:
        InputError: Not one length, not real numbers, or errors that are not positive.
    """
    days = floating("time", time, dims="cadence").astype(np.float64)
    values = floating("flux", flux, dims="cadence").astype(np.float64)
    errors = np.ones(()) if flux_err is None else floating("flux_err", flux_err).astype(np.float64)
    if values.shape != days.shape or errors.shape not in ((), days.shape):
        raise InputError(
            f"time has shape {days.shape}, flux {values.shape} and flux_err {errors.shape}; expected one length."
        )
    if np.any(errors <= 0):
        raise InputError(f"flux_err reaches {np.nanmin(errors)}; expected positive numbers.")
    known = np.isfinite(days) & np.isfinite(values) & np.isfinite(errors)
    return days[known], values[known], np.broadcast_to(errors, days.shape)[known]


def _positive(name: str, values: ArrayLike) -> np.ndarray:
    array = np.atleast_1d(floating(name, values)).astype(np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}; expected one or more numbers in one dimension.")
    if not (np.all(array > 0) and np.all(np.isfinite(array))):
        raise InputError(
            f"{name} has {array[~((array > 0) & np.isfinite(array))][0]}; expected positive numbers of days."
        )
    return np.ascontiguousarray(array)
