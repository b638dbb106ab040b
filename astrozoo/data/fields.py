"""`open_fields`: NetCDF and Zarr files as one xarray Dataset in standard form.

Whatever the files call their dimensions, whichever way their latitudes run, wherever their longitudes start: the result
has dimensions `(member, time, level, lat, lon)` (those that exist, in this order), latitude ascending, longitude
0..360 or contiguous for a region, pressure levels in hPa, missing values as NaN. Nothing is read but coordinates; what
has to be computed on the way (units converted, files joined) is left to dask, in pieces along time.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from astrozoo.data.axes import DIMS, is_curvilinear, standard_axes, standard_latitude, standard_longitude
from astrozoo.data.splits import date_of
from astrozoo.data.units import conversion, same_unit
from astrozoo.errors import BackendUnavailableError, ConfigError, DataError
from astrozoo.registry.names import suggest

__all__ = ["convert", "open_fields"]

PathLike = str | Path
_COMBINE = ("auto", "time", "member", "variables")
_STANDARD_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_PIECE_BYTES = 4 << 20  # of a dask array: about one global field at a quarter of a degree
_STORED_BYTES = 64 << 20  # chunks of a file are kept whole up to here


def open_fields(
    paths: PathLike | Sequence[PathLike] | xr.Dataset,
    variables: str | Sequence[str] | None = None,
    *,
    engine: str | None = None,
    chunks: Mapping[str, int] | str | None = None,
    combine: str = "auto",
    units: Mapping[str, str] | None = None,
    levels: Sequence[float] | None = None,
    decode_times: bool = True,
) -> xr.Dataset:
    """Open files lazily as fields in standard form.

    Args:
        paths: A file, a folder of Zarr, a pattern such as `"t2m_*.nc"`, or several of these; or a Dataset that xarray
            has opened already.
        variables: Names to keep, in this order; by default every variable on the latitude-longitude grid and every
            forcing that depends on time alone.
        engine: What xarray reads with (`"netcdf4"`, `"h5netcdf"`, `"scipy"`, `"zarr"`); by default it decides.
        chunks: Sizes of dask chunks by standard dimension name, or `"auto"`, for data larger than memory. Several files
            are opened with dask in any case.
        combine: How several files fit together: along `"time"`, as ensemble `"member"`s, as different `"variables"` of
            one grid, or `"auto"`: whichever their contents allow, also one within another, such as the years of several
            members, each in a file of its own.
        units: Unit by variable. A variable in another, compatible unit is converted; one without a unit gets it.
        levels: Levels to keep, in this order and in the unit of the result (hPa for pressure).
        decode_times: Whether to read the time axis as dates; False for axes that are just numbers.

    Returns:
        Dataset with dims `(member?, time, level?, lat, lon)`. Members are labelled by what differs in the file names.

    Raises:
        DataError: A file is missing, damaged or not on a latitude-longitude grid; a variable or level does not exist;
            units cannot be converted; files clash in calendar, grid, levels or units (both are named).
    """
    if combine not in _COMBINE:
        raise ConfigError(f"combine is {combine!r}, expected one of {', '.join(_COMBINE)}.")
    variables = [variables] if isinstance(variables, str) else variables
    files = [Path("the dataset")] if isinstance(paths, xr.Dataset) else _expand(paths)
    opened = []
    for file in files:
        dataset = paths if isinstance(paths, xr.Dataset) else _open(file, engine, decode_times)
        dataset = standard_axes(dataset, str(file))
        dataset = _select(dataset, variables if len(files) == 1 else None, str(file))
        dataset = standard_longitude(standard_latitude(dataset, str(file)), str(file))
        if len(files) > 1:
            dataset = dataset.map(_in_pieces, keep_attrs=True)  # joining arrays that are not chunked would read them
        dataset = _in_units(dataset, dict(units or {}), str(file))
        opened.append(_in_time_order(dataset, str(file)))
    fields = opened[0] if len(opened) == 1 else _combine(opened, files, combine)
    if len(files) > 1 and variables is not None:
        fields = _select(fields, variables, f"the {len(files)} files")
    for name in units or {}:
        if name not in fields.data_vars:
            raise DataError(
                f"units names variable {name!r}, which is not among {', '.join(map(str, fields.data_vars))}."
            )
    if levels is not None:
        fields = _select_levels(fields, levels)
    fields = fields.transpose(*[dim for dim in DIMS if dim in fields.dims], ...)
    if isinstance(chunks, str) or chunks:
        fields = fields.chunk(chunks if isinstance(chunks, str) else dict(chunks))
    fields.encoding["files"] = tuple(map(str, files)) if not isinstance(paths, xr.Dataset) else ()
    return fields


def _expand(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    files: list[Path] = []
    for item in [paths] if isinstance(paths, (str, Path)) else list(paths):
        path = Path(item).expanduser()
        if path.exists():
            files.append(path)
        elif re.search(r"[*?\[]", path.name):
            found = sorted(path.parent.glob(path.name))
            if not found:
                raise DataError(f"no file matches {str(item)!r}.")
            files.extend(found)
        else:
            near = suggest(path.name, [other.name for other in path.parent.glob("*")]) if path.parent.is_dir() else ""
            raise DataError(f"there is no file {str(item)!r}.{near}")
    if not files:
        raise DataError("no files were given.")
    return files


def _open(file: Path, engine: str | None, decode_times: bool) -> xr.Dataset:
    if engine is None and file.is_dir():
        engine = "zarr"
    known = list(xr.backends.list_engines())
    if engine is not None and engine not in known:
        raise ConfigError(f"engine is {engine!r}, expected one that is installed: {', '.join(known)}.")
    try:
        with warnings.catch_warnings():
            # Several fill values in one variable, a NaN fill value of packed integers, and dates beyond datetime64 are
            # all decoded as we want them: to NaN and to cftime.
            warnings.simplefilter("ignore", xr.SerializationWarning)
            warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated", RuntimeWarning)
            return xr.open_dataset(
                file,
                engine=engine,
                decode_times=decode_times,
                decode_timedelta=False,
                decode_coords="all",  # cell bounds and grid mappings are no fields
            )
    except ImportError as error:
        raise BackendUnavailableError(
            f"{file} needs a package that is not installed ({error}); run: pip install 'astrozoo[data]'"
        ) from error
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = reason.partition(". Consider explicitly")[0]  # xarray's advice, whose links stand on further lines
        if "decode time" in reason:
            advice = "open_fields(..., decode_times=False) reads the axis as numbers"
        else:
            advice = "it may be truncated, or of a format that needs engine=..."
        raise DataError(f"{file} cannot be opened ({reason}); {advice}.") from error


def _select(dataset: xr.Dataset, variables: Sequence[str] | None, where: str) -> xr.Dataset:
    if variables is not None:
        names = list(variables)
        for name in names:
            if name not in dataset.data_vars:
                known = [str(key) for key in dataset.data_vars]
                described = ", ".join(
                    f"{key} ({long})" if (long := dataset[key].attrs.get("long_name")) else key for key in known
                )
                raise DataError(f"{where} has no variable {name!r}.{suggest(name, known)} It has: {described}.")
    else:
        names = [
            str(name)
            for name, variable in dataset.data_vars.items()
            if variable.dtype.kind in "fiub"
            and set(variable.dims) <= set(DIMS)
            and ({"lat", "lon"} <= set(variable.dims) or variable.dims == ("time",))
        ]
    kept = dataset[names]
    on_grid = [name for name in names if {"lat", "lon"} <= set(kept[name].dims)]
    for name in names:
        unknown = [str(dim) for dim in kept[name].dims if dim not in DIMS]
        if unknown:
            raise DataError(
                f"variable {name!r} of {where} has unknown dimensions {', '.join(unknown)}; {_why(dataset)}."
            )
    if not on_grid:
        found = "; ".join(f"{name}({', '.join(map(str, dataset[name].dims))})" for name in dataset.data_vars)
        raise DataError(
            f"{where} has no variable on a latitude-longitude grid: {found or 'it is empty'}; {_why(dataset)}."
        )
    return kept.drop_vars([name for name in kept.coords if name not in DIMS or kept[name].ndim != 1])


def _why(dataset: xr.Dataset) -> str:
    if is_curvilinear(dataset):
        return "its grid is curvilinear (two-dimensional latitudes); regrid it to latitude and longitude first"
    return "name its dimensions as CF does (axis or standard_name on the coordinates), or select along the others"


def _in_units(dataset: xr.Dataset, units: dict[str, str], where: str) -> xr.Dataset:
    for name, unit in units.items():
        if name not in dataset.data_vars:
            continue  # another file may hold it
        variable = dataset[name]
        own = variable.attrs.get("units")
        if own:
            change = conversion(str(own), unit, f"variable {name!r} of {where}")
            if change is not None:
                dtype = variable.dtype if variable.dtype.kind == "f" else np.float32
                variable = convert(variable, change).astype(dtype)
        dataset = dataset.assign({name: variable.assign_attrs({**dataset[name].attrs, "units": unit})})
    return dataset


def convert(variable: xr.DataArray, change: tuple[float, float]) -> xr.DataArray:
    """`variable * factor + offset` in float64, computed when it is read."""
    return _in_pieces(variable).astype(np.float64) * change[0] + change[1]


def _in_pieces(variable: xr.DataArray) -> xr.DataArray:
    """A variable as dask array in pieces of a few megabytes along time, along the chunks of its file where it has any.

    Dask's own choice for a file without chunks is one piece, and one sample would then read all of it.
    """
    if variable.chunks is not None or not variable.sizes.get("time"):
        return variable
    row = max(1, variable.nbytes // variable.sizes["time"])
    steps = max(1, _PIECE_BYTES // row)
    shape = variable.encoding.get("chunksizes") or variable.encoding.get("chunks")
    if shape is not None and len(shape) == variable.ndim:
        stored = int(shape[variable.dims.index("time")])
        if stored * row <= _STORED_BYTES:
            steps = max(stored, steps // stored * stored)
    return variable.chunk(time=steps)


def _in_time_order(dataset: xr.Dataset, where: str) -> xr.Dataset:
    if "time" not in dataset.dims:
        return dataset
    if "time" not in dataset.coords:
        return dataset.assign_coords(time=np.arange(dataset.sizes["time"]))
    times = dataset["time"].values
    if not times.size:
        raise DataError(f"{where} has no time step: its time axis is empty.")
    if times.dtype.kind in "fM" and (times != times).any():  # NaN and NaT differ from themselves
        raise DataError(f"the time axis of {where} holds missing values.")
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    twice = [date_of(first) for first, second in itertools.pairwise(ordered) if first == second]
    if twice:
        raise DataError(f"{where} holds {len(twice)} time steps more than once, the first is {twice[0]}.")
    return dataset if np.array_equal(order, np.arange(order.size)) else dataset.isel(time=order)


def _select_levels(fields: xr.Dataset, levels: Sequence[float]) -> xr.Dataset:
    if "level" not in fields.dims:
        raise DataError(f"levels {list(levels)} were asked for, but the fields have no vertical dimension.")
    own = fields["level"].values
    index = []
    for level in levels:
        near = np.flatnonzero(np.isclose(own, level, rtol=1e-6))
        if not near.size:
            unit = fields["level"].attrs.get("units", "")
            raise DataError(f"there is no level {level:g}; the fields have {', '.join(f'{x:g}' for x in own)} {unit}.")
        index.append(int(near[0]))
    return fields.isel(level=index)


# -- several files ---------------------------------------------------------------------------------------------------


def _combine(datasets: list[xr.Dataset], files: list[Path], how: str) -> xr.Dataset:
    layers = next((index for index, dataset in enumerate(datasets) if "level" in dataset.dims), 0)
    for index, (dataset, file) in enumerate(zip(datasets, files, strict=True)):
        _check_grid(datasets[0], dataset, files[0], file)
        _check_grid(datasets[layers], dataset, files[layers], file)
        _check_units(datasets[0], dataset, files[0], file)
        datasets[index] = dataset.assign_coords(
            {dim: datasets[layers][dim] for dim in ("level", "lat", "lon") if dim in dataset.coords}
        )
    datasets = _check_calendars(datasets, files)
    if how == "auto":
        how, groups = _guess(datasets, files)
        within = "member" if how == "time" else "auto"
        datasets = [
            _combine([datasets[index] for index in group], [files[index] for index in group], within)
            if len(group) > 1
            else datasets[group[0]]
            for group in groups
        ]
        files = [files[group[0]] for group in groups]
    return _join(datasets, files, how) if len(datasets) > 1 else datasets[0]


def _join(datasets: list[xr.Dataset], files: list[Path], how: str) -> xr.Dataset:
    first = datasets[0]
    if how == "variables":
        _check_equal_times(datasets, files, how)
        _check_equal_members(datasets, files)
        twice = {name for name in first.data_vars if any(name in other.data_vars for other in datasets[1:])}
        if twice:
            raise DataError(f"{files[0]} and another file both hold {', '.join(map(str, sorted(twice, key=str)))}.")
        return xr.merge(datasets, join="exact", compat="no_conflicts", combine_attrs="drop_conflicts")
    _check_same_variables(datasets, files)
    options: dict[str, Any] = {
        "join": "exact",
        "coords": "minimal",
        "compat": "override",
        "combine_attrs": "drop_conflicts",
    }
    varying = [name for name in first.data_vars if "time" in first[name].dims]
    if how == "member":
        _check_equal_times(datasets, files, how)
        shared = [name for name in first.data_vars if name not in varying]  # orography is the same in every member
        joined = xr.concat([dataset[varying] for dataset in datasets], dim="member", data_vars="all", **options)
        return joined.assign(first[shared].data_vars).assign_coords(member=_labels(files))
    if not all("time" in dataset.dims for dataset in datasets):
        raise DataError(f"{files[0]} and the others cannot be joined along time: one has no time dimension.")
    order = sorted(range(len(datasets)), key=lambda index: datasets[index]["time"].values[0])
    for one, two in itertools.pairwise(order):
        last, begin = datasets[one]["time"].values[-1], datasets[two]["time"].values[0]
        if begin <= last:
            raise DataError(
                f"{files[one]} ends at {date_of(last)}, after {files[two]} starts at {date_of(begin)}: "
                "files joined along time must not overlap."
            )
    return xr.concat([datasets[index] for index in order], dim="time", data_vars="minimal", **options)


def _guess(datasets: list[xr.Dataset], files: list[Path]) -> tuple[str, list[list[int]]]:
    """How files fit together, and the groups of them to be combined first: those of one variable, or of one period."""
    single = [[index] for index in range(len(datasets))]
    groups = _grouped(frozenset(dataset.data_vars) for dataset in datasets)
    names = [set(datasets[group[0]].data_vars) for group in groups]
    if len(groups) > 1 and sum(map(len, names)) == len(set().union(*names)):
        return "variables", groups
    _check_same_variables(datasets, files)
    if not all("time" in dataset.dims for dataset in datasets):
        return "member", single
    periods = _grouped(tuple(dataset["time"].values.tolist()) for dataset in datasets)
    if len(periods) == 1:
        return "member", single
    labels = [dict(zip(_labels([files[index] for index in period]), period, strict=True)) for period in periods]
    if len(periods[0]) > 1 and all(labelled.keys() == labels[0].keys() for labelled in labels):
        return "time", [[labelled[label] for label in labels[0]] for labelled in labels]
    return "time", single


def _grouped(keys: Iterable[Hashable]) -> list[list[int]]:
    """The positions of equal keys, in the order in which the keys first appear."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _check_grid(first: xr.Dataset, other: xr.Dataset, file: Path, other_file: Path) -> None:
    for dim in ("lat", "lon", "level"):
        if (dim in first.dims) != (dim in other.dims):
            if dim == "level":
                continue  # a file of surface fields beside one of levels
            raise DataError(f"{file} and {other_file} have different grids: only one has dimension {dim!r}.")
        if dim not in first.dims or dim not in first.coords or dim not in other.coords:
            continue
        one, two = first[dim].values, other[dim].values
        spacing = np.abs(np.diff(one)).min() if one.size > 1 else 1.0
        if one.shape != two.shape or np.abs(one - two).max() > 1e-3 * spacing:
            raise DataError(
                f"{file} and {other_file} have different {'levels' if dim == 'level' else 'grids'}: {dim} is "
                f"{_range(one)} and {_range(two)}; regrid or select first."
            )


