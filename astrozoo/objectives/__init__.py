"""Objectives: losses by task, and the metrics of the field.

`task_loss(task, outputs, batch)` is what predictive models share; methods that own their objective implement
`ZooModel.loss` themselves. The metrics need torchmetrics (extra `train`) and are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astrozoo.objectives.losses import register_task_loss, task_loss, task_weights

if TYPE_CHECKING:
    from astrozoo.objectives.metrics import AnomalyCorrelation, AreaWeightedBias, AreaWeightedRMSE

__all__ = [
    "AnomalyCorrelation",
    "AreaWeightedBias",
    "AreaWeightedRMSE",
    "register_task_loss",
    "task_loss",
    "task_weights",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from astrozoo.objectives import metrics

    return getattr(metrics, name)
