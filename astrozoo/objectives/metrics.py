"""Metrics of the field on latitude-longitude grids, weighted by cell area.

They are `torchmetrics.Metric`s: they accumulate sums in float64 over batches and add them up over processes. Missing
targets (NaN) carry no weight. Predictions and targets are `[batch, *channels, lat, lon]`, results `[*channels]`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from astrozoo.errors import BackendUnavailableError, InputError
from astrozoo.objectives.area import area_weights

try:
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise BackendUnavailableError(
        f"the metrics need {error.name!r}, which is not installed; run: pip install 'astrozoo[train]'"
    ) from error

__all__ = ["AnomalyCorrelation", "AreaWeightedBias", "AreaWeightedRMSE"]


class _FieldMetric(Metric):
    """Common part: area weights, and sums per channel.

    The sum is a state named as the class says: a `MetricCollection` takes metrics whose states have equal names, and
    equal values after the first batch, for one metric, and RMSE and bias of a perfect first batch are both 0.

    Args:
        lat: `[lat]`, degrees north.
        channels: Sizes between the batch and the grid, such as `(var, level)`; `()` for `[batch, lat, lon]`.
    """

    full_state_update = False
    summed: ClassVar[str]
    weight: Tensor
    count: Tensor

    def __init__(self, lat: Tensor, channels: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.register_buffer("weight", area_weights(lat.double())[:, None], persistent=False)
        self.add_state(self.summed, torch.zeros(self.channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(self.channels, dtype=torch.float64), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: str | torch.dtype) -> _FieldMetric:
        """Sums stay in float64 whatever precision the model runs in."""
        del dst_type
        return self

    def _known(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction, target (0 where unknown) and weights, in float64."""
        expected = (*self.channels, self.weight.shape[0])
        if prediction.shape != target.shape or tuple(target.shape[1:-1]) != expected:
            raise InputError(
                f"{type(self).__name__} expects prediction and target [batch, {', '.join(map(str, expected))}, lon], "
                f"got {list(prediction.shape)} and {list(target.shape)}."
            )
        known = torch.isfinite(target)
        prediction = torch.where(known, prediction.double(), 0.0)
        target = torch.where(known, target.double(), 0.0)
        return prediction, target, known * self.weight

    def _add(self, total: Tensor, count: Tensor) -> None:
        setattr(self, self.summed, getattr(self, self.summed) + total)
        self.count = self.count + count

    def _mean(self) -> Tensor:
        total: Tensor = getattr(self, self.summed)
        return torch.where(self.count > 0, total / self.count.clamp_min(torch.finfo(torch.float64).tiny), torch.nan)


class AreaWeightedRMSE(_FieldMetric):
    """Square root of the area-weighted mean squared error over all samples and cells."""

    summed = "squared_error"
    higher_is_better = False

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        prediction, target, weight = self._known(prediction, target)
        squares = (weight * (prediction - target).square()).sum(dim=(0, -2, -1))
        self._add(squares, weight.sum(dim=(0, -2, -1)))

    def compute(self) -> Tensor:
        """`[*channels]`; NaN where no target was known."""
        return self._mean().sqrt()


class AreaWeightedBias(_FieldMetric):
    """Area-weighted mean of prediction minus target."""

    summed = "error"

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        prediction, target, weight = self._known(prediction, target)
        self._add((weight * (prediction - target)).sum(dim=(0, -2, -1)), weight.sum(dim=(0, -2, -1)))

    def compute(self) -> Tensor:
        """`[*channels]`; NaN where no target was known."""
        return self._mean()


class AnomalyCorrelation(_FieldMetric):
    """Anomaly correlation coefficient (ACC): uncentred, area-weighted, per sample, then averaged over samples.

    `sum(w p t) / sqrt(sum(w p p) sum(w t t))` with anomalies `p` and `t` from a climatology. A sample without known
    targets, or whose anomaly is zero everywhere, has no correlation and is left out.

    Args:
        climatology: `[*channels, lat, lon]`, subtracted from both; None where they are anomalies already.
    """

    summed = "correlation"
    higher_is_better = True
    climatology: Tensor | None

    def __init__(self, lat: Tensor, channels: tuple[int, ...] = (), climatology: Tensor | None = None) -> None:
        super().__init__(lat, channels)
        self.register_buffer("climatology", None if climatology is None else climatology.double(), persistent=False)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if self.climatology is not None:
            prediction, target = prediction.double() - self.climatology, target.double() - self.climatology
        prediction, target, weight = self._known(prediction, target)
        covariance = (weight * prediction * target).sum(dim=(-2, -1))  # [batch, *channels]
        scale = ((weight * prediction.square()).sum(dim=(-2, -1)) * (weight * target.square()).sum(dim=(-2, -1))).sqrt()
        defined = scale != 0  # one that is not finite is counted: a broken prediction must not score well
        correlation = torch.where(defined, covariance / torch.where(defined, scale, 1.0), 0.0)
        self._add(correlation.sum(dim=0), defined.sum(dim=0))

    def compute(self) -> Tensor:
        """`[*channels]`, from -1 to 1; NaN where no sample has a correlation."""
        return self._mean()