def _range(values: np.ndarray) -> str:
    return f"{values.size} from {values[0]:g} to {values[-1]:g}"


def _check_units(first: xr.Dataset, other: xr.Dataset, file: Path, other_file: Path) -> None:
    for name in first.data_vars:
        if name not in other.data_vars:
            continue
        one, two = first[name].attrs.get("units"), other[name].attrs.get("units")
        if not same_unit(one, two):
            raise DataError(
                f"variable {name!r} is in {one!r} in {file} and in {two!r} in {other_file}; "
                f"open_fields(..., units={{{str(name)!r}: {one!r}}}) converts."
            )


def _check_calendars(datasets: list[xr.Dataset], files: list[Path]) -> list[xr.Dataset]:
    calendars = [_calendar(dataset) for dataset in datasets]
    known = [(calendar, file) for calendar, file in zip(calendars, files, strict=True) if calendar is not None]
    for calendar, file in known[1:]:
        same = calendar == known[0][0] or {calendar, known[0][0]} <= set(_STANDARD_CALENDARS)
        if not same:
            raise DataError(
                f"{known[0][1]} uses calendar {known[0][0]!r} and {file} {calendar!r}; convert one of them "
                "(xarray's convert_calendar), since their dates do not correspond."
            )
    for dataset, file in zip(datasets, files, strict=True) if known else ():
        if "time" in dataset.dims and _calendar(dataset) is None:
            raise DataError(
                f"the time axis of {known[0][1]} holds dates, that of {file} plain numbers (it has no unit such as "
                "'days since 1850-01-01'); give the file a unit, or read both with decode_times=False."
            )
    # One calendar can still be held in two ways: as datetime64, and as cftime where years lie beyond its range.
    kinds = {dataset["time"].dtype.kind for dataset, calendar in zip(datasets, calendars, strict=True) if calendar}
    if len(kinds) > 1:
        datasets = [
            dataset.convert_calendar("standard", use_cftime=True) if calendar else dataset
            for dataset, calendar in zip(datasets, calendars, strict=True)
        ]
    return datasets


