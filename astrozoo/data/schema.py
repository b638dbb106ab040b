"""`FieldSchema`: everything that turns files into inputs and outputs back into physical units, saved with the model."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from astrozoo.errors import DataError

__all__ = ["FieldSchema", "Normalisation"]

_FORMAT = 1
_PLAIN_SIZE = 512  # arrays up to this size are readable lists in the file; longer ones are base64


@dataclass(frozen=True, eq=False)
class Normalisation:
    """`normalised = (value - mean) / std` of one variable.

    Attributes:
        mean, std: `[level, lat or 1, lon or 1]`, float64; a variable without levels has one.
    """

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class FieldSchema:
    """How fields become inputs of a model, and its outputs fields.

    Attributes:
        task: `forecast`, `downscale` or `infill`.
        inputs, targets: Variables in channel order.
        units, attrs: By variable, as the model was trained.
        lat, lon: The grid, in degrees north and east.
        longitude, poles: `periodic` or `regional`, `cross` or `edge`: what the grid's edges are to a model.
        levels, level_units: The vertical axis; None for fields without one.
        levels_as: `axis`, or `channels` where each variable and level is a channel of its own.
        normalize: `variable`, `gridpoint` or `none`.
        statistics: By variable.
        lead, history: In time steps.
        fill: What is done about missing values in inputs: `error`, `mean` or `mask`.
        static: Fields that do not change, by name, as `[lat, lon]` arrays ready for the model.
        condition: Entries of the conditioning vector, with mean and std of those that are normalised.
        options: What only this task has (factor, share of hidden cells, ...).
        split: The rule, and the first and last time of each part.
        calendar: CF calendar of the training data; empty for an axis without dates.
    """

    task: str
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    units: Mapping[str, str | None]
    attrs: Mapping[str, Mapping[str, str]]
    lat: np.ndarray
    lon: np.ndarray
    longitude: str
    poles: str
    levels: np.ndarray | None
    level_units: str
    levels_as: str
    normalize: str
    statistics: Mapping[str, Normalisation]
    lead: int = 0
    history: int = 1
    fill: str = "error"
    static: Mapping[str, np.ndarray] = field(default_factory=dict)
    condition: tuple[tuple[str, float, float], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    split: Mapping[str, Any] = field(default_factory=dict)
    calendar: str = ""

    def channels(self, names: Sequence[str]) -> list[tuple[str, int | None]]:
        """What lies along the `var` axis: a variable with all its levels, or a variable at one level."""
        if self.levels_as == "axis":
            return [(name, None) for name in names]
        return [(name, index) for name in names for index in range(self.level_count(name))]

    @property
    def steps(self) -> int | None:
        """Number of targets of a sequence, each `lead` after the one before; None where there is one, without time."""
        return self.options.get("steps")

    def level_count(self, name: str) -> int:
        """Number of levels of a variable; 1 for surface fields."""
        return self.statistics[name].mean.shape[0]

    def labels(self, names: Sequence[str]) -> list[str]:
        """Channel names for people: `z`, or `z_500` where each level is a channel."""
        return [
            name if index is None or self.level_count(name) == 1 else f"{name}_{self._level(index)}"
            for name, index in self.channels(names)
        ]

    def stacked(self, names: Sequence[str], what: str) -> np.ndarray:
        """`mean` or `std` of several variables as `[var, level, lat or 1, lon or 1]`."""
        arrays = [(getattr(self.statistics[name], what), index) for name, index in self.channels(names)]
        return np.stack([array if index is None else array[index : index + 1] for array, index in arrays])

    def _level(self, index: int) -> str:
        return f"{index if self.levels is None else self.levels[index]:g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, exact."""
        row: dict[str, Any] = {"format": _FORMAT, "kind": "fields"}
        for item in dataclasses.fields(self):
            row[item.name] = _encode(getattr(self, item.name))
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> FieldSchema:
        """The inverse of `to_dict`.

        Raises:
            DataError: The values describe no fields, such as the schema of a model trained on something else.
        """
        if row.get("kind") != "fields" or row.get("format") != _FORMAT:
            raise DataError(
                f"the schema is of kind {row.get('kind')!r}, format {row.get('format')!r}; expected 'fields', format "
                f"{_FORMAT}. Was the model trained on fields, by this version of astrozoo?"
            )
        try:
            values = {item.name: row[item.name] for item in dataclasses.fields(cls)}
            values["statistics"] = {
                name: Normalisation(*(_decode(pair[key]) for key in ("mean", "std")))
                for name, pair in values["statistics"].items()
            }
            values["static"] = {name: _decode(array) for name, array in values["static"].items()}
            for name in ("lat", "lon"):
                values[name] = _decode(values[name])
            values["levels"] = None if values["levels"] is None else _decode(values["levels"])
            for name in ("inputs", "targets"):
                values[name] = tuple(values[name])
            values["condition"] = tuple((str(name), float(mean), float(std)) for name, mean, std in values["condition"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the schema is damaged: {type(error).__name__}: {error}.") from error
        return cls(**values)


def _encode(value: Any) -> Any:
    if isinstance(value, Normalisation):
        return {"mean": _encode(value.mean), "std": _encode(value.std)}
    if isinstance(value, np.ndarray):
        row: dict[str, Any] = {"shape": list(value.shape), "dtype": value.dtype.newbyteorder("<").str}
        if value.size <= _PLAIN_SIZE:
            row["values"] = [float(number) for number in value.ravel()]
        else:
            row["base64"] = base64.b64encode(np.ascontiguousarray(value, dtype=row["dtype"]).tobytes()).decode("ascii")
        return row
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    return [_encode(item) for item in value] if isinstance(value, (list, tuple)) else value


def _decode(row: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(row["dtype"])
    if dtype.kind != "f":
        raise ValueError(f"dtype {row['dtype']!r} is no floating type")
    if "values" in row:
        array = np.array(row["values"], dtype=dtype)
    else:
        array = np.frombuffer(base64.b64decode(row["base64"], validate=True), dtype=dtype)
    return array.reshape(row["shape"]).astype(dtype.newbyteorder("="))
