"""Views of folded light curves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating, runs
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["FoldedViews", "fold_views"]


class FoldedViews(NamedTuple):
    """Views of one light curve, `[candidate, bin]`, or `[bin]` for a single candidate; in the dtype of the flux.

    Attributes:
        global_view: The whole period, the transit in the middle.
        local_view: The neighbourhood of the transit.
    """

    global_view: np.ndarray
    local_view: np.ndarray


def fold_views(
    time: ArrayLike,
    flux: ArrayLike,
    period: ArrayLike,
    epoch: ArrayLike,
    duration: ArrayLike,
    *,
    global_bins: int = 2001,
    local_bins: int = 201,
    num_durations: float = 4.0,
    global_width: float | None = None,
    local_width: float = 0.16,
    normalise: bool = True,
    threads: int | None = None,
) -> FoldedViews:
    """Global and local view of transits, as AstroNet sees them (Shallue and Vanderburg 2018, arXiv:1712.05044).

    The light curve is folded to phases from `-period / 2` to below `period / 2`, with `epoch` at 0. A view from `-half`
    to `half` has bins of one `width`; bin `i` holds the phases from `-half + i * spacing` to below that plus the width,
    where `spacing = (2 * half - width) / (bins - 1)`, so that wide bins overlap. Its value is the median of the fluxes
    inside, as `np.median`; a bin without cadences takes the median of the whole light curve. The global view has
    `half = period / 2` and `width = global_width * period`, the local one `half = num_durations * duration`, at most
    `period / 2`, and `width = local_width * duration`.

    Args:
        time: `[cadence]`, in days, in any order; computed with in float64.
        flux: `[cadence]`, detrended. Cadences where time or flux is NaN, or time is infinite, are left out.
        period: `[candidate]` or one number, in days.
        epoch: Middle of any of its transits, in the time of the light curve; `[candidate]` or one number.
        duration: `[candidate]` or one number, in days, at most the period.
        global_bins: Bins of the global view, at least 2.
        local_bins: Bins of the local view, at least 2.
        num_durations: Durations that the local view reaches to both sides.
        global_width: Width of its bins as a fraction of the period; default `1 / global_bins`, side by side.
        local_width: Width of bins of the local view as a fraction of the duration.
        normalise: Shift each view to a median of 0 and scale it to a minimum of -1. A view without a dip, whose
            minimum is its median (a constant flux), is shifted only.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        Both views, in the dtype of the flux, with a dimension of candidates where there is one.

    Raises:
        InputError: Other shapes, no cadence that is known, numbers that are not positive where they must be, or bins as
            wide as their view.
    """
    days = floating("time", time, dims="cadence").astype(np.float64)
    values = floating("flux", flux, dims="cadence")
    if days.shape != values.shape:
        raise InputError(f"time has shape {days.shape} and flux {values.shape}; expected one length.")
    known = np.isfinite(days) & ~np.isnan(values)
    if not known.any():
        raise InputError(f"time and flux have {len(days)} cadences; expected one or more where both are known.")
    transits, shape = _transits(period, epoch, duration)
    periods, epochs, durations = transits
    for name, bins in (("global_bins", global_bins), ("local_bins", local_bins)):
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
            raise InputError(f"{name} is {bins!r}; expected a whole number of at least 2.")
    widths = {"global_width": 1.0 / global_bins if global_width is None else global_width, "local_width": local_width}
    for name, factor in {**widths, "num_durations": num_durations}.items():
        if not 0 < factor < np.inf:
            raise InputError(f"{name} is {factor!r}; expected a positive number.")
    half = np.stack([periods / 2, np.minimum(periods / 2, num_durations * durations)])
    width = np.stack([widths["global_width"] * periods, widths["local_width"] * durations])
    for name, reach, bin_width in zip(widths, half, width, strict=True):
        if not np.all(bin_width < 2 * reach):
            raise InputError(f"{name} is {widths[name]}, which makes bins as wide as their view; expected less.")
    views = serve("fold_views")(
        days[known], values[known], periods, epochs, half, width, [global_bins, local_bins], normalise, workers(threads)
    )
    return FoldedViews(*(view.reshape(*shape, view.shape[-1]) for view in views))


@reference
def _fold_views(
    time: np.ndarray,
    flux: np.ndarray,
    period: np.ndarray,
    epoch: np.ndarray,
    half: np.ndarray,
    width: np.ndarray,
    bins: list[int],
    normalise: bool,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> list[np.ndarray]:
    """For each view `[candidate, bin]`; `half` and `width` are `[view, candidate]`."""
    views = [np.empty((len(period), count), flux.dtype) for count in bins]
    otherwise = np.median(flux.astype(np.float64))
    for i in range(len(period)):
        shifted = time + (0.5 * period[i] - epoch[i])
        phase = shifted - period[i] * np.floor(shifted / period[i])
        phase = np.where((phase > 0) & (phase < period[i]), phase, 0.0) - 0.5 * period[i]
        order = np.argsort(phase)
        phase, folded = phase[order], flux[order]
        for view, reach, bin_width in zip(views, half[:, i], width[:, i], strict=True):
            count = view.shape[1]
            low = np.arange(count) * ((2 * reach - bin_width) / (count - 1)) - reach
            start, end = np.searchsorted(phase, low), np.searchsorted(phase, low + bin_width)
            medians = _medians(folded, start, end, otherwise).astype(flux.dtype).astype(np.float64)
            if normalise:
                medians -= np.median(medians)
                depth = abs(medians.min())
                medians /= depth if depth > 0 else 1.0
            view[i] = medians
    return views


def _medians(values: np.ndarray, start: np.ndarray, end: np.ndarray, otherwise: float) -> np.ndarray:
    """Median of `values[start:end]` for each of many pieces, in float64."""
    size = end - start
    first = np.cumsum(size) - size
    piece = np.repeat(np.arange(len(size)), size)
    members = values[runs(start, size)].astype(np.float64)
    ordered = np.append(members[np.lexsort((members, piece))], otherwise)
    empty = size == 0
    middle = [np.where(empty, len(members), first + place) for place in ((size - 1) // 2, size // 2)]
    return (ordered[middle[0]] + ordered[middle[1]]) / 2


def _transits(period: ArrayLike, epoch: ArrayLike, duration: ArrayLike) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """Three arrays `[candidate]`, and the shape of the candidates: one dimension, or none for numbers."""
    given = {
        name: floating(name, values).astype(np.float64)
        for name, values in {"period": period, "epoch": epoch, "duration": duration}.items()
    }
    try:
        shape = np.broadcast_shapes(*(array.shape for array in given.values()))
    except ValueError:
        shape = (0, 0)
    if len(shape) > 1:
        sizes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
        raise InputError(f"shapes are {sizes}; expected numbers, or arrays of one length.")
    transits = [np.ascontiguousarray(np.broadcast_to(array, shape)).reshape(-1) for array in given.values()]
    for name, array in zip(given, transits, strict=True):
        wrong = ~np.isfinite(array) if name == "epoch" else ~((array > 0) & np.isfinite(array))
        if wrong.any():
            raise InputError(
                f"{name} has {array[wrong][0]}; expected a {'finite' if name == 'epoch' else 'positive'} number."
            )
    periods, _, durations = transits
    if np.any(durations > periods):
        raise InputError(
            f"duration has {durations[durations > periods][0]}, longer than its period; expected at most that."
        )
    return transits, shape
