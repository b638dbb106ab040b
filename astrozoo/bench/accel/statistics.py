"""Statistics of a cube of 126 MB with gaps, as a data pipeline sees it once per training part."""

from __future__ import annotations

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]


def _cube() -> np.ndarray:
    """`[variable, time, lat, lon]`, float32, 2 % missing."""
    generator = np.random.default_rng(0)
    cube = generator.normal(280.0, 15.0, (5, 608, 72, 144)).astype(np.float32)
    cube[generator.random(cube.shape, dtype=np.float32) < 0.02] = np.nan
    return cube


def _nan_stats(threads: int) -> Setup:
    import bottleneck

    cube = _cube()
    rows = cube.reshape(len(cube), -1)

    def with_bottleneck() -> np.ndarray:
        known = [cube[0].size - np.count_nonzero(np.isnan(row)) for row in rows]
        return np.array([
            [count, bottleneck.nanmean(row), bottleneck.nanstd(row), bottleneck.nanmin(row), bottleneck.nanmax(row)]
            for count, row in zip(known, rows, strict=True)
        ])  # fmt: skip

    def with_numpy() -> np.ndarray:
        known = np.count_nonzero(~np.isnan(rows), axis=1)
        functions = (np.nanmean, np.nanstd, np.nanmin, np.nanmax)
        return np.stack([known, *(function(rows, axis=1) for function in functions)], axis=1)

    def difference(ours: accel.NanStats, theirs: np.ndarray) -> float:
        return float(np.max(np.abs(np.stack(ours, axis=1) / theirs - 1)))

    return Setup(
        ours=lambda: accel.nan_stats(cube, threads=threads),
        peers={
            "bottleneck": Peer(
                with_bottleneck, "bottleneck", target=10.0, difference=difference, error=0.5, why="it sums in float32"
            ),
            "numpy": Peer(with_numpy, "numpy", difference=difference),
        },
        floor=Floor(read=cube.nbytes),
    )


def _quantiles(threads: int) -> Setup:
    cube, wanted = _cube(), (0.01, 0.25, 0.5, 0.75, 0.99)
    rows = cube.reshape(len(cube), -1)

    def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float(np.max(np.abs(ours - theirs)))

    return Setup(
        ours=lambda: accel.quantiles(cube, wanted, threads=threads),
        peers={
            "numpy": Peer(
                lambda: np.nanquantile(rows, wanted, axis=1), "numpy", target=4.0, difference=difference, error=1e-3,
                why="it interpolates in float32",
            )
        },
        floor=Floor(read=cube.nbytes),
    )  # fmt: skip


CASES = [
    Case("nan_stats", "5 variables, 126 MB, float32", _nan_stats, needs={"bottleneck": "bottleneck"}),
    Case("quantiles", "5 quantiles of 5 variables, 126 MB, float32", _quantiles, rounds=9),
]
