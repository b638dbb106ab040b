"""Trends of light curves as Kepler and TESS deliver them: four years at 29.4 minutes, a sector at 2 minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CASES"]

Curve = tuple[np.ndarray, np.ndarray]

_TARGETS = {"median": 3.0, "biweight": 1.2}
_KERNELS = {"median": "median_filter_time", "biweight": "biweight_detrend"}


def _kepler() -> Curve:
    """65,000 cadences of a spotted star in 17 quarters with gaps of up to three weeks; 1 % are missing."""
    generator = np.random.default_rng(0)
    time = np.arange(75_000) * 29.4244 / 1440
    keep = np.ones(time.size, bool)
    for quarter in range(0, time.size, 4_400):
        keep[quarter : quarter + int(generator.integers(40, 1_000))] = False
    time = time[keep][:65_000]
    flux = 1 + 0.003 * np.sin(2 * np.pi * time / 12.3) + 2e-4 * generator.standard_normal(time.size)
    flux[generator.random(time.size) < 0.01] = np.nan
    return time, flux


def _tess() -> Curve:
    """18,000 cadences at 2 minutes, with the gap of the downlink."""
    time = np.delete(np.arange(20_000) * 120 / 86_400, slice(9_000, 11_000))
    noise = 5e-4 * np.random.default_rng(0).standard_normal(time.size)
    return time, 1 + 0.003 * np.sin(2 * np.pi * time / 5.3) + noise


def _trend(method: str, curve: Callable[[], Curve], window: float) -> Callable[[int], Setup]:
    def prepare(threads: int) -> Setup:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numba, about the system's threading layer
            import wotan

        time, flux = curve()
        kernel = getattr(accel, _KERNELS[method])

        def with_wotan() -> np.ndarray:
            trend: np.ndarray = wotan.flatten(time, flux, window_length=window, method=method, return_trend=True)[1]
            return trend

        def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
            return float(np.nanmax(np.abs(ours / theirs - 1))) if _same_gaps(ours, theirs) else np.inf

        peers: Mapping[str, Peer] = {
            "wotan": Peer(with_wotan, "wotan", target=_TARGETS[method], difference=difference, error=1e-8)
        }
        return Setup(
            ours=lambda: kernel(time, flux, window, threads=threads),
            peers=peers,
            floor=Floor(read=time.nbytes + flux.nbytes, written=flux.nbytes),
            notes=["wotan is compiled by numba before it is timed, and uses all cores"],
        )

    return prepare


def _same_gaps(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(np.isnan(one), np.isnan(other)))


CASES = [
    Case(_KERNELS[method], f"{size}, window {window:g} d", _trend(method, curve, window), needs={"wotan": "wotan"})
    for method in _KERNELS
    for size, curve, window in (
        ("65,000 cadences at 29.4 min", _kepler, 0.75),
        ("65,000 cadences at 29.4 min", _kepler, 2.0),
        ("18,000 cadences at 2 min", _tess, 0.5),
    )
]
