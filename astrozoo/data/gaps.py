"""Filling what is missing along time, in fields with coordinates."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from astrozoo import accel
from astrozoo.errors import DataError
from astrozoo.registry.names import suggest

__all__ = ["fill_gaps"]

Fields = TypeVar("Fields", xr.Dataset, xr.DataArray)
# Of dates: whole numbers of it are exact in float64 over 285 years, whole seconds over thousands, so that a gap of just
# `max_gap` is not lost to rounding, as it would be in days.
_TICK = np.timedelta64(1, "us")


def fill_gaps(
    fields: Fields,
    *,
    max_gap: float | dt.timedelta | np.timedelta64 | None = None,
    variables: str | Sequence[str] | None = None,
    threads: int | None = None,
) -> Fields:
    """Fill NaN along `time` on the straight line between the known values before and after it.

    As `xarray.DataArray.interpolate_na("time")`; what comes before the first known value and after the last stays
    missing. Variables without time, or without fractions, stay as they are. Lazy ones stay lazy.

    Args:
        fields: Fields with a dimension `time`, as `open_fields` gives them.
        max_gap: The longest gap that is filled, from the known value before it to the one after: a timedelta for times
            that are dates, a number in their own unit for others; default: any.
        variables: Names of those to fill, of a Dataset; default: all with time.
        threads: See `astrozoo.accel.threads.workers`; for lazy variables, threads of each piece that dask computes,
            where 1 is the default.

    Raises:
        DataError: There is no dimension `time` or no such variable, the times do not increase, a lazy variable is cut
            along time, or `max_gap` does not suit the times.
    """
    if "time" not in fields.dims:
        raise DataError(f"fill_gaps needs a dimension 'time'; the fields have {tuple(fields.dims)}.")
    times, longest = _clock(fields["time"], max_gap)
    if not np.all(np.diff(times) > 0):
        raise DataError("the times of the fields do not increase; sort them first: fields.sortby('time').")
    if isinstance(fields, xr.DataArray):
        if variables is not None:
            raise DataError(f"variables is {variables!r}; a DataArray is one variable, so leave it out.")
        return _filled(fields, times, longest, threads)
    variables = [variables] if isinstance(variables, str) else variables
    known = [str(name) for name in fields.data_vars]
    for name in variables or ():
        if name not in fields.data_vars:
            hint = suggest(name, known)
            raise DataError(f"the fields have no variable {name!r}.{hint} They have: {', '.join(known)}.")
        if "time" not in fields[name].dims:
            raise DataError(f"variable {name!r} has no dimension 'time'; it has {fields[name].dims}.")
    filled = {
        name: _filled(variable, times, longest, threads)
        for name, variable in fields.data_vars.items()
        if (variables is None or name in variables) and "time" in variable.dims
    }
    return fields.assign(filled)


def _clock(time: xr.DataArray, max_gap: Any) -> tuple[np.ndarray, float | None]:
    """Times as numbers, microseconds since the first for dates, and the longest gap in the same unit."""
    values = time.values
    dates = values.dtype.kind in "MO"
    if max_gap is not None and dates != isinstance(max_gap, dt.timedelta | np.timedelta64):
        needed = "dates, so give a timedelta" if dates else "numbers, so give one"
        raise DataError(f"max_gap is {max_gap!r}; the times are {needed}.")
    longest = np.timedelta64(max_gap) / _TICK if dates and max_gap is not None else max_gap
    if longest is not None and not longest >= 0:
        raise DataError(f"max_gap is {max_gap!r}; expected a length of time of at least 0.")
    if dates and values.size:
        since = values - values[0]  # of cftime dates: objects of Python, whose microseconds are whole
        cftime = values.dtype.kind == "O"
        values = np.array([one / dt.timedelta(microseconds=1) for one in since]) if cftime else since / _TICK
    return values.astype(np.float64), longest


def _filled(variable: xr.DataArray, times: np.ndarray, max_gap: float | None, threads: int | None) -> xr.DataArray:
    if variable.dtype.kind != "f":
        return variable
    axis = variable.get_axis_num("time")
    if variable.chunks is not None:
        if len(variable.chunks[axis]) > 1:
            raise DataError(
                f"variable {str(variable.name)!r} is lazy and cut along time; join it first: fields.chunk(time=-1)."
            )
        threads = threads or 1  # dask computes as many pieces at a time as there are cores

    def fill(values: np.ndarray) -> np.ndarray:
        return accel.fill_gaps(values, axis=axis, times=times, max_gap=max_gap, threads=threads).astype(
            variable.dtype, copy=False
        )

    # Each piece has all of time, so that time need not become the last dimension, which would move all of memory.
    filled = xr.apply_ufunc(
        fill, variable.variable, dask="parallelized", output_dtypes=[variable.dtype], keep_attrs=True
    )
    return variable.copy(data=filled.data)
