"""What the trainer asks of a data set, and the defaults for what a data set leaves out.

Only `train` is mandatory. A list of `Batch` samples in an object with that one attribute is enough to train on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from astrozoo.batch import Batch, collate
from astrozoo.errors import DataError

__all__ = [
    "Metrics",
    "Samples",
    "TrainingData",
    "baselines_of",
    "collate_of",
    "contents_of",
    "metrics_of",
    "overrides_of",
    "schema_of",
    "split_of",
]


class Samples(Protocol):
    """A map-style data set of unbatched `Batch` samples; picklable when `num_workers` is above 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


class Metrics(Protocol):
    """Accumulates scores over batches; `headline` names the key that decides which model is best (lower is better).

    With several processes `compute` reduces over them, as torchmetrics does.
    """

    headline: str

    def update(self, outputs: Any, batch: Batch) -> None:
        """Add one batch; `outputs` are what the model made of `batch.inputs`."""

    def compute(self) -> dict[str, float]:
        """The scores over all batches added."""


@runtime_checkable
class TrainingData(Protocol):
    """What `train` takes.

    Optional, with defaults:
        val, test: Further splits; without them nothing is evaluated on them.
        collate(samples) -> Batch: `astrozoo.batch.collate`.
        model_overrides() -> dict: Fields of the model's configuration that the data decide. Default none.
        schema() -> dict: How raw data become inputs, JSON-able; saved as `model.preprocessing`.
        contents() -> dict[str, str]: Digests of the values by part; a run goes on with the same only. Default none.
        baselines() -> dict[str, callable]: `Batch -> outputs` of what needs no training, such as persistence.
        new_metrics() -> Metrics: Scores in physical units. Without it the validation loss decides.
    """

    train: Samples


def split_of(data: Any, name: str) -> Samples | None:
    """The split `train`, `val` or `test`, or None where the data have none.

    Raises:
        DataError: `train` is missing, or a split is empty or no map-style data set.
    """
    samples = getattr(data, name, None)
    if samples is None:
        if name == "train":
            hint = " Of a DataLoader pass the data set: the trainer makes batches itself." if _is_loader(data) else ""
            raise DataError(
                f"{type(data).__name__} has no split 'train'.{hint} Data are an object with the attribute `train`, "
                f"a map-style data set of astrozoo.Batch samples (see astrozoo.training.TrainingData)."
            )
        return None
    if not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")):
        raise DataError(
            f"the split {name!r} ({type(samples).__name__}) has no length or no random access; resuming amid an epoch "
            f"needs a map-style data set with __len__ and __getitem__, such as the `dataset` of a DataLoader."
        )
    if len(samples) == 0:
        raise DataError(f"the split {name!r} of {type(data).__name__} is empty; widen its part of the data.")
    return samples


def collate_of(data: Any) -> Callable[[Sequence[Batch]], Batch]:
    """How samples become a batch."""
    return getattr(data, "collate", _collate)


def _collate(samples: Sequence[Batch]) -> Batch:
    if not isinstance(samples[0], Batch):
        raise DataError(
            f"a sample is of type {type(samples[0]).__name__}; expected an astrozoo.Batch such as Batch(inputs={{'x': "
            f"tensor}}, targets={{'y': tensor}}), or a method `collate` of the data that makes one of such samples."
        )
    return collate(samples)


def _is_loader(data: Any) -> bool:
    return hasattr(data, "dataset") and hasattr(data, "batch_sampler")


def schema_of(data: Any) -> dict[str, Any] | None:
    """How raw data become inputs, or None."""
    return data.schema() if hasattr(data, "schema") else None


def contents_of(data: Any) -> Mapping[str, str]:
    """Digests of the values of the data, by part; empty where the data have none."""
    return data.contents() if hasattr(data, "contents") else {}


def overrides_of(data: Any) -> Mapping[str, Any]:
    """Fields of the model's configuration that the data decide."""
    return data.model_overrides() if hasattr(data, "model_overrides") else {}


def baselines_of(data: Any) -> Mapping[str, Callable[[Batch], Any]]:
    """Predictions that need no training, by name."""
    return data.baselines() if hasattr(data, "baselines") else {}


def metrics_of(data: Any) -> Metrics | None:
    """A fresh accumulator of scores, or None."""
    return data.new_metrics() if hasattr(data, "new_metrics") else None
