"""Transit searches as a survey runs them for each star: four years of Kepler, one sector of TESS."""

from __future__ import annotations

from functools import partial

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]

_DURATIONS = (0.05, 0.1, 0.2, 0.4)


def _search(threads: int, *, cadences: int, cadence: float, longest: float, count: int) -> Setup:
    generator = np.random.default_rng(0)
    time = 131.5 + cadence * np.sort(generator.choice(int(1.08 * cadences), cadences, replace=False))
    error = 1e-4 * generator.uniform(0.8, 1.2, cadences)
    flux = 1.0 + error * generator.normal(size=cadences)
    flux[(time - 133.2) % 9.876 < 0.15] -= 3e-4
    periods = np.linspace(0.5, longest, count)

    def with_astropy() -> np.ndarray:
        from astropy.timeseries import BoxLeastSquares

        search = BoxLeastSquares(time, flux, error)
        found = search.power(periods, _DURATIONS, objective="likelihood", method="fast", oversample=10)
        return np.stack([getattr(found, name) for name in accel.BoxSearch._fields])

    def difference(ours: accel.BoxSearch, theirs: np.ndarray) -> float:
        return float(np.max(np.abs(np.stack(ours) / theirs - 1)))

    return Setup(
        ours=lambda: accel.box_least_squares(
            time, flux, error, periods=periods, durations=_DURATIONS, oversample=10, threads=threads
        ),
        peers={"astropy": Peer(with_astropy, "astropy", target=3.0, difference=difference, error=1e-9)},
        # Each cadence is folded, divided into bins and added to one, at each period: six operations at the least.
        floor=Floor(flops=6 * cadences * count),
    )


CASES = [
    Case(
        "box_least_squares",
        "65,000 cadences over 4 years, 2,000 periods, 4 durations",
        partial(_search, cadences=65_000, cadence=0.0204344, longest=100.0, count=2000),
        needs={"astropy": "astropy"},
    ),
    Case(
        "box_least_squares",
        "20,000 cadences over 30 days, 5,000 periods, 4 durations",
        partial(_search, cadences=20_000, cadence=2 / 1440, longest=13.0, count=5000),
        needs={"astropy": "astropy"},
    ),
]
