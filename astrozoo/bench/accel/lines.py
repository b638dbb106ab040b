"""The cross-section of a molecule, line by line: 1,000 cm-1 in steps of a hundredth."""

from __future__ import annotations

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]

_CUTOFF = 25.0


def _voigt(threads: int) -> Setup:
    from scipy.special import voigt_profile

    generator = np.random.default_rng(0)
    grid = 4000.0 + 0.01 * np.arange(100_000)
    centers = np.sort(generator.uniform(grid[0], grid[-1], 2000))
    strengths, gamma = generator.lognormal(0.0, 2.0, 2000), generator.uniform(0.01, 0.1, 2000)
    sigma = 2e-6 * centers  # water at 1,000 K

    def with_scipy() -> np.ndarray:
        result = np.zeros_like(grid)
        first = np.searchsorted(grid, centers - _CUTOFF)
        last = np.searchsorted(grid, centers + _CUTOFF, side="right")
        for k, (begin, end) in enumerate(zip(first, last, strict=True)):
            result[begin:end] += strengths[k] * voigt_profile(grid[begin:end] - centers[k], sigma[k], gamma[k])
        return result

    def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float(np.max(np.abs(ours / theirs - 1)))

    values = int(np.sum(np.minimum(centers + _CUTOFF, grid[-1]) - np.maximum(centers - _CUTOFF, grid[0])) / 0.01)
    return Setup(
        ours=lambda: accel.voigt_cross_section(grid, centers, strengths, sigma, gamma, cutoff=_CUTOFF, threads=threads),
        peers={"scipy": Peer(with_scipy, "scipy", target=20.0, difference=difference, error=1e-9)},
        floor=Floor(read=grid.nbytes, written=grid.nbytes, flops=20 * values),
        notes=[f"{values:,} values of profiles; the floor counts 20 operations for each, at the speed of float32"],
    )


CASES = [
    Case("voigt_cross_section", "2,000 lines on 100,000 points, cutoff 25", _voigt, needs={"scipy": "scipy"}, rounds=7),
]
