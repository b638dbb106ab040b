"""Scores of a field task in physical units, by variable and level, accumulated over batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from astrozoo.batch import Batch
from astrozoo.data.baselines import normalised_climatology
from astrozoo.data.schema import FieldSchema
from astrozoo.objectives.metrics import AnomalyCorrelation, AreaWeightedBias, AreaWeightedRMSE

__all__ = ["FieldMetrics"]


class FieldMetrics:
    """RMSE, bias and anomaly correlation of normalised outputs, computed in the units of the targets.

    `compute` gives `rmse/NAME`, `bias/NAME`, `acc/NAME`, for several levels also `rmse/NAME_LEVEL` and so on, and for
    several targets `rmse/normalised`: the root mean square over targets, each in units of its standard deviation.
    Scores of a sequence are those of all its steps together (the mean of their correlations); each alone is
    `rmse/NAME_lead1` and so on, counted in time steps.

    Attributes:
        headline: The key to judge a model by; lower is better.
    """

    def __init__(self, schema: FieldSchema, climatology: Mapping[str, np.ndarray]) -> None:
        self.schema = schema
        std = torch.from_numpy(schema.stacked(schema.targets, "std")).double()
        lat = torch.from_numpy(schema.lat)
        mean = normalised_climatology(schema, climatology).double()
        shape = tuple(mean.shape[:2]) if schema.steps is None else (schema.steps, *mean.shape[:2])
        self._std = std
        self._mean = mean
        self._typical = std.mean(dim=(-2, -1)).cpu()  # [var, level]
        self._metrics = {
            "rmse": AreaWeightedRMSE(lat, shape),
            "bias": AreaWeightedBias(lat, shape),
            "acc": AnomalyCorrelation(lat, shape),
        }
        self.labels = schema.labels(schema.targets)
        self.headline = f"rmse/{self.labels[0]}" if len(self.labels) == 1 else "rmse/normalised"

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Add normalised outputs `[batch, step?, var, level, lat, lon]` and the targets of their batch."""
        device = outputs.device
        if self._std.device != device:
            self._std, self._mean = self._std.to(device), self._mean.to(device)
            for metric in self._metrics.values():
                metric.to(device)
        # Anomalies from climatology: RMSE and bias do not see the constant, and ACC is made of them.
        prediction = (outputs.double() - self._mean) * self._std
        target = (batch.targets["y"].to(device).double() - self._mean) * self._std
        for metric in self._metrics.values():
            metric.update(prediction, target)

    def compute(self) -> dict[str, float]:
        """All scores, reduced over the processes of a distributed run."""
        scores: dict[str, float] = {}
        for kind, metric in self._metrics.items():
            every = metric.compute().cpu().reshape(-1, *self._typical.shape)  # torchmetrics drops sizes of 1
            values = _together(every, kind, 0)
            for label, row in zip(self.labels, values, strict=True):
                scores[f"{kind}/{label}"] = float(_together(row, kind, 0))
                if len(row) > 1 and self.schema.levels is not None:
                    for level, value in zip(self.schema.levels, row, strict=True):
                        scores[f"{kind}/{label}_{level:g}"] = float(value)
            if self.schema.steps is not None:
                for step, fields in enumerate(every, 1):
                    for label, row in zip(self.labels, fields, strict=True):
                        scores[f"{kind}/{label}_lead{step * self.schema.lead}"] = float(_together(row, kind, 0))
            if kind == "rmse" and len(self.labels) > 1:
                scores["rmse/normalised"] = float((values / self._typical).square().mean().sqrt())
        # A correlation that does not exist (climatology has no anomaly) is left out: JSON has no NaN.
        return {name: score for name, score in scores.items() if not (name.startswith("acc/") and score != score)}

    def reset(self) -> None:
        """Forget what was accumulated."""
        for metric in self._metrics.values():
            metric.reset()


def _together(values: Tensor, kind: str, dim: int) -> Tensor:
    """One score of several along `dim`: squares are averaged of a root mean square, scores themselves of others."""
    return values.square().mean(dim).sqrt() if kind == "rmse" else values.mean(dim)
