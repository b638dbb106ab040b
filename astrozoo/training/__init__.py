"""The generic trainer: one loop for every model of the zoo, and evaluation and prediction with the result.

Names are imported when first used, so that reading a `TrainConfig` does not start torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astrozoo.training.api import train
    from astrozoo.training.config import TrainConfig
    from astrozoo.training.estimate import Estimate, largest_batch
    from astrozoo.training.evaluation import evaluate
    from astrozoo.training.lightning import as_lightning_module
    from astrozoo.training.prediction import predict
    from astrozoo.training.protocol import TrainingData
    from astrozoo.training.result import TrainResult

__all__ = [
    "Estimate",
    "TrainConfig",
    "TrainResult",
    "TrainingData",
    "as_lightning_module",
    "evaluate",
    "largest_batch",
    "predict",
    "train",
]

_HOMES = {
    "Estimate": "estimate",
    "TrainConfig": "config",
    "TrainResult": "result",
    "TrainingData": "protocol",
    "as_lightning_module": "lightning",
    "evaluate": "evaluation",
    "largest_batch": "estimate",
    "predict": "prediction",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
