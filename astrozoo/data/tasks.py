"""Task builders: fields in standard form -> `FieldTask`, what the trainer takes.

`forecast(fields, lead=1)` predicts fields some steps ahead, `downscale(fields, factor=8)` fine fields from coarse ones,
`infill(fields, hidden=0.5)` whole fields from fields with holes. They share everything but their encoding.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from astrozoo.batch import Batch
from astrozoo.data.axes import is_periodic, poles_on_grid
from astrozoo.data.baselines import baselines_of
from astrozoo.data.datasets import FieldDataset, collate, condition_rows
from astrozoo.data.encoding import Standardise, encoding_of
from astrozoo.data.schema import FieldSchema
from astrozoo.data.series import Transform, blocks, make_series, read, readable
from astrozoo.data.splits import MemberSplit, TimeSplit, contiguous_runs, date_of
from astrozoo.data.statistics import RunningMoments
from astrozoo.errors import ConfigError, DataError
from astrozoo.registry.names import suggest

__all__ = ["FieldTask", "downscale", "forecast", "infill"]

_GEOMETRY = ("sin_lat", "cos_lat", "sin_lon", "cos_lon")
_CYCLES = ("day_of_year", "hour_of_day")
_GRIDPOINT_LIMIT = 8 << 20  # values; 64 MB of text in a model's config.json


class FieldTask:
    """Training data made of fields: three datasets, and everything that belongs to them.

    Attributes:
        train, val, test: Datasets of unbatched samples; None where the split leaves a part out.
        field_schema: How files become inputs and outputs become fields.
        climatology: Mean over the training part by variable, `[level, lat, lon]`, in physical units.
    """

    def __init__(
        self,
        datasets: Mapping[str, FieldDataset | None],
        schema: FieldSchema,
        climatology: Mapping[str, np.ndarray],
        contents: Mapping[str, str] | None = None,
    ) -> None:
        train = datasets["train"]
        if train is None:
            raise DataError("the training part holds no sample.")
        self.train: FieldDataset = train
        self.val = datasets["val"]
        self.test = datasets["test"]
        self.field_schema = schema
        self.climatology = dict(climatology)
        self._contents = dict(contents or {})
        self._baselines: dict[str, Callable[[Batch], Tensor]] | None = None

    def collate(self, samples: Sequence[Batch] | Batch) -> Batch:
        """One batch of several samples."""
        return collate(samples)

    def model_overrides(self) -> dict[str, Any]:
        """Overrides for `create_model` that make a model fit: numbers of variables and the edges of the grid."""
        schema = self.field_schema
        overrides: dict[str, Any] = {
            "in_vars": self.train.encoding.in_vars(),
            "out_vars": len(schema.channels(schema.targets)),
            "longitude": schema.longitude,
            "poles": schema.poles,
        }
        if schema.steps is not None:
            overrides["out_steps"] = schema.steps
        if schema.static:
            overrides["static_vars"] = len(schema.static)
        if self.train.condition is not None:
            overrides["condition_dim"] = self.train.condition.shape[1]
        return overrides

    def schema(self) -> dict[str, Any]:
        """JSON-able values to save with the model."""
        return self.field_schema.to_dict()

    def contents(self) -> dict[str, str]:
        """Digests of the values in each part, by part and variable: what tells whether files have changed."""
        return dict(self._contents)

    def baselines(self) -> dict[str, Callable[[Batch], Tensor]]:
        """Forecasts without a model, as functions from a batch to what a model would return."""
        if self._baselines is None:
            self._baselines = baselines_of(self.field_schema, self.climatology, self.train)
        return self._baselines

    def new_metrics(self) -> Any:
        """A fresh `FieldMetrics`: RMSE, bias and anomaly correlation in physical units."""
        from astrozoo.data.evaluation import FieldMetrics  # torchmetrics, an extra, is only needed from here on

        return FieldMetrics(self.field_schema, self.climatology)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part}={len(getattr(self, part) or ())}" for part in ("train", "val", "test"))
        schema = self.field_schema
        return f"FieldTask({schema.task} of {', '.join(schema.targets)} from {', '.join(schema.inputs)}: {sizes})"


def forecast(
    fields: xr.Dataset,
    inputs: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    *,
    lead: int = 1,
    history: int = 1,
    steps: int | None = None,
    static: Sequence[str | xr.DataArray] = (),
    condition: str | Sequence[str] = (),
    normalize: str = "variable",
    levels_as: str = "axis",
    fill: str = "error",
    split: TimeSplit | MemberSplit | None = None,
    in_memory: bool | None = None,
) -> FieldTask:
    """Fields some time steps ahead.

    Args:
        fields: In standard form, as `open_fields` gives them.
        inputs: Variables the model sees; by default all on the grid that depend on time.
        targets: Variables it predicts; by default the inputs.
        lead: Time steps ahead; 0 relates different variables at one time.
        history: Input time steps, the last one being the present. Channels are stacked, oldest first.
        steps: For models of sequences (task `field_forecast`): number of targets, each `lead` after the one before.
            Then samples have a time axis, `x[time, var, level, lat, lon]` and `y[out_time, var, level, lat, lon]`.
        static: Names of fields without time, or DataArrays on the grid, or `sin_lat`, `cos_lat`, `sin_lon`, `cos_lon`.
            The last two tell a model where it is, which ends its equivariance to shifts in longitude.
        condition: Names of forcings that depend on time alone, `day_of_year` or `hour_of_day`, at the input time.
        normalize: Mean and standard deviation per `variable` and level, per `gridpoint`, or `none`.
        levels_as: `axis`, or `channels`: needed where fields with levels and without are mixed.
        fill: For missing values in inputs: `error`, `mean` (0 after normalisation), or `mask` (the same, and a channel
            per variable that is 1 where it is known). Missing targets carry no weight in loss and metrics.
        split: Which times, or members, train, validate and test; by default 70, 15 and 15 % in this order.
        in_memory: Whether to hold normalised fields as one tensor; by default when a quarter of the memory suffices.

    Raises:
        ConfigError: An argument has a value it cannot take.
        DataError: The fields do not allow the task.
    """
    lead = _whole("lead", lead, 0)
    history = _whole("history", history, 1)
    options = {} if steps is None else {"steps": _whole("steps", steps, 1)}
    if steps is not None and lead == 0:
        raise ConfigError("lead is 0, so all steps of the sequence would be the present. Give lead >= 1.")
    own = _grid_variables(fields) if inputs is None else _names(inputs)
    wanted = own if targets is None else _names(targets)
    if lead == 0 and set(wanted) & set(own):
        raise ConfigError("lead is 0, but a target is also an input; the model would copy it. Give lead >= 1.")
    return _build(
        fields, "forecast", own, wanted, lead=lead, history=history, static=static, condition=condition,
        normalize=normalize, levels_as=levels_as, fill=fill, split=split, in_memory=in_memory, options=options,
    )  # fmt: skip


def downscale(
    fields: xr.Dataset,
    variables: str | Sequence[str] | None = None,
    *,
    factor: int,
    static: Sequence[str | xr.DataArray] = (),
    condition: str | Sequence[str] = (),
    normalize: str = "gridpoint",
    levels_as: str = "axis",
    fill: str = "error",
    split: TimeSplit | MemberSplit | None = None,
    in_memory: bool | None = None,
) -> FieldTask:
    """Fields from their means over blocks of `factor` x `factor` cells; other arguments as for `forecast`.

    The model gets the block means interpolated to the fine grid, as deviations from the training mean.

    Raises:
        DataError: The grid is no multiple of `factor`; select a part of it first.
    """
    factor = _whole("factor", factor, 2)
    names = _grid_variables(fields) if variables is None else _names(variables)
    for dim in ("lat", "lon"):
        if fields.sizes.get(dim, 0) % factor:
            raise DataError(
                f"{dim} has {fields.sizes[dim]} cells, no multiple of factor {factor}; select a part of it."
            )
    return _build(
        fields, "downscale", names, names, static=static, condition=condition, normalize=normalize,
        levels_as=levels_as, fill=fill, split=split, in_memory=in_memory, options={"factor": factor},
    )  # fmt: skip


def infill(
    fields: xr.Dataset,
    variables: str | Sequence[str] | None = None,
    *,
    hidden: float = 0.5,
    block: int = 4,
    columns: bool = False,
    score: str = "hidden",
    seed: int = 0,
    static: Sequence[str | xr.DataArray] = (),
    condition: str | Sequence[str] = (),
    normalize: str = "variable",
    levels_as: str = "axis",
    split: TimeSplit | MemberSplit | None = None,
    in_memory: bool | None = None,
) -> FieldTask:
    """Whole fields from fields with holes; other arguments as for `forecast`.

    A share `hidden` of the cells is hidden, in blocks of `block` x `block`: of each level its own, to be filled from
    above and below as well, or whole `columns`, as clouds and swaths leave them. Loss and metrics count the `hidden`
    cells or `all`, as `score` says. The holes depend on `seed`, on the sample and, in training, on the epoch.
    """
    block = _whole("block", block, 1)
    if not isinstance(columns, bool):
        raise ConfigError(f"columns is {columns!r}, expected True or False.")
    _one_of("score", score, ("hidden", "all"))
    if not 0.0 < hidden < 1.0:
        raise ConfigError(f"hidden is {hidden}, expected a share between 0 and 1.")
    names = _grid_variables(fields) if variables is None else _names(variables)
    options = {"hidden": hidden, "block": block, "columns": columns, "score": score, "seed": seed}
    return _build(
        fields, "infill", names, names, static=static, condition=condition, normalize=normalize,
        levels_as=levels_as, fill="mask", split=split, in_memory=in_memory, options=options,
    )  # fmt: skip


def _build(
    fields: xr.Dataset,
    task: str,
    inputs: list[str],
    targets: list[str],
    *,
    static: Sequence[str | xr.DataArray],
    condition: Sequence[str],
    normalize: str,
    levels_as: str,
    fill: str,
    split: TimeSplit | MemberSplit | None,
    in_memory: bool | None,
    options: dict[str, Any],
    lead: int = 0,
    history: int = 1,
) -> FieldTask:
    _one_of("normalize", normalize, ("variable", "gridpoint", "none"))
    _one_of("levels_as", levels_as, ("axis", "channels"))
    _one_of("fill", fill, ("error", "mean", "mask"))
    variables = list(dict.fromkeys([*inputs, *targets]))
    for names in (inputs, targets):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"variable {', '.join(twice)} is named twice.")
    _check_fields(fields, variables, levels_as)
    condition = _names(condition)
    split = split or TimeSplit()
    times = fields["time"].values
    members = [str(label) for label in fields["member"].values] if "member" in fields.dims else None
    parts = split.blocks(times, members or [""])
    if in_memory is None:
        in_memory = 3 * sum(fields[name].size for name in variables) * 4 < _memory() / 4
    if in_memory:  # one read serves statistics and series
        for name in variables:
            with readable(name, fields):
                fields = fields.assign({name: fields[name].load()})
    moments, contents = _moments(fields, variables, parts)
    if fill == "error" and not in_memory:  # otherwise the series say so, with the time
        _check_known(inputs, moments, sum(len(steps) for _, steps in parts["train"]))
    lat, lon = (np.array(fields[dim].values, dtype=np.float64) for dim in ("lat", "lon"))
    if normalize == "gridpoint" and 2 * sum(moments[name].count.size for name in variables) > _GRIDPOINT_LIMIT:
        raise ConfigError("normalize='gridpoint' would add too many statistics to the model file; choose 'variable'.")
    periodic = is_periodic(lon)
    schema = FieldSchema(
        task=task,
        inputs=tuple(inputs),
        targets=tuple(targets),
        units={name: fields[name].attrs.get("units") for name in variables},
        attrs={name: _described(fields[name]) for name in variables},
        lat=lat,
        lon=lon,
        longitude="periodic" if periodic else "regional",
        poles="cross" if periodic and lon.size % 2 == 0 and poles_on_grid(lat) else "edge",
        levels=np.array(fields["level"].values, dtype=np.float64) if _has_levels(fields, variables) else None,
        level_units=str(fields["level"].attrs.get("units", "")) if _has_levels(fields, variables) else "",
        levels_as=levels_as,
        normalize=normalize,
        statistics={name: moments[name].normalisation(normalize, lat) for name in variables},
        lead=lead,
        history=history,
        fill=fill,
        static=_static(fields, static, lat, lon),
        condition=_condition(fields, condition, parts["train"]),
        options=options,
        split={**split.to_dict(), "periods": _periods(parts, times, members)},
        calendar=str(fields["time"].dt.calendar) if fields["time"].dtype.kind in "MO" else "",
    )
    datasets = _datasets(fields, schema, parts, members, in_memory)
    for name in set(condition) - set(_CYCLES):
        contents[name] = _digest(np.asarray(fields[name].values, dtype=np.float64))
    return FieldTask(datasets, schema, {name: moments[name].climatology() for name in targets}, contents)


def _datasets(
    fields: xr.Dataset,
    schema: FieldSchema,
    parts: Mapping[str, list[tuple[int, range]]],
    members: list[str] | None,
    in_memory: bool,
) -> dict[str, FieldDataset | None]:
    transform: Transform = encoding_of(schema).input_transform()
    checked = schema.fill == "error"
    inputs = make_series(fields, schema, schema.inputs, transform, in_memory=in_memory, checked=checked)
    channels = schema.channels(schema.inputs)
    wanted = schema.channels(schema.targets)
    if schema.task != "downscale" and set(wanted) <= set(channels):
        targets = inputs  # one copy in memory serves both
        order = None if wanted == channels else torch.tensor([channels.index(channel) for channel in wanted])
    else:
        transform = Standardise(schema, schema.targets)
        targets = make_series(fields, schema, schema.targets, transform, in_memory=in_memory, checked=False)
        order = None
    times = fields["time"].values
    runs = contiguous_runs(times)
    condition = condition_rows(fields, schema.condition)
    datasets: dict[str, FieldDataset | None] = {}
    for part, owned in parts.items():
        encoding = encoding_of(schema)
        rows = [
            member * len(times) + step
            for member, steps in owned
            for step in range(steps.start - encoding.offsets[0], steps.stop - encoding.offsets[1])
            if runs[step + encoding.offsets[0]] == runs[step + encoding.offsets[1]]
        ]
        if owned and not rows:
            raise DataError(
                f"the {part} part has {len(owned[0][1])} time steps, too few for a sample that spans "
                f"{encoding.offsets[1] - encoding.offsets[0] + 1} consecutive steps"
                + (f"; the time axis falls into {runs[-1] + 1} runs of even steps." if runs[-1] else ".")
            )
        datasets[part] = FieldDataset(
            encoding, torch.tensor(rows), inputs, targets, times=times, members=members, condition=condition,
            target_channels=order,
        ) if rows else None  # fmt: skip
    return datasets


def _moments(
    fields: xr.Dataset, variables: Sequence[str], parts: Mapping[str, list[tuple[int, range]]]
) -> tuple[dict[str, RunningMoments], dict[str, str]]:
    """Statistics over the training part, and the sha256 of what is in each part, which has to be read for that.

    Reading all of it once also finds a damaged file now, not when the first evaluation comes to the place.
    """
    moments = {name: RunningMoments(name) for name in variables}
    contents: dict[str, str] = {}
    for part, owned in parts.items():
        for name in variables:
            digests = []
            for member, steps in owned:
                for block in blocks(fields, [name], steps):
                    values = read(fields, [(name, None)], member, block)[:, 0]
                    digests.append(_digest(values))
                    if part == "train":
                        moments[name].update(values)
            if owned:
                contents[f"{part} {name}"] = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    return moments, contents


def _digest(values: np.ndarray) -> str:
    """The same for the same float64 values on any machine."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f8")).hexdigest()[:16]


