"""What each task makes of a row: the tensors a model takes, and those it should give.

One small class per task; everything else (files, statistics, splits, units) is the same for all and lives elsewhere.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from astrozoo.data.schema import FieldSchema
from astrozoo.data.series import Series, Transform

__all__ = ["Downscale", "Encoding", "Forecast", "Infill", "Standardise", "block_mean", "encoding_of", "upsample"]


class Encoding(Protocol):
    """How a task reads rows around an anchor.

    Attributes:
        offsets: Steps relative to the anchor that a sample touches, first and last.
    """

    schema: FieldSchema
    offsets: tuple[int, int]

    def in_vars(self) -> int:
        """Length of the `var` axis of `x`."""

    def input_transform(self) -> Transform:
        """Physical fields of the input variables -> rows of the input series."""

    def inputs(self, series: Series, rows: Tensor) -> Tensor:
        """Anchors `rows[batch]` -> `x[batch, var, level, lat, lon]`; sequences have `time` after `batch`."""

    def targets(self, series: Series, rows: Tensor) -> Tensor:
        """Anchors `rows[batch]` -> `y[batch, var, level, lat, lon]`, NaN where it does not count; likewise."""


class Forecast:
    """Targets `lead` steps after the last of `history` input steps; in a sequence, `steps` of them, `lead` apart."""

    def __init__(self, schema: FieldSchema) -> None:
        self.schema = schema
        self.offsets = (1 - schema.history, schema.lead * (schema.steps or 1))
        self._history = torch.arange(1 - schema.history, 1)
        self._leads = schema.lead * torch.arange(1, (schema.steps or 1) + 1)

    def in_vars(self) -> int:
        """Length of the `var` axis of `x`."""
        stacked = self.schema.history if self.schema.steps is None else 1
        channels = len(self.schema.channels(self.schema.inputs)) * stacked
        return channels * (2 if self.schema.fill == "mask" else 1)

    def input_transform(self) -> Transform:
        """What the rows of the input series are made with."""
        return Standardise(self.schema, self.schema.inputs)

    def inputs(self, series: Series, rows: Tensor) -> Tensor:
        """Anchors `rows[batch]` -> `x[batch, var, level, lat, lon]`; a sequence has `time` after `batch`."""
        window = series.take(rows[:, None] + self._history)  # [batch, history, var, level, lat, lon], oldest first
        return _fill(window if self.schema.steps else window.flatten(1, 2), self.schema.fill)

    def targets(self, series: Series, rows: Tensor) -> Tensor:
        """Anchors `rows[batch]` -> `y[batch, var, level, lat, lon]`, NaN where it does not count; likewise."""
        future = series.take(rows[:, None] + self._leads)  # [batch, step, var, level, lat, lon]
        return future if self.schema.steps else future[:, 0]


class Downscale:
    """Fine fields from their block means. The input is the coarse anomaly from the training mean, interpolated.

    With `normalize="gridpoint"` it carries the fine climatology, so an untrained residual model already adds the coarse
    anomaly to it; with `normalize="variable"` it is the coarse field itself, normalised.
    """

    def __init__(self, schema: FieldSchema) -> None:
        self.schema = schema
        self.offsets = (0, 0)
        self.factor = int(schema.options["factor"])
        self._std = torch.from_numpy(schema.stacked(schema.inputs, "std")).float()

    def in_vars(self) -> int:
        """Length of the `var` axis of `x`."""
        return len(self.schema.channels(self.schema.inputs)) * (2 if self.schema.fill == "mask" else 1)

    def input_transform(self) -> Transform:
        """What the rows of the input series are made with."""
        return _CoarseAnomaly(self.schema)

    def inputs(self, series: Series, rows: Tensor) -> Tensor:
        """Anchors `rows[batch]` -> `x[batch, var, level, lat, lon]`."""
        anomaly = upsample(series.take(rows), self.factor, periodic=self.schema.longitude == "periodic")
        return _fill(anomaly / self._std, self.schema.fill)

    def targets(self, series: Series, rows: Tensor) -> Tensor:
        """Anchors `rows[batch]` -> `y[batch, var, level, lat, lon]`, NaN where it does not count."""
        return series.take(rows)


class Infill:
    """Whole fields from fields with holes: blocks of cells hidden at random, besides those missing in the file.

    The holes of each level are its own, or go through all levels where the option `columns` says so.

    `x` holds the normalised fields, 0 in the holes, then one channel per variable that is 1 where it is known.
    """

    def __init__(self, schema: FieldSchema) -> None:
        self.schema = schema
        self.offsets = (0, 0)
        # Of one dataset: the holes of validation stay as they are. Shared, so that running workers see it change; a
        # worker that is told the epoch of a batch, as by the trainer, keeps one of its own.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.hide = True

    def in_vars(self) -> int:
        """Length of the `var` axis of `x`."""
        return 2 * len(self.schema.channels(self.schema.inputs))

    def input_transform(self) -> Transform:
        """What the rows of the input series are made with."""
        return Standardise(self.schema, self.schema.inputs)

    def inputs(self, series: Series, rows: Tensor) -> Tensor:
        """Anchors `rows[batch]` -> `x[batch, var, level, lat, lon]`."""
        x = series.take(rows)
        known = torch.isfinite(x)
        if self.hide:
            known &= ~self._holes(rows, x.shape)
        return torch.cat([torch.where(known, x, 0.0), known.to(x.dtype)], dim=1)

    def targets(self, series: Series, rows: Tensor) -> Tensor:
        """Anchors `rows[batch]` -> `y[batch, var, level, lat, lon]`, NaN where it does not count."""
        y = series.take(rows)
        if self.schema.options["score"] == "all":
            return y
        return torch.where(self._holes(rows, y.shape), y, torch.nan)

    def _holes(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """`[batch, 1, level, lat, lon]`, True where hidden; the same cells for all variables of a level."""
        block, share, seed = (self.schema.options[key] for key in ("block", "hidden", "seed"))
        levels, lat, lon = shape[-3:]
        level = 1 if self.schema.options.get("columns") else levels
        holes = []
        for row in rows.tolist():
            generator = np.random.default_rng((int(seed), int(self.epoch), row))
            cells = generator.random((level, -(-lat // block), -(-lon // block))) < share
            holes.append(
                np.roll(cells.repeat(block, 1).repeat(block, 2)[:, :lat, :lon], generator.integers(block), axis=2)
            )
        return torch.from_numpy(np.stack(holes))[:, None].expand(-1, -1, levels, -1, -1)


def encoding_of(schema: FieldSchema) -> Forecast | Downscale | Infill:
    """The encoding that a schema describes."""
    kinds: dict[str, type[Forecast | Downscale | Infill]] = {
        "forecast": Forecast,
        "downscale": Downscale,
        "infill": Infill,
    }
    return kinds[schema.task](schema)


def block_mean(values: np.ndarray, factor: int) -> np.ndarray:
    """Plain means over blocks of `factor` x `factor` cells of `[..., lat, lon]`."""
    *leading, lat, lon = values.shape
    return values.reshape(*leading, lat // factor, factor, lon // factor, factor).mean(axis=(-3, -1))


def upsample(coarse: Tensor, factor: int, *, periodic: bool) -> Tensor:
    """Bilinear interpolation to a grid `factor` times as fine; around the globe in longitude when `periodic`.

    Args:
        coarse: `[batch, var, level, lat, lon]`.
        factor: Cells of the fine grid per coarse one, in each direction.
        periodic: Whether the last column neighbours the first.
    """
    flat = coarse.flatten(1, 2)
    pad = 1 if periodic else 0
    if pad:
        flat = torch.cat([flat[..., -1:], flat, flat[..., :1]], dim=-1)
    fine = F.interpolate(flat, scale_factor=factor, mode="bilinear", align_corners=False)
    fine = fine[..., pad * factor : fine.shape[-1] - pad * factor]
    return fine.unflatten(1, coarse.shape[1:3]).contiguous()


class Standardise:
    """Transform: `(raw - mean) / std` in float64, then float32."""

    def __init__(self, schema: FieldSchema, names: tuple[str, ...]) -> None:
        self.mean, self.std = schema.stacked(names, "mean"), schema.stacked(names, "std")

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Transform `raw[time, var, level, lat, lon]`."""
        return ((raw - self.mean) / self.std).astype(np.float32)


class _CoarseAnomaly:
    """Transform: block means of the deviation from the mean; fields that are coarse already are taken as such means."""

    def __init__(self, schema: FieldSchema) -> None:
        self.factor = int(schema.options["factor"])
        mean = schema.stacked(schema.inputs, "mean")
        self.fine = (schema.lat.size, schema.lon.size)
        self.mean = block_mean(np.broadcast_to(mean, (*mean.shape[:2], *self.fine)), self.factor)

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        coarse = block_mean(raw, self.factor) if raw.shape[-2:] == self.fine else raw
        return (coarse - self.mean).astype(np.float32)


def _fill(x: Tensor, how: str) -> Tensor:
    if how == "error":
        return x
    known = torch.isfinite(x)
    filled = torch.where(known, x, 0.0)
    return torch.cat([filled, known.to(x.dtype)], dim=-4) if how == "mask" else filled
