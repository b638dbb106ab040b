"""Losses shared by predictive models, one per task, looked up by the task's name.

Missing targets (NaN) carry no weight. Fields on a latitude-longitude grid are weighted by cell area when the batch's
context holds `lat` in degrees north. Beside each loss stands what it is a mean over: a batch that is cut into
micro-batches, or over processes, has the mean of the parts' losses under these weights, not their plain mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from astrozoo.batch import Batch
from astrozoo.errors import ConfigError
from astrozoo.objectives.area import area_weights

__all__ = ["field_mse", "known_weight", "register_task_loss", "target_mse", "task_loss", "task_weights", "weighted_mse"]

TaskLoss = Callable[[Any, Batch], dict[str, Tensor]]
TaskWeights = Callable[[Batch], dict[str, Tensor]]
_LOSSES: dict[str, TaskLoss] = {}
_WEIGHTS: dict[str, TaskWeights] = {}


def register_task_loss(*tasks: str, weights: TaskWeights | None = None) -> Callable[[TaskLoss], TaskLoss]:
    """Decorator: the loss of every model whose `task` is one of `tasks`.

    Args:
        tasks: Names of tasks.
        weights: What the loss is a mean over, see `task_weights`; None for a mean over samples.
    """

    def register(function: TaskLoss) -> TaskLoss:
        for task in tasks:
            _LOSSES[task] = function
            _WEIGHTS.pop(task, None)
            if weights is not None:
                _WEIGHTS[task] = weights
        return function

    return register


def task_loss(task: str, outputs: Any, batch: Batch) -> dict[str, Tensor]:
    """Scalar `"loss"` and its parts for what a model of `task` returned.

    Raises:
        ConfigError: No loss is registered for the task; such a model must implement `loss` itself.
    """
    try:
        loss = _LOSSES[task]
    except KeyError:
        raise ConfigError(
            f"no shared loss for task {task!r} (known: {', '.join(sorted(_LOSSES))}); "
            "implement loss(batch) in the model."
        ) from None
    return loss(outputs, batch)


def task_weights(task: str, batch: Batch) -> dict[str, Tensor]:
    """What `task_loss` of this batch is a mean over: weights `[]` by names of the parts whose plain mean the loss is.

    `{"loss": ...}` where the loss is one mean; empty where it is a mean over samples.
    """
    return _WEIGHTS[task](batch) if task in _WEIGHTS else {}


def known_weight(target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum `[]` of the weights of finite targets, in at least float32: what `weighted_mse` divides by.

    Args:
        target: NaN where nothing is known.
        weight: Broadcastable to it; by default 1 each.
    """
    dtype = torch.promote_types(target.dtype, torch.float32)
    known = torch.isfinite(target)
    return known.sum(dtype=dtype) if weight is None else (known * weight.to(dtype)).sum()


def weighted_mse(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over the finite targets, in at least float32; 0 with zero gradient where none is finite.

    Args:
        prediction: What a model returned.
        target: Of equal shape; NaN where nothing is known.
        weight: Broadcastable to them, non-negative.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    prediction, target = prediction.to(dtype), target.to(dtype)
    known = torch.isfinite(target)
    weights = known.to(dtype) if weight is None else known * weight.to(dtype)
    # The difference is zeroed before it is squared: NaN * 0 would be NaN again.
    difference = torch.where(known, prediction - torch.where(known, target, 0.0), 0.0)
    return (weights * difference.square()).sum() / weights.sum().clamp_min(torch.finfo(dtype).tiny)


def _cell_weights(batch: Batch) -> Tensor | None:
    lat = batch.context.get("lat")
    return None if lat is None else area_weights(lat)[:, None]  # [lat, 1]


def _field_weights(batch: Batch) -> dict[str, Tensor]:
    return {"loss": known_weight(batch.targets["y"], _cell_weights(batch))}


@register_task_loss("field_regression", "field_forecast", weights=_field_weights)
def field_mse(y: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Area-weighted mean squared error of fields `[..., lat, lon]`, in the (normalised) units of the target."""
    return {"loss": weighted_mse(y, batch.targets["y"], _cell_weights(batch))}


def _target_weights(batch: Batch) -> dict[str, Tensor]:
    return {name: known_weight(target) for name, target in batch.targets.items()}


@register_task_loss("forecast", "regression", weights=_target_weights)
def target_mse(outputs: Any, batch: Batch) -> dict[str, Tensor]:
    """Mean squared error of every target, averaged over the targets; each is also reported by its name."""
    named = outputs._asdict() if hasattr(outputs, "_asdict") else dict.fromkeys(batch.targets, outputs)
    parts = {name: weighted_mse(named[name], target) for name, target in batch.targets.items()}
    return {"loss": torch.stack(list(parts.values())).mean(), **parts}
