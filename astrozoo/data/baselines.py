"""Forecasts without a model, in the normalised space of a model's outputs: what a model has to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from astrozoo.batch import Batch
from astrozoo.data.datasets import FieldDataset, collate
from astrozoo.data.encoding import block_mean, upsample
from astrozoo.data.schema import FieldSchema
from astrozoo.objectives.area import area_weights

__all__ = ["baselines_of", "normalised_climatology"]

Baseline = Callable[[Batch], Tensor]


def baselines_of(
    schema: FieldSchema, climatology: Mapping[str, np.ndarray], train: FieldDataset
) -> dict[str, Baseline]:
    """The baselines of a task, by name.

    `climatology` is the mean of the training part. Forecasts of variables that are also inputs add `persistence` (the
    present) and `damped_persistence` (climatology plus the present anomaly times its regression on the training part,
    one coefficient per variable and level). Downscaling adds `bilinear` and `climatology_plus_bilinear_anomaly`.
    """
    mean = normalised_climatology(schema, climatology)
    steps = () if schema.steps is None else (schema.steps,)
    baselines: dict[str, Baseline] = {
        "climatology": lambda batch: _to(mean, batch).expand(len(batch), *steps, *mean.shape)
    }
    if schema.task == "downscale":
        offset = _bilinear_offset(schema)
        baselines["bilinear"] = lambda batch: _present(batch, len(mean)) + _to(offset, batch)
        # x is the interpolated anomaly from the normalising mean; that from climatology differs by a constant field.
        shift = _bilinear_of(schema, mean)
        baselines["climatology_plus_bilinear_anomaly"] = lambda batch: (
            _present(batch, len(mean)) + _to(mean - shift, batch)
        )
    if schema.task == "forecast" and set(schema.targets) <= set(schema.inputs):
        channels = schema.channels(schema.inputs)
        last = 0 if schema.steps else (schema.history - 1) * len(channels)
        places = [last + channels.index(channel) for channel in schema.channels(schema.targets)]

        def present(batch: Batch) -> Tensor:
            """`[batch, var, level, lat, lon]`; of a sequence `[batch, 1, var, level, lat, lon]`."""
            x = batch.inputs["x"]
            return x[:, -1:, places] if schema.steps else x[:, places]

        damping = _damping(train, mean, present)
        baselines["persistence"] = lambda batch: present(batch).expand(len(batch), *steps, *mean.shape)
        baselines["damped_persistence"] = lambda batch: (
            _to(mean, batch) + _to(damping, batch) * (present(batch) - _to(mean, batch))
        )
    return baselines


def normalised_climatology(schema: FieldSchema, climatology: Mapping[str, np.ndarray]) -> Tensor:
    """`[var, level, lat, lon]`: the training mean as a model would output it; 0 where nothing is known."""
    arrays = [
        climatology[name] if index is None else climatology[name][index : index + 1]
        for name, index in schema.channels(schema.targets)
    ]
    normal = (np.stack(arrays) - schema.stacked(schema.targets, "mean")) / schema.stacked(schema.targets, "std")
    return torch.from_numpy(np.nan_to_num(normal)).float()


def _damping(train: FieldDataset, mean: Tensor, present: Baseline) -> Tensor:
    """`[step?, var, level, 1, 1]`: regression of the target's anomaly on the present's, by area, over known targets."""
    weight = area_weights(train.lat)[:, None].double()
    above = torch.zeros((), dtype=torch.float64)
    below = above.clone()
    for batch in DataLoader(train, batch_size=32, collate_fn=collate):
        x = (present(batch) - mean).double()
        y = (batch.targets["y"] - mean).double()
        known = torch.isfinite(y) & torch.isfinite(x)
        x, y = torch.where(known, x, 0.0), torch.where(known, y, 0.0)  # [batch, step?, var, level, lat, lon]
        above = above + (weight * x * y).sum(dim=(0, -2, -1))[..., None, None]
        below = below + (weight * x * x).sum(dim=(0, -2, -1))[..., None, None]
    return torch.where(below > 0, above / below.clamp_min(1e-30), 0.0).float()


def _bilinear_of(schema: FieldSchema, normal: Tensor) -> Tensor:
    """Block means of a normalised field, taken in physical units, interpolated and normalised again."""
    std = schema.stacked(schema.targets, "std")
    return _interpolated(schema, normal.double().numpy() * std) / torch.from_numpy(std).float()


def _bilinear_offset(schema: FieldSchema) -> Tensor:
    """What turns the interpolated anomaly into the interpolated field: interpolated mean minus mean, normalised."""
    mean, std = (schema.stacked(schema.targets, what) for what in ("mean", "std"))
    whole = np.broadcast_to(mean, (*mean.shape[:2], schema.lat.size, schema.lon.size))
    return ((_interpolated(schema, whole).double() - torch.from_numpy(mean)) / torch.from_numpy(std)).float()


def _interpolated(schema: FieldSchema, fine: np.ndarray) -> Tensor:
    factor = int(schema.options["factor"])
    coarse = torch.from_numpy(block_mean(fine, factor))[None]
    return upsample(coarse, factor, periodic=schema.longitude == "periodic")[0].float()


def _present(batch: Batch, count: int) -> Tensor:
    return batch.inputs["x"][:, :count]


def _to(field: Tensor, batch: Batch) -> Tensor:
    x = batch.inputs["x"]
    return field.to(device=x.device, dtype=x.dtype)
