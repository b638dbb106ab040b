"""The line spread as one would write it with numba: compiled, on all cores, weights computed once for many spectra."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["spread_with_numba"]


def spread_with_numba(
    wavelength: np.ndarray, flux: np.ndarray, sigma: np.ndarray, truncate: float
) -> Callable[[], np.ndarray]:
    """A call that computes what `astrozoo.accel.convolve_lsf` does, compiled when it is first made."""
    compiled: list[Callable[..., np.ndarray]] = []

    def call() -> np.ndarray:
        if not compiled:
            compiled.append(_compile(len(flux)))
        return compiled[0](wavelength, flux, sigma, truncate)

    return call


def _compile(spectra: int) -> Callable[..., np.ndarray]:
    import numba

    # Sums may be reordered, so that they vectorise; NaN keeps its meaning.
    jit = numba.njit(parallel=True, fastmath={"reassoc", "contract", "arcp", "nsz"})
    prange = numba.prange

    @numba.njit
    def bins_of(wavelength):  # type: ignore[no-untyped-def]
        bins = np.empty_like(wavelength)
        bins[0], bins[-1] = wavelength[1] - wavelength[0], wavelength[-1] - wavelength[-2]
        bins[1:-1] = (wavelength[2:] - wavelength[:-2]) / 2
        return bins

    @jit
    def one(wavelength, flux, sigma, truncate):  # type: ignore[no-untyped-def]
        bins = bins_of(wavelength)
        result = np.empty_like(flux)
        for i in prange(len(wavelength)):
            start = np.searchsorted(wavelength, wavelength[i] - truncate * sigma[i])
            stop = np.searchsorted(wavelength, wavelength[i] + truncate * sigma[i], side="right")
            scale = -0.5 / (sigma[i] * sigma[i])
            for row in range(len(flux)):
                total = known = 0.0
                for j in range(start, stop):
                    distance = wavelength[i] - wavelength[j]
                    weight = bins[j] * math.exp(scale * distance * distance)
                    value = flux[row, j]
                    if value == value:
                        total += weight * value
                        known += weight
                result[row, i] = total / known
        return result

    @jit
    def many(wavelength, flux, sigma, truncate):  # type: ignore[no-untyped-def]
        bins = bins_of(wavelength)
        pixels = len(wavelength)
        start = np.searchsorted(wavelength, wavelength - truncate * sigma)
        stop = np.searchsorted(wavelength, wavelength + truncate * sigma, side="right")
        weights = np.zeros((pixels, np.max(stop - start)))
        sums = np.empty(pixels)
        for i in prange(pixels):
            scale = -0.5 / (sigma[i] * sigma[i])
            for j in range(start[i], stop[i]):
                distance = wavelength[i] - wavelength[j]
                weights[i, j - start[i]] = bins[j] * math.exp(scale * distance * distance)
            sums[i] = weights[i].sum()
        result = np.empty_like(flux)
        for row in prange(len(flux)):
            spectrum = flux[row]
            complete = not np.isnan(spectrum.sum())
            for i in range(pixels):
                first, count = start[i], stop[i] - start[i]
                total = known = 0.0
                if complete:
                    for k in range(count):
                        total += weights[i, k] * spectrum[first + k]
                    known = sums[i]
                else:
                    for k in range(count):
                        value = spectrum[first + k]
                        there = value == value
                        total += weights[i, k] * value if there else 0.0
                        known += weights[i, k] if there else 0.0
                result[row, i] = total / known
        return result

    return one if spectra == 1 else many
