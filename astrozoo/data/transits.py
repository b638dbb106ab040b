"""From a light curve to candidates of transits and to what a model sees of them.

    candidates = search_transits(time, flux, flux_err, max_period=100.0)
    inputs = transit_views(time, flux, candidates)      # global_view, local_view: [candidate, bin], float32

Light curves are arrays, in days and relative flux, with NaN where nothing is known; trends of star and instrument
should be taken out before, since a box fits them as well as a transit. The kernels are `box_least_squares` (Kovács,
Zucker and Mazeh 2002, arXiv:astro-ph/0206099) and `fold_views` (Shallue and Vanderburg 2018, arXiv:1712.05044) of
`astrozoo.accel`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from astrozoo import accel
from astrozoo.accel.transits import known_cadences
from astrozoo.errors import InputError

__all__ = ["TransitCandidate", "period_grid", "search_transits", "transit_views"]

Light = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Times, fluxes and their errors, all known."""

_FINER = 10  # how much finer the grid is that a period found on the coarse one is looked for again


@dataclass(frozen=True, kw_only=True, slots=True)
class TransitCandidate:
    """A periodic dip.

    Attributes:
        period: In days.
        epoch: Middle of the first transit after the first cadence, in the time of the light curve, in days.
        duration: In days.
        depth: Relative flux.
        depth_err: Its standard error.
        snr: Depth over error.
        transits: How many transits have at least half of the depth.
    """

    period: float
    epoch: float
    duration: float
    depth: float
    depth_err: float
    snr: float
    transits: int


def period_grid(
    time_base: float, duration: float, *, min_period: float, max_period: float, step: float = 1.0
) -> np.ndarray:
    """Periods on which a search misses none: between neighbours, the last transit moves by a part of its duration.

    A step in frequency that is right for all periods, as astropy's `autoperiod` takes it, is set by the longest and
    much too fine for the short ones: four years of Kepler would need tens of millions. Here the step in frequency is
    proportional to the frequency, so that from one period to the next, transits at both ends of the light curve move
    by `step * duration` against each other, whatever the period (compare Ofir 2014, arXiv:1307.7330).

    Args:
        time_base: Last time less first, in days.
        duration: Of the transit, in days.
        min_period: The first of the periods, in days.
        max_period: The last is at least this, in days.
        step: In units of the duration.

    Returns:
        Rising periods, in days.

    Raises:
        InputError: Numbers that are not positive, or a range that is empty.
    """
    if not (0 < duration < math.inf and 0 < step < math.inf and 0 < time_base < math.inf):
        raise InputError(
            f"time_base, duration and step are {time_base}, {duration} and {step}; expected positive numbers."
        )
    if not 0 < min_period <= max_period < math.inf:
        raise InputError(f"min_period and max_period are {min_period} and {max_period}; expected a rising range.")
    ratio = math.log1p(step * duration / time_base)
    return min_period * np.exp(ratio * np.arange(1 + math.ceil(math.log(max_period / min_period) / ratio)))


def search_transits(
    time: ArrayLike,
    flux: ArrayLike,
    flux_err: ArrayLike | None = None,
    *,
    min_period: float | None = None,
    max_period: float | None = None,
    durations: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    max_candidates: int = 5,
    min_snr: float = 7.1,
    min_transits: int = 2,
    step: float = 1.0,
    oversample: int = 10,
    threads: int | None = None,
) -> list[TransitCandidate]:
    """Search a light curve for transits, one planet after the other.

    Each duration is searched on its own grid of periods and in its own bins. The likeliest box of all is looked at
    again on a finer grid, and its transits are cut out, with half a duration to each side, before the next search. The
    first candidate below `min_snr` ends it. What owes its depth to fewer than `min_transits` transits, such as a
    glitch, is cut out and not reported.

    Args:
        time: `[cadence]`, in days.
        flux: `[cadence]`, detrended, relative to the star.
        flux_err: `[cadence]` or one number; by default estimated from the scatter of the flux, by its median absolute
            deviation.
        min_period: In days; default: twice the longest duration.
        max_period: In days; default: half the time base.
        durations: That are tried, in days.
        max_candidates: Searched for at most.
        min_snr: Depth over its error that a candidate needs. The default is the threshold of Kepler's pipeline.
        min_transits: Of at least half the depth that a candidate needs.
        step: See `period_grid`.
        oversample: Bins in a duration.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        Candidates in the order in which they were found: the likeliest first.

    Raises:
        InputError: As `box_least_squares`, or a light curve too short for the periods.
    """
    days, values, errors = known_cadences(time, flux, flux_err)
    if flux_err is None:
        errors = np.full(len(values), _scatter(values))
    if len(durations) == 0:
        raise InputError("durations is empty; expected one or more, in days.")
    time_base = float(np.ptp(days)) if len(days) else 0.0
    low = 2.0 * max(durations) if min_period is None else min_period
    high = time_base / 2 if max_period is None else max_period
    if not 0 < low <= high <= time_base:
        raise InputError(
            f"periods from {low} to {high} d are to be searched in {time_base:.4g} d; expected a range within."
        )
    grids = {
        duration: period_grid(time_base, duration, min_period=low, max_period=high, step=step) for duration in durations
    }
    candidates: list[TransitCandidate] = []
    for _ in range(2 * max_candidates):  # every second one may be a glitch
        light = days, values, errors
        power, period, duration = _likeliest(light, grids, oversample, threads)
        if not math.isfinite(power):
            break
        fine = period * np.exp(np.linspace(-1.0, 1.0, 2 * _FINER + 1) * step * duration / time_base)
        candidate = _candidate(light, fine, [one for one in durations if one < fine[0]], oversample, threads)
        if candidate.snr < min_snr:
            break
        if candidate.transits >= min_transits:
            candidates.append(candidate)
        if len(candidates) == max_candidates:
            break
        outside = np.abs(_phase(days, candidate)) >= candidate.duration
        days, values, errors = days[outside], values[outside], errors[outside]
    return candidates


