"""Regridding between latitude-longitude grids."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating, runs
from astrozoo.accel.cells import latitude_overlaps, longitude_overlaps
from astrozoo.accel.dispatch import reference, serve
from astrozoo.accel.threads import workers
from astrozoo.errors import InputError

__all__ = ["regrid_conservative"]

_SHARE_ERROR = 1e-6  # axes are often float32, so shares of a cell are no more exact than this


def regrid_conservative(
    values: ArrayLike,
    source_lat: ArrayLike,
    source_lon: ArrayLike,
    target_lat: ArrayLike,
    target_lon: ArrayLike,
    *,
    min_known: float = 0.5,
    threads: int | None = None,
) -> np.ndarray:
    """First-order conservative regridding: the mean over the known area of each target cell (SCRIP, Jones 1999).

    The weight of a source cell is the area of its overlap with the target cell on the sphere. NaN counts as missing,
    and so does what lies outside a regional source grid. Where nothing is missing, the integral over the sphere is
    that of the source; constants stay constant always.

    A target cell is NaN where less than `min_known` of its area is known. The default, half of it, keeps the area
    that is known about the same; `min_known=0` takes any known area (xESMF's `skipna=True`), which lets land or sea
    grow by a target cell along every coast, and `min_known=1` only whole cells. Shares are compared up to a millionth.

    Args:
        values: `[..., lat, lon]`, float32 or float64; other real numbers are converted. Infinities are values.
        source_lat: Degrees north: centres `[lat]`, ascending or descending, or bounds `[lat, 2]`. Between centres the
            bounds are midpoints; the outermost ones lie half a spacing outward, or at the pole where they would
            pass it or where the centre is closer to it than a spacing (Gaussian grids).
        source_lon: Degrees east: centres `[lon]` or bounds `[lon, 2]`, with any origin, eastward or westward. Centres
            that go once around the globe (up to a gap below one and a half spacings) make a periodic grid. Bounds of
            several cells that lie more than 180 degrees apart mean the cell across the seam.
        target_lat: As `source_lat`, of the target.
        target_lon: As `source_lon`, of the target.
        min_known: Least share of a target cell's area that must be known, 0 to 1.
        threads: See `astrozoo.accel.threads.workers`.

    Returns:
        `[..., target_lat, target_lon]` in the dtype of `values`; sums are kept in float64.

    Raises:
        InputError: Axes that describe no cells or do not fit `values`, or `min_known` outside 0 to 1.
    """
    array = floating("values", values)
    if array.ndim < 2:
        raise InputError(f"values has shape {array.shape}; expected (..., lat, lon).")
    for axis, name, coordinate in ((-2, "source_lat", source_lat), (-1, "source_lon", source_lon)):
        size = np.shape(coordinate)[0] if np.ndim(coordinate) else 0
        if size != array.shape[axis]:
            raise InputError(
                f"{name} has {size} cells and values has shape {array.shape}; expected one for each of its "
                f"{array.shape[axis]} {'rows' if axis == -2 else 'columns'}."
            )
    if not 0.0 <= min_known <= 1.0:
        raise InputError(f"min_known is {min_known}; expected a share from 0 to 1.")
    rows, columns = latitude_overlaps(source_lat, target_lat), longitude_overlaps(source_lon, target_lon)
    least = max(min_known - _SHARE_ERROR, _SHARE_ERROR)
    fields = np.ascontiguousarray(array).reshape(math.prod(array.shape[:-2]), *array.shape[-2:])
    regridded = serve("regrid_conservative")(fields, *rows, *columns, least, workers(threads))
    return regridded.reshape(*array.shape[:-2], *regridded.shape[1:])


@reference
def _regrid_conservative(
    values: np.ndarray,
    lat_first: np.ndarray,
    lat_start: np.ndarray,
    lat_weights: np.ndarray,
    lon_first: np.ndarray,
    lon_start: np.ndarray,
    lon_weights: np.ndarray,
    least: float,
    threads: int,  # noqa: ARG001 - NumPy has one thread
) -> np.ndarray:
    """`[field, target_lat, target_lon]` of `values[field, lat, lon]` and the overlaps along both axes."""

    def cells(field: np.ndarray) -> np.ndarray:
        rows = _weighted(field, lat_first, lat_start, lat_weights, axis=0)
        return _weighted(rows, lon_first, lon_start, lon_weights, axis=1)

    result = np.empty((len(values), len(lat_first), len(lon_first)), dtype=values.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf, and 0 / 0 where nothing is known
        for field, regridded in zip(values, result, strict=True):
            missing = np.isnan(field)
            share = cells(np.where(missing, 0.0, 1.0))
            total = cells(np.where(missing, 0.0, field).astype(np.float64))
            regridded[...] = np.where(share >= least, total / share, np.nan)
    return result


def _weighted(values: np.ndarray, first: np.ndarray, start: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Weighted sums over runs of neighbours along `axis`, around its end; an empty run's is 0."""
    count = np.diff(start)
    shape = list(values.shape)
    shape[axis] = len(first)
    sums = np.zeros(shape)
    if weights.size:
        cells = np.take(values, runs(first, count), axis=axis, mode="wrap")
        chosen = cells * (weights if axis == 1 else weights[:, None])
        some = count > 0
        sums[(slice(None),) * axis + (some,)] = np.add.reduceat(chosen, start[:-1][some], axis=axis)
    return sums
