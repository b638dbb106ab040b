"""Light curves without the variability of their star, for models that look for transits."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel import biweight_detrend, median_filter_time
from astrozoo.accel.arrays import floating
from astrozoo.errors import ConfigError, DataError, InputError
from astrozoo.registry.names import suggest

__all__ = ["flatten_light_curve"]

_METHODS = {"biweight": biweight_detrend, "median": median_filter_time}


@overload
def flatten_light_curve(
    time: ArrayLike,
    flux: ArrayLike,
    window: float,
    *,
    method: str = ...,
    break_tolerance: float | None = ...,
    edge_cutoff: float = ...,
    return_trend: Literal[False] = ...,
) -> np.ndarray: ...


@overload
def flatten_light_curve(
    time: ArrayLike,
    flux: ArrayLike,
    window: float,
    *,
    method: str = ...,
    break_tolerance: float | None = ...,
    edge_cutoff: float = ...,
    return_trend: Literal[True],
) -> tuple[np.ndarray, np.ndarray]: ...


def flatten_light_curve(
    time: ArrayLike,
    flux: ArrayLike,
    window: float,
    *,
    method: str = "biweight",
    break_tolerance: float | None = None,
    edge_cutoff: float = 0.0,
    return_trend: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Flux divided by its trend: a robust location in a window of time that slides over uneven sampling.

        flat = flatten_light_curve(time, flux, window=0.75)

    A window of about three transit durations keeps the transits and removes most else (Hippke et al. 2019,
    arXiv:1906.00966). Gaps are not bridged: the light curve falls into segments that are flattened each by itself.

    Args:
        time: `[time]`, ascending, in days. Cadences whose time is not finite are left out: they get NaN.
        flux: `[..., time]`, one or many light curves of positive flux. What is not finite stays NaN.
        window: Length of the window in days.
        method: `biweight` (`astrozoo.accel.biweight_detrend`), or `median` (`astrozoo.accel.median_filter_time`), which
            is faster and bends transits more.
        break_tolerance: Longest pause within a segment, in days; default: half the window.
        edge_cutoff: Days without a trend at the ends of each segment, where windows are cut off and tell less.
        return_trend: Whether to return the trend, too.

    Returns:
        Flattened flux around 1, float32 for float32 flux and else float64, NaN where there is no trend; with
        `return_trend`, also the trend.

    Raises:
        ConfigError: A method that does not exist.
        DataError: Time and flux do not fit each other, the time descends, nothing is known, a length is out of range,
            or the trend is not positive.
    """
    if method not in _METHODS:
        raise ConfigError(f"method is {method!r}; expected {' or '.join(_METHODS)}.{suggest(method, list(_METHODS))}")
    try:
        at, values = floating("time", time, dims="time"), floating("flux", flux)
        if values.shape[-1:] != at.shape:
            raise InputError(
                f"flux has shape {values.shape}; expected (..., {at.size}), as time has {at.size} cadences."
            )
        dated = np.isfinite(at)
        trend = np.full_like(values, np.nan)
        trend[..., dated] = _METHODS[method](
            at[dated], values[..., dated], window, break_tolerance=break_tolerance, edge_cutoff=edge_cutoff
        )
    except InputError as error:
        raise DataError(f"this light curve cannot be flattened: {error}") from error
    if not np.isfinite(values[..., dated]).any():
        raise DataError(f"flux {values.shape} holds no finite value at a finite time; there is nothing to flatten.")
    if (trend <= 0).any():
        raise DataError(
            f"the trend falls to {np.nanmin(trend):.4g}, but flux is divided by it; expected positive flux: divide a "
            "light curve by its median instead of subtracting it."
        )
    flat = values / trend
    return (flat, trend) if return_trend else flat