def transit_views(
    time: ArrayLike,
    flux: ArrayLike,
    candidates: Sequence[TransitCandidate],
    *,
    global_bins: int = 2001,
    local_bins: int = 201,
    normalise: bool = True,
    threads: int | None = None,
) -> dict[str, Tensor]:
    """Global and local view of each candidate, as inputs of a model.

    Medians are taken in the precision of the flux; only the views become float32.

    Args:
        time: `[cadence]`, in days.
        flux: `[cadence]`, detrended.
        candidates: Of this light curve.
        global_bins: Bins over the whole period.
        local_bins: Bins over four durations to each side of the transit.
        normalise: To a median of 0 and a minimum of -1.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        `global_view` and `local_view`, `[candidate, bin]`.

    Raises:
        InputError: As `fold_views`.
    """
    transits = np.array([(one.period, one.epoch, one.duration) for one in candidates], np.float64).reshape(-1, 3)
    views = accel.fold_views(
        time, flux, *transits.T, global_bins=global_bins, local_bins=local_bins, normalise=normalise, threads=threads
    )
    return {name: torch.from_numpy(view.astype(np.float32)) for name, view in views._asdict().items()}


def _scatter(values: np.ndarray) -> float:
    """Standard deviation of normal noise, by its median absolute deviation."""
    scatter = float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) else 1.0
    if scatter == 0:
        raise InputError("flux has no scatter to estimate its error from; give flux_err.")
    return scatter


def _likeliest(
    light: Light, grids: Mapping[float, np.ndarray], oversample: int, threads: int | None
) -> tuple[float, float, float]:
    """Power, period and duration of the likeliest box, over the periods of each duration.

    Durations are searched one by one, since a search over several tries only the shortest at all phases across the end
    of a period.
    """
    best = (-math.inf, math.nan, math.nan)
    for duration, periods in grids.items():
        found = accel.box_least_squares(
            *light, periods=periods, durations=duration, oversample=oversample, threads=threads
        )
        i = int(np.argmax(found.power))
        best = max(best, (float(found.power[i]), float(periods[i]), duration))
    return best


def _candidate(
    light: Light, periods: np.ndarray, durations: Sequence[float], oversample: int, threads: int | None
) -> TransitCandidate:
    """The likeliest box with one of the periods and durations."""
    _, period, duration = _likeliest(light, dict.fromkeys(durations, periods), oversample, threads)
    found = accel.box_least_squares(*light, periods=period, durations=duration, oversample=oversample, threads=threads)
    candidate = TransitCandidate(
        period=period,
        epoch=float(found.transit_time[0]),
        duration=duration,
        depth=float(found.depth[0]),
        depth_err=float(found.depth_err[0]),
        snr=float(found.depth_snr[0]),
        transits=0,
    )
    return replace(candidate, transits=_deep_transits(light, candidate))


def _deep_transits(light: Light, candidate: TransitCandidate) -> int:
    """Transits of at least half the depth: noise leaves that to a good part of them, one glitch to itself alone."""
    days, values, errors = light
    weights = 1.0 / np.square(errors)
    inside = np.abs(_phase(days, candidate)) < candidate.duration / 2
    level = np.average(values[~inside], weights=weights[~inside])
    cycles = np.round((days[inside] - candidate.epoch) / candidate.period)
    _, transit = np.unique(cycles, return_inverse=True)
    fluxes = np.bincount(transit, (values * weights)[inside]) / np.bincount(transit, weights[inside])
    return int(np.count_nonzero(level - fluxes >= candidate.depth / 2))


def _phase(days: np.ndarray, candidate: TransitCandidate) -> np.ndarray:
    """Days from the middle of the nearest transit."""
    return (days - candidate.epoch + candidate.period / 2) % candidate.period - candidate.period / 2
