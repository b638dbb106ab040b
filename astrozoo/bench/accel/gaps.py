"""Infill of a cube of 126 MB along time, 10 % of it missing in runs, as clouds or a failing sensor leave it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]


def _cube() -> np.ndarray:
    """`[variable, time, lat, lon]`, float32, with gaps of 1 to 9 times."""
    generator = np.random.default_rng(0)
    cube = generator.normal(280.0, 15.0, (5, 608, 72, 144)).astype(np.float32)
    length = 9
    starts = generator.random(cube.shape, dtype=np.float32) < 0.1 / 5  # gaps are 5 long in the mean
    for lag in range(length):
        shown = starts[:, : cube.shape[1] - lag] & (
            generator.random(cube[:, lag:].shape, dtype=np.float32) < 1 - lag / 9
        )
        cube[:, lag:][shown] = np.nan
    return cube


@functools.cache
def _numba_fill() -> Callable[..., Any]:
    """The same walk along time, a column at a time within a latitude row, on all cores."""
    import numba

    @numba.njit(parallel=True)
    def fill(cube: Any, times: Any) -> Any:
        outer, length, inner = cube.shape
        filled = np.empty_like(cube)
        width = 256
        blocks = (inner + width - 1) // width
        for task in numba.prange(outer * blocks):
            part, block = task // blocks, task % blocks
            first, last = block * width, min((block + 1) * width, inner)
            before = np.full(width, -1, np.int64)
            for now in range(length):
                for column in range(first, last):
                    value = cube[part, now, column]
                    filled[part, now, column] = value
                    if value == value:
                        start = before[column - first]
                        if start >= 0 and start < now - 1:
                            y0 = np.float64(cube[part, start, column])
                            slope = (np.float64(value) - y0) / (times[now] - times[start])
                            for row in range(start + 1, now):
                                filled[part, row, column] = np.float32(y0 + slope * (times[row] - times[start]))
                        before[column - first] = now
        return filled

    return fill


def _fill_gaps(threads: int) -> Setup:
    import xarray

    cube = _cube()
    fields = xarray.DataArray(cube, dims=("variable", "time", "lat", "lon"))
    flat, times = cube.reshape(5, 608, -1), np.arange(608.0)

    def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
        theirs = theirs.reshape(ours.shape)
        if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
            return np.inf
        return float(np.nanmax(np.abs(ours - theirs)))

    peers = {
        "xarray": Peer(
            lambda: fields.interpolate_na("time").values, "xarray", target=10.0, difference=difference, error=1e-4
        ),
        "numba": Peer(
            lambda: _numba_fill()(flat, times), "numba", target=1.2, difference=difference, error=1e-4,
            why="the same walk in blocks, njit(parallel=True)",
        ),
    }  # fmt: skip
    return Setup(
        lambda: accel.fill_gaps(cube, axis=1, threads=threads), peers, Floor(read=cube.nbytes, written=cube.nbytes)
    )


CASES = [
    Case(
        "fill_gaps", "608 times x 10,368 cells x 5 variables, 126 MB, float32", _fill_gaps,
        needs={"xarray": "xarray", "numba": "numba"}, rounds=11,
    ),
]  # fmt: skip
