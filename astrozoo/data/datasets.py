"""Datasets of unbatched samples, and the fast path that gathers a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from astrozoo.batch import Batch
from astrozoo.batch import collate as collate_samples
from astrozoo.data.encoding import Encoding
from astrozoo.data.schema import FieldSchema
from astrozoo.data.series import Series, readable
from astrozoo.errors import DataError

__all__ = ["FieldDataset", "collate", "condition_rows"]

_CYCLES = ("day_of_year", "hour_of_day")


class FieldDataset(Dataset[Batch]):
    """Samples of one part of a split: `inputs` by the names of a model's `forward`, target `y`, context `lat`.

    `dataset[i]` is one `Batch` without batch dimension: `x[var, level, lat, lon]`, `static[static, lat, lon]`,
    `condition[param]`, `y[var, level, lat, lon]`; `x` and `y` of a sequence have a time axis in front. A DataLoader
    calls `__getitems__`, which gathers the samples of a batch in one go; pass `collate_fn=task.collate`, which takes
    either.

    Attributes:
        rows: `[sample]`, the anchor of each sample: `member * steps + step`.
        times, members: The axes that `rows` counts in.
    """

    def __init__(
        self,
        encoding: Encoding,
        rows: Tensor,
        inputs: Series,
        targets: Series | None,
        *,
        times: np.ndarray,
        members: Sequence[str] | None,
        condition: Tensor | None,
        target_channels: Tensor | None = None,
    ) -> None:
        self.encoding = encoding
        self.schema: FieldSchema = encoding.schema
        self.rows = rows
        self.inputs = inputs
        self.targets = targets
        self.times = times
        self.members = members
        self.condition = condition
        self.target_channels = target_channels
        fixed = list(self.schema.static.values())
        self.static = torch.from_numpy(np.stack(fixed)).float() if fixed else None
        self.lat = torch.from_numpy(self.schema.lat).float()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        batch = self.__getitems__([index])
        inputs = {name: tensor[0] for name, tensor in batch.inputs.items()}
        return Batch(inputs, {name: tensor[0] for name, tensor in batch.targets.items()}, batch.context)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = self.rows[torch.as_tensor(indices)]
        inputs = {"x": self.encoding.inputs(self.inputs, rows)}
        if self.static is not None:
            inputs["static"] = self.static.expand(len(rows), *self.static.shape)
        if self.condition is not None:
            inputs["condition"] = self.condition[rows]
        targets = {}
        if self.targets is not None:
            y = self.encoding.targets(self.targets, rows)
            targets["y"] = y if self.target_channels is None else y.index_select(-4, self.target_channels)
        return Batch(inputs, targets, {"lat": self.lat})

    def set_epoch(self, epoch: int) -> None:
        """Draw other holes in this epoch (infilling); other tasks do not depend on it."""
        counter = getattr(self.encoding, "epoch", None)
        if counter is None:
            return
        if get_worker_info() is None:
            counter.fill_(epoch)
        else:  # other workers may still be in the epoch before
            self.encoding.epoch = torch.tensor(epoch)  # type: ignore[attr-defined]

    def coordinates(self, indices: Sequence[int] | None = None) -> dict[str, Any]:
        """`member` and `init_time` of samples: what `to_dataset` needs to label outputs."""
        rows = self.rows if indices is None else self.rows[torch.as_tensor(indices)]
        member, step = np.divmod(rows.numpy(), len(self.times))
        coordinates: dict[str, Any] = {"init_time": self.times[step], "times": self.times}
        if self.members is not None:
            coordinates["member"] = np.array(self.members)[member]
        return coordinates


def collate(samples: Sequence[Batch] | Batch) -> Batch:
    """One batch of several samples; what `__getitems__` gathered is one already."""
    return samples if isinstance(samples, Batch) else collate_samples(samples)


def condition_rows(fields: xr.Dataset, entries: Sequence[tuple[str, float, float]]) -> Tensor | None:
    """`[row, param]`: the conditioning vector of every time step of every member.

    A cycle (`day_of_year`, `hour_of_day`) gives its sine and cosine, a forcing variable its standardised value.

    Raises:
        DataError: A forcing is missing at some time, or the time axis has no dates.
    """
    if not entries:
        return None
    members, steps = fields.sizes.get("member", 1), fields.sizes["time"]
    columns = []
    for name, mean, std in entries:
        if name in _CYCLES:
            phase = np.tile(_phase(fields["time"], name), members)
            columns += [np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)]
            continue
        values = fields[name]
        values = values.transpose("member", "time") if "member" in values.dims else values.expand_dims(member=members)
        with readable(name, fields):
            column = (np.asarray(values.values, dtype=np.float64).reshape(members * steps) - mean) / std
        if not np.isfinite(column).all():
            raise DataError(f"forcing {name!r} has {(~np.isfinite(column)).sum()} missing values; fill them first.")
        columns.append(column)
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def _phase(time: xr.DataArray, cycle: str) -> np.ndarray:
    if time.dtype.kind not in "MO":
        raise DataError(f"condition {cycle!r} needs dates, but the time axis of the fields has none.")
    hour = time.dt.hour.values + time.dt.minute.values / 60.0
    if cycle == "hour_of_day":
        return np.asarray(hour / 24.0)
    length = 360.0 if time.dt.calendar == "360_day" else 365.25
    return np.asarray((time.dt.dayofyear.values - 1 + hour / 24.0) / length)
