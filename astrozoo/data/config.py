"""`DataConfig`: a task on files as plain values, for YAML files and command-line flags."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astrozoo.errors import ConfigError
from astrozoo.registry.names import suggest

if TYPE_CHECKING:
    from astrozoo.data.tasks import FieldTask

__all__ = ["DataConfig"]

_TASKS = ("forecast", "downscale", "infill")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which files, and what to learn from them; `build()` opens the files and gives the task.

    Attributes:
        files: Paths or patterns of NetCDF files or Zarr folders.
        task: `forecast`, `downscale` or `infill`.
        inputs, targets: Variables; empty means all, and the inputs.
        static, condition, normalize, levels_as, fill, lead, history, steps: As for `astrozoo.data.forecast`.
        factor: Of `downscale`.
        hidden, block, columns, score: Of `infill`.
        levels: Levels to keep; empty means all.
        units: Unit by variable to convert to, or to declare.
        engine, chunks, combine, decode_times: As for `astrozoo.data.open_fields`; chunks by dimension.
        in_memory: Whether to hold the fields in memory; by default when a quarter of it suffices.
        train, val, test: Fractions of the time steps, pairs of dates, or labels of members (see `split_by`).
        split_by: `time` or `member`.
        gap: Time steps left out between the parts of a split by time.
    """

    files: tuple[str, ...] = ()
    task: str = "forecast"
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    condition: tuple[str, ...] = ()
    normalize: str = "variable"
    levels_as: str = "axis"
    fill: str = "error"
    lead: int = 1
    history: int = 1
    steps: int | None = None
    factor: int = 2
    hidden: float = 0.5
    block: int = 4
    columns: bool = False
    score: str = "hidden"
    levels: tuple[float, ...] = ()
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    engine: str | None = None
    chunks: Mapping[str, int] | None = None
    combine: str = "auto"
    decode_times: bool = True
    in_memory: bool | None = None
    split_by: str = "time"
    train: float | tuple[str, ...] = 0.7
    val: float | tuple[str, ...] = 0.15
    test: float | tuple[str, ...] = 0.15
    gap: int = 1

    def __post_init__(self) -> None:
        for name in ("files", "inputs", "targets", "static", "condition", "levels", "train", "val", "test"):
            value = getattr(self, name)
            if isinstance(value, (str, Path)) or (name == "levels" and isinstance(value, (int, float))):
                value = (value,)
            if isinstance(value, (list, tuple)):
                plain = (str(item) if isinstance(item, (Path, dt.date)) else item for item in value)
                object.__setattr__(self, name, tuple(plain))
        for name in ("units", "chunks"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(f"data.{name} is {value!r}, expected pairs of a name and a value.")
        if self.task not in _TASKS:
            raise ConfigError(
                f"data.task is {self.task!r}, expected one of {', '.join(_TASKS)}.{suggest(self.task, _TASKS)}"
            )
        if self.split_by not in ("time", "member"):
            raise ConfigError(f"data.split_by is {self.split_by!r}, expected 'time' or 'member'.")
        if self.task != "forecast" and self.targets and self.targets != self.inputs:
            raise ConfigError(f"data.targets is {self.targets!r}, but {self.task} predicts its inputs; leave it empty.")

    def build(self) -> FieldTask:
        """Open the files and build the task.

        Raises:
            ConfigError: No files, or a value that the task cannot take.
            DataError: The files do not allow the task.
        """
        from astrozoo.data import MemberSplit, TimeSplit, downscale, forecast, infill, open_fields

        if not self.files:
            raise ConfigError("data.files is empty; give the files to learn from.")
        fields = open_fields(
            self.files,
            engine=self.engine,
            chunks=self.chunks,
            combine=self.combine,
            units=self.units,
            levels=self.levels or None,
            decode_times=self.decode_times,
        )
        parts: dict[str, Any] = {"train": self.train, "val": self.val, "test": self.test}
        split: TimeSplit | MemberSplit
        if self.split_by == "member":
            split = MemberSplit(**{name: part if isinstance(part, tuple) else () for name, part in parts.items()})
        else:
            split = TimeSplit(**parts, gap=self.gap)
        common: dict[str, Any] = {
            "static": self.static,
            "condition": self.condition,
            "normalize": self.normalize,
            "levels_as": self.levels_as,
            "split": split,
            "in_memory": self.in_memory,
        }
        names = self.inputs or None
        if self.task == "forecast":
            return forecast(
                fields,
                names,
                self.targets or None,
                lead=self.lead,
                history=self.history,
                steps=self.steps,
                fill=self.fill,
                **common,
            )
        if self.task == "downscale":
            return downscale(fields, names, factor=self.factor, fill=self.fill, **common)
        holes: dict[str, Any] = {"hidden": self.hidden, "block": self.block, "columns": self.columns}
        return infill(fields, names, **holes, score=self.score, **common)

    def to_dict(self) -> dict[str, Any]:
        """JSON- and YAML-able values; `from_dict` is the inverse."""
        return {
            item.name: list(value) if isinstance(value := getattr(self, item.name), tuple)
            else dict(value) if isinstance(value, Mapping) else value
            for item in dataclasses.fields(self)
        }  # fmt: skip

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> DataConfig:
        """A configuration from plain values, such as a section of a YAML file.

        Raises:
            ConfigError: A key is no field (the nearest are offered), or a value is not allowed.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for name in row:
            if name not in known:
                raise ConfigError(
                    f"data has no field {name!r}.{suggest(str(name), known)} Its fields: {', '.join(known)}."
                )
        return cls(**row)
