"""Spectra on uneven wavelength grids: resampling, and the line spread of an instrument."""

from __future__ import annotations

import math
from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating, runs
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.grids import increasing
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["convolve_lsf", "lsf_sigma", "rebin_flux"]

_FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian, in standard deviations: 2.3548
_MOST_WIDTHS = 30.0  # exp(-0.5 * 30^2) = 1e-196 is a normal number, whatever it is multiplied by
_ROWS = 64  # output pixels whose weights the reference holds at once
_ELEMENTS = 1 << 22  # of a temporary array of the reference


@overload
def rebin_flux(
    wavelength: ArrayLike,
    flux: ArrayLike,
    new_wavelength: ArrayLike,
    flux_err: None = None,
    *,
    fill: float = ...,
    threads: int | None = ...,
) -> np.ndarray: ...


@overload
def rebin_flux(
    wavelength: ArrayLike,
    flux: ArrayLike,
    new_wavelength: ArrayLike,
    flux_err: ArrayLike,
    *,
    fill: float = ...,
    threads: int | None = ...,
) -> tuple[np.ndarray, np.ndarray]: ...


def rebin_flux(
    wavelength: ArrayLike,
    flux: ArrayLike,
    new_wavelength: ArrayLike,
    flux_err: ArrayLike | None = None,
    *,
    fill: float = math.nan,
    threads: int | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Flux density on another wavelength grid, conserving flux (SpectRes, Carnall 2017, arXiv:1705.05165).

    Bins reach half way to the neighbouring wavelengths; the outermost are symmetric. A new bin gets the mean of the
    old ones, weighted by overlap: `sum_j w_j f_j / sum_j w_j`, and for independent errors `sqrt(sum_j (w_j e_j)^2) /
    sum_j w_j`. Errors of neighbouring new bins that share an old one are correlated, which nothing here says.

    Args:
        wavelength: `[wavelength]`, increasing, at least two; any unit.
        flux: `[..., wavelength]`, flux density per unit of wavelength, float32 or float64.
        new_wavelength: `[new_wavelength]`, likewise, in the same unit.
        flux_err: Standard deviations of `flux`, of the same shape.
        fill: What new bins get that are not entirely within the old range, in flux and error.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        `[..., new_wavelength]`; where errors are given, a pair of them: flux and error. float32 if `flux` (and
        `flux_err`) is, else float64; sums are kept in float64. A NaN or an infinity makes each new bin that overlaps
        it NaN or infinite.

    Raises:
        InputError: A grid is not increasing or has fewer than two values, or shapes do not fit.
    """
    old, new = increasing("wavelength", wavelength, least=2), increasing("new_wavelength", new_wavelength, least=2)
    values = _spectra("flux", flux, len(old))
    errors = None
    if flux_err is not None:
        errors = _spectra("flux_err", flux_err, len(old))
        if errors.shape != values.shape:
            raise InputError(f"flux_err has shape {errors.shape}; expected that of flux, {values.shape}.")
        dtype = np.result_type(values, errors)
        values, errors = values.astype(dtype, copy=False), errors.astype(dtype, copy=False)
        errors = np.ascontiguousarray(errors).reshape(-1, len(old))
    rows = np.ascontiguousarray(values).reshape(-1, len(old))
    shape = (*values.shape[:-1], len(new))
    found, found_errors = serve("rebin_flux")(old, rows, new, errors, float(fill), workers(threads))
    return found.reshape(shape) if flux_err is None else (found.reshape(shape), found_errors.reshape(shape))


@reference
def _rebin_flux(
    wavelength: np.ndarray,
    flux: np.ndarray,
    new_wavelength: np.ndarray,
    flux_err: np.ndarray | None,
    fill: float,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> tuple[np.ndarray, np.ndarray | None]:
    """Flux `[spectrum, new_wavelength]`, and its error or None, of `flux[spectrum, wavelength]`."""
    old, new = _edges(wavelength), _edges(new_wavelength)
    low, high = new[:-1], new[1:]
    inside = (low >= old[0]) & (high <= old[-1])
    low, high = low[inside], high[inside]
    first = np.searchsorted(old, low, side="right") - 1
    count = np.searchsorted(old, high, side="left") - first
    start = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
    # One entry for each pair of a new bin and an old one that it overlaps, in order.
    bin_of = np.repeat(np.arange(len(first)), count)
    index = runs(first, count)
    overlap = np.minimum(old[index + 1], high[bin_of]) - np.maximum(old[index], low[bin_of])
    weight = overlap / (high - low)[bin_of]

    def summed(values: np.ndarray, power: int) -> np.ndarray:
        result = np.full((len(values), len(new_wavelength)), fill, values.dtype)
        if len(first):
            rows = max(1, _ELEMENTS // len(index))
            for begin in range(0, len(values), rows):
                terms = (weight * values[begin : begin + rows, index]) ** power
                result[begin : begin + rows, inside] = np.add.reduceat(terms, start, axis=1) ** (1 / power)
        return result

    return summed(flux, 1), None if flux_err is None else summed(flux_err, 2)


def lsf_sigma(wavelength: ArrayLike, resolving_power: ArrayLike) -> np.ndarray:
    """Standard deviation of a Gaussian line spread of resolving power `R = wavelength / FWHM`.

    Args:
        wavelength: Any shape, any unit.
        resolving_power: A number, or one for each wavelength; positive.

    Returns:
        `wavelength / (2.3548 R)`, in the unit of the wavelengths, float64.

    Raises:
        InputError: A resolving power is not positive.
    """
    grid = floating("wavelength", wavelength).astype(np.float64, copy=False)
    power = floating("resolving_power", resolving_power).astype(np.float64, copy=False)
    if not np.all(power > 0):
        raise InputError(f"resolving_power has {np.min(power, initial=math.inf)}; expected positive numbers.")
    if power.ndim and power.shape != grid.shape:
        raise InputError(f"resolving_power has shape {power.shape}; expected one number, or {grid.shape}.")
    return grid / (_FWHM * power)


def convolve_lsf(
    wavelength: ArrayLike,
    flux: ArrayLike,
    sigma: ArrayLike,
    *,
    truncate: float = 5.0,
    threads: int | None = None,
) -> np.ndarray:
    """Spectra as an instrument sees them whose line spread is a Gaussian with a width that varies along the grid.

    `result_i = sum_j f_j w_j G((l_i - l_j) / sigma_i) / sum_j w_j G((l_i - l_j) / sigma_i)`, over the known pixels with
    `|l_i - l_j| <= truncate sigma_i`, where `w_j` is the width of bin `j` (it reaches half way to the neighbouring
    wavelengths) and `G(x) = exp(-x^2 / 2)`. The width is that of the pixel that is seen. A constant spectrum stays as
    it is, also at the ends and beside gaps.

    Args:
        wavelength: `[wavelength]`, increasing, at least two; any unit.
        flux: `[..., wavelength]`, float32 or float64. NaN and infinities are unknown: they get no weight.
        sigma: Standard deviation in the unit of the wavelengths, one number or `[wavelength]`; see `lsf_sigma`. Where
            it is 0, or reaches no other pixel, the flux stays as it is.
        truncate: Standard deviations after which the Gaussian ends, up to 30.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        `[..., wavelength]` in the dtype of `flux`; sums are kept in float64. A pixel gets NaN where no pixel within
        reach is known.

    Raises:
        InputError: The grid is not increasing or has fewer than two values, a width is negative or not finite,
            `truncate` is out of range, or shapes do not fit.
    """
    grid = increasing("wavelength", wavelength, least=2)
    values = _spectra("flux", flux, len(grid))
    width = floating("sigma", sigma).astype(np.float64, copy=False)
    if width.ndim and width.shape != grid.shape:
        raise InputError(f"sigma has shape {width.shape}; expected one number, or one for each of {len(grid)} pixels.")
    wrong = ~(np.isfinite(width) & (width >= 0))
    if wrong.any():
        raise InputError(f"sigma has {width[wrong].flat[0]}; expected finite widths of at least 0.")
    if not 0 < truncate <= _MOST_WIDTHS:
        raise InputError(f"truncate is {truncate!r}; expected standard deviations above 0, at most {_MOST_WIDTHS:g}.")
    rows = np.ascontiguousarray(values).reshape(-1, len(grid))
    width = np.ascontiguousarray(np.broadcast_to(width, grid.shape))
    found = serve("convolve_lsf")(grid, rows, width, float(truncate), workers(threads))
    return found.reshape(values.shape)


@reference
def _convolve_lsf(
    wavelength: np.ndarray,
    flux: np.ndarray,
    sigma: np.ndarray,
    truncate: float,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> np.ndarray:
    """`flux[spectrum, wavelength]` convolved; a few pixels at a time, as products with a matrix of weights."""
    known = np.isfinite(flux)
    filled = np.where(known, flux, 0.0).astype(np.float64, copy=False)
    complete = bool(known.all())
    bins = np.diff(_edges(wavelength))
    low, high = wavelength - truncate * sigma, wavelength + truncate * sigma
    start, stop = np.searchsorted(wavelength, low, side="left"), np.searchsorted(wavelength, high, side="right")
    result = np.empty_like(flux)
    for begin in range(0, len(wavelength), _ROWS):
        seen = slice(begin, begin + _ROWS)
        reach = slice(start[seen].min(), stop[seen].max())
        distance = wavelength[seen, None] - wavelength[reach]  # [pixel seen, pixel within reach]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a width of 0 sees its own pixel only
            scaled = np.where(distance == 0, 0.0, distance / sigma[seen, None])
            weight = bins[reach] * np.exp(-0.5 * np.square(scaled))
        within = (wavelength[reach] >= low[seen, None]) & (wavelength[reach] <= high[seen, None])
        weight = np.where(within, weight, 0.0)
        total = weight.sum(axis=1) if complete else known[:, reach].astype(np.float64) @ weight.T
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 where nothing is known
            result[:, seen] = (filled[:, reach] @ weight.T) / total
    return result


def _edges(centers: np.ndarray) -> np.ndarray:
    """Edges of bins, half way between neighbours; one more than there are centres."""
    inner = (centers[:-1] + centers[1:]) / 2
    first = centers[0] - (centers[1] - centers[0]) / 2
    return np.concatenate([[first], inner, [centers[-1] + (centers[-1] - centers[-2]) / 2]])


def _spectra(name: str, values: ArrayLike, pixels: int) -> np.ndarray:
    array = floating(name, values)
    if not array.ndim or array.shape[-1] != pixels:
        raise InputError(f"{name} has shape {array.shape}; expected (..., {pixels}), one for each wavelength.")
    return array