def _grid_variables(fields: xr.Dataset) -> list[str]:
    return [str(name) for name, variable in fields.data_vars.items() if {"time", "lat", "lon"} <= set(variable.dims)]


def _has_levels(fields: xr.Dataset, variables: Sequence[str]) -> bool:
    return any("level" in fields[name].dims for name in variables)


def _check_fields(fields: xr.Dataset, variables: Sequence[str], levels_as: str) -> None:
    if not variables:
        raise DataError(
            "the fields have no variable with dimensions time, lat and lon; open_fields(...) gives files, and Datasets "
            "that are open already, this form."
        )
    for name in variables:
        known = [str(key) for key in fields.data_vars]
        if name not in known:
            raise DataError(
                f"the fields have no variable {name!r}.{suggest(name, known)} They have: {', '.join(known)}."
            )
        if not {"time", "lat", "lon"} <= set(fields[name].dims):
            raise DataError(
                f"variable {name!r} has dimensions ({', '.join(map(str, fields[name].dims))}), expected time, lat, "
                "lon; "
                "give fields without time as static=, and series without a grid as condition=."
            )
    for dim in ("time", "lat", "lon"):
        if dim not in fields.coords or (dim != "time" and np.any(np.diff(fields[dim].values) <= 0)):
            raise DataError(
                f"the fields have no ascending coordinate {dim!r}; pass the Dataset through open_fields(...), which "
                "gives it the standard form."
            )
    with_levels = [name for name in variables if "level" in fields[name].dims]
    if levels_as == "axis" and with_levels and len(with_levels) < len(variables):
        surface = sorted(set(variables) - set(with_levels))
        raise DataError(
            f"{', '.join(with_levels)} have levels and {', '.join(surface)} none; levels_as='channels' makes each "
            "variable at each level a channel, so that they fit together."
        )