def _calendar(dataset: xr.Dataset) -> str | None:
    if "time" not in dataset.coords or dataset["time"].dtype.kind not in "MO":
        return None
    return str(dataset["time"].dt.calendar)


def _check_equal_times(datasets: list[xr.Dataset], files: list[Path], how: str) -> None:
    timed = [(dataset, file) for dataset, file in zip(datasets, files, strict=True) if "time" in dataset.dims]
    for dataset, file in timed[1:]:
        one, two = timed[0][0]["time"], dataset["time"]
        if not one.equals(two):
            raise DataError(
                f"{timed[0][1]} and {file} cannot be joined as {how}: their times differ "
                f"({one.size} steps from {date_of(one.values[0])}, {two.size} from {date_of(two.values[0])})."
            )


def _check_equal_members(datasets: list[xr.Dataset], files: list[Path]) -> None:
    with_members = [(dataset, file) for dataset, file in zip(datasets, files, strict=True) if "member" in dataset.dims]
    for dataset, file in with_members[1:]:
        one, two = (list(map(str, each["member"].values)) for each in (with_members[0][0], dataset))
        if one != two:
            raise DataError(
                f"{with_members[0][1]} and {file} have different members: {', '.join(one)}, and {', '.join(two)}."
            )


def _check_same_variables(datasets: list[xr.Dataset], files: list[Path]) -> None:
    for dataset, file in zip(datasets[1:], files[1:], strict=True):
        different = set(datasets[0].data_vars) ^ set(dataset.data_vars)
        if different:
            name = sorted(map(str, different))[0]
            holder, lacking = (files[0], file) if name in datasets[0].data_vars else (file, files[0])
            raise DataError(f"variable {name!r} is in {holder} but not in {lacking}; choose with variables=[...].")
        for key, variable in dataset.data_vars.items():
            one, two = set(datasets[0][key].dims), set(variable.dims)
            if one != two:
                described = " and ".join(", ".join(dim for dim in DIMS if dim in dims) for dims in (one, two))
                raise DataError(f"variable {key!r} has dimensions {described} in {files[0]} and {file}; select first.")


def _labels(files: Iterable[Path]) -> list[str]:
    """What differs between the paths, `57` and `59` for `run.57.nc` and `run.59.nc`, or the position."""
    tokens = [re.split(r"[._\-/\\]+", str(file)) for file in files]
    if len({len(parts) for parts in tokens}) == 1:
        differing = [index for index in range(len(tokens[0])) if len({parts[index] for parts in tokens}) > 1]
        labels = ["_".join(parts[index] for index in differing) for parts in tokens]
        if len(set(labels)) == len(labels):
            return labels
    return [str(index) for index in range(len(tokens))]
