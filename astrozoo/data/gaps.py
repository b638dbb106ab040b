"""Filling what is missing along time, in fields with coordinates."""

from __future__ import annotations

import datetime as dt
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from astrozoo import accel
from astrozoo.errors import DataError

__all__ = ["fill_gaps"]

Fields = TypeVar("Fields", xr.Dataset, xr.DataArray)
_DAY = np.timedelta64(1, "D")


def fill_gaps(
    fields: Fields, *, max_gap: float | dt.timedelta | np.timedelta64 | None = None, threads: int | None = None
) -> Fields:
    """Fill NaN along `time` on the straight line between the known values before and after it.

    As `xarray.DataArray.interpolate_na("time")`; what comes before the first known value and after the last stays
    missing. Variables without time, or without fractions, stay as they are. Lazy ones stay lazy.

    Args:
        fields: Fields with a dimension `time`, as `open_fields` gives them.
        max_gap: The longest gap that is filled, from the known value before it to the one after: a timedelta for times
            that are dates, a number in their own unit for others; default: any.
        threads: See `astrozoo.accel.threads.workers`.

    Raises:
        DataError: There is no dimension `time`, its values do not increase, a lazy variable is cut along it, or
            `max_gap` does not suit the times.
    """
    if "time" not in fields.dims:
        raise DataError(f"fill_gaps needs a dimension 'time'; the fields have {tuple(fields.dims)}.")
    times, longest = _clock(fields["time"], max_gap)
    if not np.all(np.diff(times) > 0):
        raise DataError("the times of the fields do not increase; sort them first: fields.sortby('time').")
    if isinstance(fields, xr.DataArray):
        return _filled(fields, times, longest, threads)
    filled = {
        name: _filled(variable, times, longest, threads)
        for name, variable in fields.data_vars.items()
        if "time" in variable.dims and variable.dtype.kind == "f"
    }
    return fields.assign(filled)


def _clock(time: xr.DataArray, max_gap: Any) -> tuple[np.ndarray, float | None]:
    """Times as numbers, days for dates, and the longest gap in the same unit."""
    values = time.values
    dates = values.dtype.kind in "MO"
    if max_gap is not None and dates != isinstance(max_gap, dt.timedelta | np.timedelta64):
        needed = "dates, so give a timedelta" if dates else "numbers, so give one"
        raise DataError(f"max_gap is {max_gap!r}; the times are {needed}.")
    if not dates:
        return values.astype(np.float64), max_gap
    since = values - values[0]
    # Differences of cftime dates are objects of Python.
    days = since / _DAY if values.dtype.kind == "M" else np.array([one / dt.timedelta(days=1) for one in since])
    longest = None if max_gap is None else np.timedelta64(max_gap) / _DAY
    return days.astype(np.float64), longest


def _filled(variable: xr.DataArray, times: np.ndarray, max_gap: float | None, threads: int | None) -> xr.DataArray:
    axis = variable.get_axis_num("time")
    if variable.chunks is not None and len(variable.chunks[axis]) > 1:
        raise DataError(
            f"variable {str(variable.name)!r} is lazy and cut along time; join it first: fields.chunk(time=-1)."
        )
    result: xr.DataArray = xr.apply_ufunc(
        lambda values: accel.fill_gaps(values, axis=-1, times=times, max_gap=max_gap, threads=threads),
        variable, input_core_dims=[["time"]], output_core_dims=[["time"]], dask="parallelized",
        output_dtypes=[variable.dtype], keep_attrs=True,
    ) if variable.chunks is not None else variable.copy(
        data=accel.fill_gaps(variable.values, axis=axis, times=times, max_gap=max_gap, threads=threads)
    )  # fmt: skip
    return result.transpose(*variable.dims)
