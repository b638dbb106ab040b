"""From new files to the inputs of a saved model, and from its outputs back to fields in physical units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from astrozoo.data.axes import DIMS
from astrozoo.data.datasets import FieldDataset, condition_rows
from astrozoo.data.encoding import Infill, block_mean, encoding_of
from astrozoo.data.fields import convert, open_fields
from astrozoo.data.schema import FieldSchema
from astrozoo.data.series import make_series
from astrozoo.data.splits import contiguous_runs
from astrozoo.data.units import conversion
from astrozoo.errors import DataError
from astrozoo.registry.names import suggest

__all__ = ["prepare", "to_dataset"]


def prepare(
    fields: xr.Dataset | str | Path | Sequence[str | Path], schema: Mapping[str, Any], *, in_memory: bool = True
) -> FieldDataset:
    """Inputs of a saved model from new fields, by the same arithmetic as in training.

    Args:
        fields: In standard form, or files for `open_fields`. To downscale, on the coarse grid or on the fine one.
        schema: What the model was saved with (`model.preprocessing`).
        in_memory: Whether to hold the inputs as one tensor, or read them sample by sample.

    Returns:
        A dataset of samples without targets, one per time step (and member) that has the history the model needs.

    Raises:
        DataError: A variable or level is missing, a unit cannot be converted, the grid or the calendar differs.
    """
    known = FieldSchema.from_dict(schema)
    if not isinstance(fields, xr.Dataset):
        fields = open_fields(fields, decode_times=bool(known.calendar))
    fields = _matching(fields, known)
    encoding = encoding_of(known)
    if isinstance(encoding, Infill):
        encoding.hide = False  # the holes are those of the file
    inputs = make_series(
        fields, known, known.inputs, encoding.input_transform(), in_memory=in_memory, checked=known.fill == "error"
    )
    times = fields["time"].values
    runs = contiguous_runs(times)
    rows = [
        member * len(times) + step
        for member in range(fields.sizes.get("member", 1))
        for step in range(known.history - 1, len(times))
        if runs[step + 1 - known.history] == runs[step]
    ]
    if not rows:
        raise DataError(f"the fields have {len(times)} time steps; the model needs {known.history} consecutive ones.")
    members = [str(label) for label in fields["member"].values] if "member" in fields.dims else None
    return FieldDataset(
        encoding,
        torch.tensor(rows),
        inputs,
        None,
        times=times,
        members=members,
        condition=condition_rows(fields, known.condition),
    )


def to_dataset(outputs: Tensor, schema: Mapping[str, Any], coords: Mapping[str, Any]) -> xr.Dataset:
    """Outputs of a model as fields in physical units, with coordinates and attributes.

    Args:
        outputs: `[sample, var, level, lat, lon]`, normalised, as the model gave them; of a model of sequences
            `[sample, step, var, level, lat, lon]`.
        schema: What the model was saved with.
        coords: Labels of the samples: `dataset.coordinates()` of the dataset that made the inputs.

    Returns:
        Dataset with dims `(member?, time, level?, lat, lon)`; `time` is the time predicted, `init_time` the last one
        that the model saw. Of sequences `(member?, lead, init_time, level?, lat, lon)`: `lead` counts time steps, and
        `time` is a coordinate along `lead` and `init_time`.
    """
    known = FieldSchema.from_dict(schema)
    if known.steps is None:
        return _one_lead(outputs, known, known.lead, coords)
    if outputs.ndim != 6:
        raise DataError(
            f"outputs have shape {list(outputs.shape)}, expected [sample, step, var, level, lat, lon] of a model of "
            "sequences."
        )
    leads = [known.lead * step for step in range(1, outputs.shape[1] + 1)]
    parts = [
        _one_lead(step, known, lead, coords).swap_dims(time="init_time")
        for step, lead in zip(outputs.unbind(1), leads, strict=True)
    ]
    index = xr.DataArray(leads, dims="lead", name="lead", attrs={"long_name": "time steps after init_time"})
    return xr.concat(parts, index, coords="different", compat="equals", join="exact", combine_attrs="override")


def _one_lead(outputs: Tensor, known: FieldSchema, lead: int, coords: Mapping[str, Any]) -> xr.Dataset:
    """The fields of one lead time, `outputs[sample, var, level, lat, lon]`."""
    channels = known.channels(known.targets)
    expected = (len(channels), known.lat.size, known.lon.size)
    if outputs.ndim != 5 or (outputs.shape[1], *outputs.shape[3:]) != expected:
        raise DataError(
            f"outputs have shape {list(outputs.shape)}, expected [sample, {expected[0]}, level, {expected[1]}, "
            f"{expected[2]}] for {', '.join(known.labels(known.targets))}."
        )
    init = np.asarray(coords["init_time"])
    if len(init) != len(outputs):
        raise DataError(f"there are {len(outputs)} outputs, but coordinates of {len(init)} samples.")
    values = outputs.detach().cpu().double().numpy() * known.stacked(known.targets, "std")
    values += known.stacked(known.targets, "mean")
    order = np.arange(len(init))
    member = coords.get("member")
    labels = list(dict.fromkeys(member)) if member is not None else None
    if labels is not None and member is not None:
        order = np.array(sorted(range(len(init)), key=lambda sample: (labels.index(member[sample]), init[sample])))
        if len(init) % len(labels) or not all(
            np.array_equal(init[np.asarray(member) == label], init[np.asarray(member) == labels[0]]) for label in labels
        ):
            raise DataError("the members have samples at different times; write them one at a time.")
    shape = (-1,) if labels is None else (len(labels), len(init) // len(labels))
    start = init[order].reshape(shape)[0] if labels is not None else init
    dataset = xr.Dataset(attrs={"Conventions": "CF-1.11"})
    for name in known.targets:
        places = [index for index, (channel, _) in enumerate(channels) if channel == name]
        field = values[order][:, places]  # [sample, 1, level, lat, lon], or one level per channel
        field = field[:, 0] if known.levels_as == "axis" else field[:, :, 0]
        dims = ["time", "level", "lat", "lon"]
        if known.levels is None or known.level_count(name) == 1 < known.levels.size:
            field, dims = field[:, 0], ["time", "lat", "lon"]
        if labels is not None:
            field, dims = field.reshape(*shape, *field.shape[1:]), ["member", *dims]
        attrs = dict(known.attrs.get(name, {}))
        if known.units.get(name):
            attrs["units"] = str(known.units[name])
        dataset[name] = (dims, field.astype(np.float32), attrs)
    dataset = dataset.assign_coords(
        time=("time", _later(start, lead, np.asarray(coords["times"])), {"standard_name": "time", "axis": "T"}),
        init_time=("time", start, {"standard_name": "forecast_reference_time"}),
        lat=("lat", known.lat, {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}),
        lon=("lon", known.lon, {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}),
    )
    if known.levels is not None and "level" in dataset.dims:
        attrs = {"units": known.level_units, "axis": "Z"} if known.level_units else {"axis": "Z"}
        dataset = dataset.assign_coords(level=("level", known.levels, attrs))
    if labels is not None:
        dataset = dataset.assign_coords(member=("member", labels, {"standard_name": "realization"}))
    return dataset


def _matching(fields: xr.Dataset, schema: FieldSchema) -> xr.Dataset:
    """The fields a schema needs, in its units and with its levels."""
    names = [*schema.inputs, *(name for name, _, _ in schema.condition if name in fields.data_vars)]
    for name in schema.inputs:
        known = [str(key) for key in fields.data_vars]
        if name not in known:
            raise DataError(
                f"the model needs variable {name!r}.{suggest(name, known)} The fields have {', '.join(known)}."
            )
        if "time" not in fields[name].dims:
            raise DataError(f"variable {name!r} has no time dimension.")
    for name, _, _ in schema.condition:
        if name not in fields.data_vars and name not in ("day_of_year", "hour_of_day"):
            raise DataError(f"the model needs the forcing {name!r}, which the fields do not have.")
    fields = fields[names]
    _check_grid(fields, schema)
    _check_calendar(fields, schema)
    fields = _with_levels(fields, schema)
    for name in schema.inputs:
        unit = schema.units.get(name)
        change = conversion(fields[name].attrs.get("units"), unit, f"variable {name!r}")
        if change is not None:
            converted = convert(fields[name], change)
            fields = fields.assign({name: converted.assign_attrs({**fields[name].attrs, "units": unit})})
    return fields.transpose(*[dim for dim in DIMS if dim in fields.dims], ...)


def _check_grid(fields: xr.Dataset, schema: FieldSchema) -> None:
    grids = [(schema.lat, schema.lon)]
    if schema.task == "downscale":
        factor = int(schema.options["factor"])
        grids.append((block_mean(schema.lat[:, None].repeat(factor, 1), factor)[:, 0],
                      block_mean(schema.lon[None].repeat(factor, 0), factor)[0]))  # fmt: skip
    for lat, lon in grids:
        if all(
            dim in fields.dims and fields.sizes[dim] == own.size
            and np.allclose(fields[dim].values, own, atol=1e-3 * abs(own[-1] - own[0]) / max(own.size - 1, 1) + 1e-9)
            for dim, own in (("lat", lat), ("lon", lon))
        ):  # fmt: skip
            return
    own = "; ".join(f"{name} {_range(values)}" for name, values in (("lat", schema.lat), ("lon", schema.lon)))
    got = "; ".join(f"{dim} {_range(fields[dim].values)}" for dim in ("lat", "lon") if dim in fields.coords)
    raise DataError(
        f"the grid differs from the one the model was trained on: {got}, expected {own}; regrid the fields."
    )


def _check_calendar(fields: xr.Dataset, schema: FieldSchema) -> None:
    own = str(fields["time"].dt.calendar) if fields["time"].dtype.kind in "MO" else ""
    standard = {"standard", "gregorian", "proleptic_gregorian"}
    seasonal = any(name == "day_of_year" for name, _, _ in schema.condition)
    if seasonal and own != schema.calendar and not {own, schema.calendar} <= standard:
        raise DataError(f"the fields use calendar {own!r}; the model was trained on days of {schema.calendar!r}.")


def _with_levels(fields: xr.Dataset, schema: FieldSchema) -> xr.Dataset:
    if schema.levels is None:
        if any("level" in fields[name].dims for name in schema.inputs):
            raise DataError("the fields have levels, the model was trained without; select one level first.")
        return fields
    for name in schema.inputs:
        if schema.level_count(name) > 1 and "level" not in fields[name].dims:
            raise DataError(f"variable {name!r} has no levels; the model expects {schema.level_count(name)}.")
    if "level" not in fields.dims:
        if all(schema.level_count(name) == 1 for name in schema.inputs):
            return fields
        raise DataError(f"the fields have no levels; the model expects {_range(schema.levels)}.")
    change = conversion(str(fields["level"].attrs.get("units", "")), schema.level_units, "the level coordinate")
    factor, offset = change or (1.0, 0.0)
    own = fields["level"].values * factor + offset
    index = []
    for level in schema.levels:
        near = np.flatnonzero(np.isclose(own, level, rtol=1e-6))
        if not near.size:
            raise DataError(
                f"the model needs level {level:g} {schema.level_units}; the fields have "
                f"{', '.join(f'{value:g}' for value in own)}."
            )
        index.append(int(near[0]))
    return fields.isel(level=index)


def _later(init: np.ndarray, lead: int, times: np.ndarray) -> np.ndarray:
    """The times `lead` steps after `init`; beyond the end of the axis, or of an unbroken run, by its own frequency."""
    if not lead:
        return init
    runs = contiguous_runs(times)
    later: dict[Any, Any] = {}
    for run in range(runs[-1] + 1):
        own = times[runs == run]
        # A run of one step does not tell its frequency, the whole axis does.
        extended = _extended(own, lead) if own.size > 1 else _extended(times, lead, own[-1:])
        later.update(zip(own.tolist(), extended[lead:], strict=True))
    return np.array([later[time] for time in init.tolist()], dtype=times.dtype)


def _extended(times: np.ndarray, count: int, start: np.ndarray | None = None) -> np.ndarray:
    """`times`, or `start`, and `count` steps more."""
    start = times if start is None else start
    if len(times) < 2:
        raise DataError("one time step alone does not tell how far ahead the model predicts; give at least two.")
    if times.dtype.kind in "MO" and len(times) >= 3:
        frequency = xr.infer_freq(xr.DataArray(times, dims="time"))
        if frequency is not None:  # months and years of unequal length
            cftime = times.dtype.kind == "O"
            calendar = times[0].calendar if cftime else "proleptic_gregorian"
            later = xr.date_range(start[-1], periods=count + 1, freq=frequency, calendar=calendar, use_cftime=cftime)
            return np.concatenate([start, np.asarray(later.values, dtype=times.dtype)[1:]])
    usual = np.sort(np.diff(times))[(len(times) - 1) // 2]
    return np.concatenate(
        [start, np.array([start[-1] + usual * (index + 1) for index in range(count)], dtype=times.dtype)]
    )


def _range(values: np.ndarray) -> str:
    return f"{values.size} from {values[0]:g} to {values[-1]:g}" if values.size else "none"
