"""Regridding as one prepares training data: reanalysis to one degree, and a coarse model grid to another."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from astrozoo import accel
from astrozoo.accel.arrays import runs
from astrozoo.accel.cells import Overlaps, latitude_overlaps, longitude_overlaps
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]


def _axes(lats: int, lons: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of a global grid, with rows at the poles where their number is odd."""
    edge = 90.0 if lats % 2 else 90.0 - 90.0 / lats
    return np.linspace(-edge, edge, lats), np.arange(lons) * (360.0 / lons)


def _regrid(
    threads: int,
    *,
    fields: int,
    source: tuple[int, int],
    target: tuple[int, int],
    land: float,
    least_ratio: float,
) -> Setup:
    from scipy import sparse

    generator = np.random.default_rng(0)
    values = generator.normal(280.0, 15.0, (fields, *source)).astype(np.float32)
    if land:
        values[:, _continents(*source) < np.quantile(_continents(*source), land)] = np.nan
    (lat, lon), (to_lat, to_lon) = _axes(*source), _axes(*target)

    def matrix(overlaps: Overlaps, size: int) -> sparse.csr_matrix:
        count = np.diff(overlaps.start)
        cell = runs(overlaps.first, count) % size
        return sparse.csr_matrix((overlaps.weights, cell, overlaps.start), shape=(len(count), size))

    rows, columns = latitude_overlaps(lat, to_lat), longitude_overlaps(lon, to_lon)
    weights = sparse.kron(matrix(rows, source[0]), matrix(columns, source[1]), format="csr")
    narrow = weights.astype(np.float32)
    flat = values.reshape(fields, -1)

    def as_xesmf() -> np.ndarray:
        """One matrix of double precision over all pairs of cells, and a second product with what is known (skipna)."""
        missing = np.isnan(flat)
        total = weights @ np.where(missing, np.float32(0), flat).T
        return shares(total, weights @ (~missing).T.astype(np.float64)).astype(np.float32)

    def in_float32() -> np.ndarray:
        """The least that the product of matrices can do: half the precision, no second product without need."""
        missing = np.isnan(flat)
        if not missing.any():
            return (narrow @ flat.T).T.reshape(fields, *target)
        total = narrow @ np.where(missing, np.float32(0), flat).T
        return shares(total, narrow @ (~missing).T.astype(np.float32))

    def shares(total: np.ndarray, share: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(share >= 0.5 - 1e-6, total / share, np.nan).T.reshape(fields, *target)

    def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
        same = np.isnan(ours) == np.isnan(theirs)  # shares of a half may fall either way in float32
        return float(np.nanmax(np.abs(ours / theirs - 1))) + float(np.mean(~same) > 1e-4)

    return Setup(
        ours=lambda: accel.regrid_conservative(values, lat, lon, to_lat, to_lon, threads=threads),
        peers={
            "scipy as xESMF": Peer(as_xesmf, "scipy", target=least_ratio, difference=difference, error=1e-5),
            "scipy float32": Peer(in_float32, "scipy", difference=difference, error=1e-5, why="it sums in float32"),
        },
        floor=Floor(read=values.nbytes, written=4 * fields * target[0] * target[1]),
    )


def _continents(lats: int, lons: int) -> np.ndarray:
    """Smooth heights on the sphere, the same on every grid: land is where they are low."""
    lat, lon = np.meshgrid(np.linspace(-1.5, 1.5, lats), np.linspace(0, 2 * np.pi, lons, endpoint=False), indexing="ij")
    return np.cos(lat) * np.sin(2 * lon + 3 * lat) + np.sin(2 * lat) * np.cos(3 * lon)


_QUARTER: dict[str, Any] = {"fields": 8, "source": (721, 1440), "target": (181, 360), "least_ratio": 15.0}
_COARSE: dict[str, Any] = {"fields": 64, "source": (46, 72), "target": (32, 64), "least_ratio": 1.5}

CASES = [
    Case(
        "regrid_conservative",
        "8 fields 721 x 1440 to 181 x 360, 29 % land, float32",
        partial(_regrid, land=0.29, **_QUARTER),
        needs={"scipy as xESMF": "scipy", "scipy float32": "scipy"},
    ),
    Case(
        "regrid_conservative",
        "8 fields 721 x 1440 to 181 x 360, nothing missing, float32",
        partial(_regrid, land=0.0, **_QUARTER),
        needs={"scipy as xESMF": "scipy", "scipy float32": "scipy"},
    ),
    Case(
        "regrid_conservative",
        "64 fields 46 x 72 to 32 x 64, 29 % land, float32",
        partial(_regrid, land=0.29, **_COARSE),
        needs={"scipy as xESMF": "scipy", "scipy float32": "scipy"},
    ),
]
