"""Spectra as a retrieval or a survey sees them: a thousand brought to an instrument, or one at high resolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup
from astrozoo.bench.accel.spectra_numba import spread_with_numba

__all__ = ["CASES"]


def _spectra(count: int, pixels: int) -> np.ndarray:
    return np.random.default_rng(0).normal(1.0, 0.1, (count, pixels))


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.max(np.abs(ours - theirs)))


def _rebin(count: int) -> Callable[[int], Setup]:
    def prepare(threads: int) -> Setup:
        from spectres import spectres

        old, new = np.geomspace(0.6, 5.0, 10_000), np.geomspace(0.62, 4.9, 1000)
        flux = _spectra(count, len(old))
        error = 0.1 * np.abs(flux)
        if count == 1:
            flux, error = flux[0], error[0]

        def difference(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> float:
            return max(map(_apart, ours, theirs))

        return Setup(
            ours=lambda: accel.rebin_flux(old, flux, new, error, threads=threads),
            peers={
                "spectres": Peer(
                    lambda: spectres(new, old, flux, error, fill=np.nan, verbose=False),
                    "spectres",
                    target=10.0,
                    difference=difference,
                    error=1e-12,
                )
            },
            floor=Floor(read=flux.nbytes + error.nbytes, written=2 * 8 * count * len(new)),
            calls=20 if count == 1 else 1,
        )

    return prepare


def _spread(count: int, pixels: int, sampling: float, resolving_power: float) -> Callable[[int], Setup]:
    def prepare(threads: int) -> Setup:
        wavelength = np.exp(np.arange(pixels) / sampling)
        sigma = accel.lsf_sigma(wavelength, resolving_power)
        flux = _spectra(count, pixels)
        reach = 2 * 5 * sampling / (2.3548 * resolving_power)
        return Setup(
            ours=lambda: accel.convolve_lsf(wavelength, flux, sigma, threads=threads),
            peers={
                "numba": Peer(
                    spread_with_numba(wavelength, flux, sigma, truncate=5.0),
                    "numba",
                    target=2.5,
                    difference=_apart,
                    error=1e-12,
                    why="the same sums, compiled for all cores, with weights that many spectra share",
                )
            },
            floor=Floor(read=flux.nbytes, written=flux.nbytes, flops=int(2 * flux.size * reach)),
        )

    return prepare


CASES = [
    Case(
        "rebin_flux",
        "1,000 spectra of 10,000 bins to 1,000, float64 with errors",
        _rebin(1000),
        needs={"spectres": "spectres"},
    ),
    Case("rebin_flux", "1 spectrum of 10,000 bins to 1,000, with errors", _rebin(1), needs={"spectres": "spectres"}),
    Case(
        "convolve_lsf",
        "1,000 spectra of 4,000 pixels, R = 10,000 to 1,000",
        _spread(1000, 4000, 10_000, 1000),
        needs={"numba": "numba"},
    ),
    Case(
        "convolve_lsf",
        "1 spectrum of 100,000 pixels, R = 47,000 to 2,700",
        _spread(1, 100_000, 47_000, 2700),
        needs={"numba": "numba"},
    ),
]