def _check_known(names: Sequence[str], moments: Mapping[str, RunningMoments], samples: int) -> None:
    for name in names:
        count = moments[name].count
        missing = int(samples * count.size - count.sum())
        if missing:
            raise DataError(
                f"input {name!r} has {missing} missing values in the training part. Choose fill='mean' (the "
                "climatological mean), fill='mask' (the same, with a channel that says where), or fill the fields "
                "yourself."
            )


def _described(variable: xr.DataArray) -> dict[str, str]:
    return {key: str(variable.attrs[key]) for key in ("long_name", "standard_name") if key in variable.attrs}


def _static(
    fields: xr.Dataset, static: Sequence[str | xr.DataArray], lat: np.ndarray, lon: np.ndarray
) -> dict[str, np.ndarray]:
    """Fields `[lat, lon]`: geometry and masks as they are, others standardised."""
    chosen: dict[str, np.ndarray] = {}
    for item in [static] if isinstance(static, (str, xr.DataArray)) else static:
        if isinstance(item, str) and item in _GEOMETRY:
            angle = np.deg2rad(lat[:, None] if item.endswith("lat") else lon[None, :])
            wave = np.sin(angle) if item.startswith("sin") else np.cos(angle)
            chosen[item] = np.broadcast_to(wave, (lat.size, lon.size)).astype(np.float32)
            continue
        if isinstance(item, str):
            if item not in fields.data_vars:
                known = [*map(str, fields.data_vars), *_GEOMETRY]
                raise DataError(f"there is no static field {item!r}.{suggest(item, known)} Known: {', '.join(known)}.")
            array = fields[item]
        else:
            array = item
        name = str(array.name or "static")
        if set(array.dims) != {"lat", "lon"} or array.shape != (lat.size, lon.size):
            raise DataError(
                f"static field {name!r} has dims {dict(array.sizes)}, expected lat={lat.size}, "
                f"lon={lon.size} without time."
            )
        with readable(name, fields):
            values = np.asarray(array.transpose("lat", "lon").values, dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(
                f"static field {name!r} has {(~np.isfinite(values)).sum()} missing values; fill them first."
            )
        if values.min() < 0.0 or values.max() > 1.0:  # a fraction or a mask is left alone
            values = (values - values.mean()) / (values.std() or 1.0)
        chosen[name] = values.astype(np.float32)
    return chosen


def _condition(
    fields: xr.Dataset, names: Sequence[str], train: Sequence[tuple[int, range]]
) -> tuple[tuple[str, float, float], ...]:
    entries = []
    for name in names:
        if name in _CYCLES:
            entries.append((name, 0.0, 1.0))
            continue
        if name not in fields.data_vars or not {"time"} <= set(fields[name].dims) <= {"member", "time"}:
            series = [str(key) for key in fields.data_vars if fields[key].dims == ("time",)]
            raise DataError(f"condition {name!r} is no series along time; known: {', '.join([*series, *_CYCLES])}.")
        members = [member for member, _ in train] if "member" in fields[name].dims else []
        seen = fields[name].isel(member=members) if members else fields[name]
        steps = train[0][1]
        with readable(name, fields):
            values = np.asarray(seen.isel(time=slice(steps.start, steps.stop)).values, dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(f"forcing {name!r} has {(~np.isfinite(values)).sum()} missing values; fill them first.")
        entries.append((name, float(values.mean()), float(values.std()) or 1.0))
    return tuple(entries)


def _periods(
    parts: Mapping[str, list[tuple[int, range]]], times: np.ndarray, members: list[str] | None
) -> dict[str, Any]:
    """What the split came to, for the record: first and last time of each part, and its members."""
    periods: dict[str, Any] = {}
    for part, owned in parts.items():
        if owned:
            steps = owned[0][1]
            periods[part] = {"first": date_of(times[steps.start]), "last": date_of(times[steps.stop - 1])}
            if members is not None:
                periods[part]["members"] = [members[member] for member, _ in owned]
    return periods


def _memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float(8 << 30)  # no such call on this system: assume a small machine


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} is {value!r}, expected a whole number, {least} or more.")
    return int(value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(allowed)}.")
