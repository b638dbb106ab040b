"""Fields from one latitude-longitude grid to another, keeping area means."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from astrozoo.accel import regrid_conservative
from astrozoo.accel.cells import latitude_overlaps, longitude_overlaps
from astrozoo.data.axes import horizontal_axes
from astrozoo.errors import DataError, InputError

__all__ = ["regrid"]

Fields = TypeVar("Fields", xr.Dataset, xr.DataArray)

_UNNAMED = "_regridded_field"


def regrid(fields: Fields, lat: ArrayLike, lon: ArrayLike, *, min_known: float = 0.5) -> Fields:
    """First-order conservative regridding of every variable with latitude and longitude.

    Each target cell gets the mean over its known area; see `astrozoo.accel.regrid_conservative`. Cells of the source
    come from the CF bounds of its coordinates where the dataset has them, else from midpoints. Fields on dask stay
    lazy; each chunk holds whole maps.

    Args:
        fields: On a rectilinear grid, under any names that CF attributes or usage tell.
        lat: Target latitudes in degrees north: centres `[lat]`, or bounds `[lat, 2]` whose midpoints become the
            coordinate. The attributes of a DataArray are kept.
        lon: Target longitudes in degrees east, likewise.
        min_known: Least share of a target cell's area that must be known for it not to become NaN.

    Returns:
        The same variables in the same order of dimensions, with their attributes. Variables without latitude and
        longitude pass. What stands on one of the two alone, or is a coordinate on both (bounds, Gaussian weights, cell
        areas), described the old cells and is left out.

    Raises:
        DataError: The grid is not rectilinear, its coordinates describe no cells, or a variable holds no numbers.
        InputError: The target axes describe no cells, or `min_known` is outside 0 to 1.
    """
    if isinstance(fields, xr.DataArray):
        regridded = regrid(fields.to_dataset(name=_UNNAMED), lat, lon, min_known=min_known)
        return regridded[_UNNAMED].rename(fields.name)
    (lat_dim, lat_name), (lon_dim, lon_name) = horizontal_axes(fields, "the fields")
    source = _cells(fields, lat_name), _cells(fields, lon_name)
    target = np.asarray(lat), np.asarray(lon)
    try:
        latitude_overlaps(source[0], source[0])
        longitude_overlaps(source[1], source[1])
    except InputError as error:
        raise DataError(f"the grid of the fields has no cells: {error}") from error
    latitude_overlaps(source[0], target[0])  # a mistake in the target is found here, not when dask computes
    longitude_overlaps(source[1], target[1])
    dims = (lat_dim, lon_dim)
    result = fields.drop_vars([
        name for name, variable in fields.variables.items()
        if set(dims) & set(variable.dims) and not (name in fields.data_vars and set(dims) <= set(variable.dims))
    ])  # fmt: skip
    made = {
        name: _regridded(variable, dims, source, target, min_known)
        for name, variable in result.data_vars.items()
        if set(dims) <= set(variable.dims)
    }
    coordinates = {
        name: (dim, _centres(axis), _attributes(given, fields[name]))
        for dim, name, axis, given in zip(dims, (lat_name, lon_name), target, (lat, lon), strict=True)
    }
    kept = result.drop_vars(list(made))
    order = [name for name in fields.data_vars if name in made or name in kept.data_vars]
    return kept.assign_coords(coordinates).assign(made)[order]


def _regridded(
    variable: xr.DataArray,
    dims: tuple[object, object],
    source: tuple[np.ndarray, np.ndarray],
    target: tuple[np.ndarray, np.ndarray],
    min_known: float,
) -> xr.DataArray:
    if variable.dtype.kind not in "fiub":
        raise DataError(f"variable {variable.name!r} has dtype {variable.dtype}; expected numbers, or leave it out.")
    lazy = variable.chunks is not None
    sizes = {dim: len(axis) for dim, axis in zip(dims, target, strict=True)}
    dtype = np.float32 if variable.dtype.kind == "f" and variable.dtype.itemsize <= 4 else np.float64
    call = partial(
        regrid_conservative,
        source_lat=source[0],
        source_lon=source[1],
        target_lat=target[0],
        target_lon=target[1],
        min_known=min_known,
        threads=1 if lazy else None,  # dask has a thread for each core already
    )
    made = xr.apply_ufunc(
        call,
        variable,
        input_core_dims=[list(dims)],
        output_core_dims=[list(dims)],
        exclude_dims=set(dims),
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": sizes, "allow_rechunk": True},
        keep_attrs=True,
    )
    return made.transpose(*variable.dims)


def _cells(fields: xr.Dataset, name: object) -> np.ndarray:
    """CF bounds `[n, 2]` of a coordinate where there are some, else its centres, in degrees."""
    coordinate = fields[name]
    bounds = coordinate.attrs.get("bounds")
    cells = coordinate
    if bounds in fields.variables and fields[bounds].shape == (coordinate.size, 2):
        cells = fields[bounds]
    values = np.asarray(cells.values, dtype=np.float64)
    return np.rad2deg(values) if str(coordinate.attrs.get("units", "")).startswith("rad") else values


def _centres(axis: np.ndarray) -> np.ndarray:
    return axis if axis.ndim == 1 else axis.mean(axis=1)


def _attributes(given: ArrayLike, source: xr.DataArray) -> dict[str, object]:
    """Attributes of the new coordinate: its own, else those of the old one, less what described the old cells."""
    attrs = given.attrs if isinstance(given, xr.DataArray) else source.attrs
    kept = {key: value for key, value in attrs.items() if key != "bounds"}
    if str(kept.get("units", "")).startswith("rad"):
        kept["units"] = "degrees"
    return kept
