"""Which dimension of a file is time, level, latitude, longitude or ensemble member.

CF attributes of the coordinate decide (axis, standard_name, units), then common names. The standard form that the rest
of `astrozoo.data` works on has dimensions `(member, time, level, lat, lon)` under these names, latitude ascending and
longitude ascending without a seam.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr

from astrozoo.data.units import conversion, is_pressure
from astrozoo.errors import DataError

__all__ = [
    "DIMS",
    "horizontal_axes",
    "is_curvilinear",
    "is_periodic",
    "poles_on_grid",
    "standard_axes",
    "standard_latitude",
    "standard_longitude",
]

DIMS = ("member", "time", "level", "lat", "lon")

_NAMES = {
    "member": {"member", "realization", "realisation", "ensemble", "ens", "number", "member_id", "ensemble_member"},
    "time": {"time", "t", "times", "date", "valid_time", "time_counter", "month", "year", "day"},
    "level": {
        "level", "lev", "levels", "plev", "pressure", "pressure_level", "isobaricinhpa", "isobaric", "height",
        "altitude", "depth", "z", "alt", "sigma", "hybrid", "model_level", "bottom_top",
    },
    "lat": {"lat", "latitude", "latitudes", "rlat", "grid_latitude", "nav_lat", "nlat", "lats"},
    "lon": {"lon", "longitude", "longitudes", "rlon", "grid_longitude", "nav_lon", "nlon", "lons", "long"},
}  # fmt: skip
_STANDARD_NAMES = {
    "member": {"realization"},
    "time": {"time"},
    "level": {
        "air_pressure", "height", "altitude", "depth", "model_level_number", "geopotential_height",
        "atmosphere_hybrid_sigma_pressure_coordinate", "atmosphere_sigma_coordinate",
        "atmosphere_hybrid_height_coordinate", "height_above_reference_ellipsoid", "ocean_sigma_coordinate",
    },
    "lat": {"latitude", "grid_latitude"},
    "lon": {"longitude", "grid_longitude"},
}  # fmt: skip
_AXES = {"T": "time", "Z": "level", "Y": "lat", "X": "lon", "E": "member"}
_DEGREES = {
    "lat": {"degrees_north", "degree_north", "degree_n", "degrees_n", "degreen", "degreesn"},
    "lon": {"degrees_east", "degree_east", "degree_e", "degrees_e", "degreee", "degreese"},
}


def standard_axes(dataset: xr.Dataset, where: str) -> xr.Dataset:
    """Rename the recognised dimensions of a file to the standard names; others keep theirs.

    Args:
        dataset: As opened, coordinates decoded.
        where: Names the file in messages.

    Raises:
        DataError: Two dimensions of one variable play the same role, or the grid is curvilinear.
    """
    dataset = dataset.set_coords([name for name in dataset.data_vars if _places_a_dimension(dataset, name)])
    roles: dict[Hashable, str] = {}
    for dim in dataset.dims:
        role, coordinate = _role(dataset, dim)
        if role is None:
            continue
        if role in ("lat", "lon") and coordinate is None and is_curvilinear(dataset):
            raise DataError(
                f"the grid of {where} is curvilinear (two-dimensional latitudes); regrid it to latitude and longitude "
                "first."
            )
        if coordinate is not None and coordinate != dim:  # dimension `y` described by a coordinate `lat(y)`
            dataset = dataset.swap_dims({dim: coordinate})
            dim = coordinate
        roles[dim] = role
    for name, variable in dataset.data_vars.items():
        found = [roles[dim] for dim in variable.dims if dim in roles]
        for role in set(found):
            if found.count(role) > 1:
                clash = [str(dim) for dim in variable.dims if roles.get(dim) == role]
                raise DataError(
                    f"variable {name!r} of {where} has several {role} dimensions ({', '.join(clash)}); "
                    "select along one of them first."
                )
    # Dimensions that play one role in different variables (two level axes) can't share the name: the first keeps it.
    taken: set[str] = set()
    renames: dict[Hashable, Hashable] = {}
    for dim in sorted(roles, key=lambda dim: -_uses(dataset, dim)):
        if roles[dim] not in taken:
            taken.add(roles[dim])
            if dim != roles[dim]:
                renames[dim] = roles[dim]
    occupied = [name for name in renames.values() if name in dataset.variables and name not in renames]
    dataset = dataset.drop_vars(occupied).rename(renames)
    if "time" not in dataset.dims and "time" in dataset.coords and dataset["time"].ndim == 0:
        dataset = dataset.expand_dims("time")  # a file of one time step that kept time as a scalar
    if "level" in dataset.coords and "level" in dataset.dims:
        dataset = _pressure_in_hpa(dataset)
    return dataset


def horizontal_axes(dataset: xr.Dataset, where: str) -> tuple[tuple[Hashable, Hashable], tuple[Hashable, Hashable]]:
    """Dimension and coordinate of latitude, and of longitude, under the names that the dataset gives them.

    Raises:
        DataError: There are not exactly one latitude and one longitude, or the grid is curvilinear.
    """
    found: dict[str, list[tuple[Hashable, Hashable]]] = {"lat": [], "lon": []}
    for dim in dataset.dims:
        role, coordinate = _role(dataset, dim)
        if role in found and coordinate is not None:
            found[role].append((dim, coordinate))
    if is_curvilinear(dataset) and not all(found.values()):
        raise DataError(
            f"the grid of {where} is curvilinear (two-dimensional latitudes); expected one latitude for each row and "
            "one longitude for each column."
        )
    for role, axes in found.items():
        if len(axes) != 1:
            names = ", ".join(str(dim) for dim, _ in axes) or "none"
            raise DataError(f"{where} must have one {role} axis with coordinate values; found: {names}.")
    return found["lat"][0], found["lon"][0]


def standard_latitude(dataset: xr.Dataset, where: str) -> xr.Dataset:
    """The same fields with latitude ascending.

    Raises:
        DataError: Latitudes are not strictly monotonic, or outside -90..90.
    """
    lat = _degrees(dataset, "lat", where)
    if np.any(np.abs(lat) > 90.001):
        raise DataError(f"latitudes of {where} reach {lat[np.abs(lat).argmax()]:g}, expected -90 to 90 degrees north.")
    step = np.diff(lat)
    if not (np.all(step > 0) or np.all(step < 0)):
        raise DataError(f"latitudes of {where} are not strictly ascending or descending.")
    dataset = dataset.assign_coords(lat=("lat", np.clip(lat, -90.0, 90.0), {"units": "degrees_north", "axis": "Y"}))
    return dataset.isel(lat=slice(None, None, -1)) if step.size and step[0] < 0 else dataset


def standard_longitude(dataset: xr.Dataset, where: str) -> xr.Dataset:
    """The same fields with longitude ascending without a seam: 0..360 for a full circle.

    A region keeps its cells side by side: it starts in 0..360, or west of Greenwich (negative) when it crosses it. A
    column given twice (0 and 360) is dropped once.

    Raises:
        DataError: Longitudes are outside -360..720 or given more than once.
    """
    lon = _degrees(dataset, "lon", where)
    if np.any(lon < -360.001) or np.any(lon > 720.0):
        raise DataError(f"longitudes of {where} reach {lon[np.abs(lon).argmax()]:g}, expected degrees east.")
    turned = np.where((lon < 0) | (lon >= 360.0), np.mod(lon, 360.0), lon)
    turned[np.isclose(turned, 360.0, atol=1e-6)] = 0.0
    order = np.argsort(turned, kind="stable")
    if order.size > 1:
        distinct = np.diff(turned[order], prepend=-1.0) > 1e-6
        if (~distinct).sum() > 1:
            raise DataError(f"longitudes of {where} are given more than once.")
        order = order[distinct]
    ordered = turned[order]
    if not is_periodic(ordered) and ordered.size > 1:
        gaps = np.append(np.diff(ordered), ordered[0] + 360.0 - ordered[-1])
        start = (int(gaps.argmax()) + 1) % ordered.size
        if start:  # the region lies across Greenwich
            order = np.roll(order, -start)
            ordered = np.roll(ordered, -start)
            ordered = np.where(ordered >= ordered[0], ordered - 360.0, ordered)
    if not np.array_equal(order, np.arange(lon.size)):
        step = np.diff(order)
        # A slice stays lazy and reads what it needs; a rolled axis has to be gathered.
        dataset = dataset.isel(lon=slice(order[0], order[-1] + 1) if np.all(step == 1) else order)
    return dataset.assign_coords(lon=("lon", ordered, {"units": "degrees_east", "axis": "X"}))


def is_curvilinear(dataset: xr.Dataset) -> bool:
    """Whether latitudes or longitudes are given per cell, as fields of two dimensions or more."""
    return any(
        variable.ndim >= 2
        and (_geographic(variable) or str(name).lower().startswith(("lat", "lon", "nav_l", "xlat", "tlat", "ulat")))
        for name, variable in dataset.variables.items()
    )


def is_periodic(lon: np.ndarray) -> bool:
    """Whether ascending longitudes go once around the globe, so that the last column neighbours the first."""
    if lon.size < 2:
        return False
    steps = np.diff(lon)
    return bool(lon[0] + 360.0 - lon[-1] < 1.5 * np.median(steps) and steps.max() < 1.5 * np.median(steps))


def poles_on_grid(lat: np.ndarray) -> bool:
    """Whether the rows reach both poles: within one and a half spacings, which Gaussian grids also do."""
    if lat.size < 2:
        return False
    return bool(
        min(lat[0], lat[-1]) - 1.5 * abs(lat[1] - lat[0]) <= -90.0
        and max(lat[0], lat[-1]) + 1.5 * abs(lat[-1] - lat[-2]) >= 90.0
    )


def _role(dataset: xr.Dataset, dim: Hashable) -> tuple[str | None, Hashable | None]:
    """The role of a dimension and the coordinate that tells it."""
    candidates = [dim] if dim in dataset.coords else []
    candidates += [name for name in dataset.coords if name != dim and dataset[name].dims == (dim,)]
    for name in candidates:
        attrs = dataset[name].attrs
        units = str(attrs.get("units", "")).strip()
        for role, names in _STANDARD_NAMES.items():
            if attrs.get("standard_name") in names:
                return role, name
        for role, spellings in _DEGREES.items():
            if units.lower() in spellings:
                return role, name
        if attrs.get("axis") in ("T", "Z", "E") or (attrs.get("axis") in ("X", "Y") and units.startswith("degree")):
            return _AXES[attrs["axis"]], name
        if _has_dates(dataset[name]):
            return "time", name
        # CF marks a vertical coordinate by a unit of pressure, or by `positive`.
        if name == dim and (is_pressure(units) or str(attrs.get("positive", "")).lower() in ("up", "down")):
            return "level", name
    for role, names in _NAMES.items():
        # Cells of a projection, in metres, are no latitudes even where they are called so.
        units = str(dataset[dim].attrs.get("units", "")) if dim in dataset.coords else ""
        if str(dim).lower() in names and not (role in ("lat", "lon") and units in ("m", "km")):
            return role, (dim if dim in dataset.coords else None)
    for name in candidates:
        if name != dim and str(name).lower() in _NAMES["lat"] | _NAMES["lon"]:
            return ("lat" if str(name).lower() in _NAMES["lat"] else "lon"), name
    return None, None


def _has_dates(coordinate: xr.DataArray) -> bool:
    if coordinate.dtype.kind == "O":  # decoding takes the units away; what is left of them is the type of the dates
        return coordinate.size > 0 and hasattr(coordinate.values.flat[0], "calendar")
    return coordinate.dtype.kind == "M"


def _geographic(variable: xr.Variable) -> bool:
    attrs = variable.attrs
    return attrs.get("standard_name") in ("latitude", "longitude") or any(
        str(attrs.get("units", "")).strip().lower() in spellings for spellings in _DEGREES.values()
    )


def _places_a_dimension(dataset: xr.Dataset, name: Hashable) -> bool:
    """Whether a variable is the missing coordinate of its only dimension: `latitude(y)` that no attribute points to."""
    variable = dataset[name].variable
    return variable.ndim == 1 and variable.dims[0] not in dataset.coords and _geographic(variable)


def _uses(dataset: xr.Dataset, dim: Hashable) -> int:
    return sum(dim in variable.dims for variable in dataset.data_vars.values())


def _pressure_in_hpa(dataset: xr.Dataset) -> xr.Dataset:
    level = dataset["level"]
    units = str(level.attrs.get("units", ""))
    attrs = dict(level.attrs)
    values = level.values.astype(np.float64)
    if is_pressure(units):
        factor, offset = conversion(units, "hPa", "the level coordinate") or (1.0, 0.0)
        # 5e4 Pa is level 500, not 500.00000000000006.
        values = np.round(values * factor + offset, 9)
        attrs["units"] = "hPa"
    return dataset.assign_coords(level=("level", values, attrs))


def _degrees(dataset: xr.Dataset, dim: str, where: str) -> np.ndarray:
    if dim not in dataset.coords:
        raise DataError(f"dimension {dim!r} of {where} has no coordinate values, so its cells cannot be placed.")
    values = np.array(dataset[dim].values, dtype=np.float64)
    units = str(dataset[dim].attrs.get("units", ""))
    if units in ("radian", "radians", "rad"):
        values = np.rad2deg(values)
    if not np.all(np.isfinite(values)):
        raise DataError(f"coordinate {dim!r} of {where} holds missing values.")
    return values
