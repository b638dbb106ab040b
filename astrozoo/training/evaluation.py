"""Scores of a model and of baselines on a split."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from astrozoo import objectives
from astrozoo.batch import Batch
from astrozoo.errors import ConfigError, DataError, TrainingError
from astrozoo.module import ZooModel
from astrozoo.training.loading import Batches, explain_dead_worker
from astrozoo.training.protocol import Samples, baselines_of, collate_of, metrics_of, split_of
from astrozoo.training.runtime import LossModule, Runtime, mover
from astrozoo.training.sharding import reshard
from astrozoo.weights.load import usable_device

__all__ = ["evaluate", "evaluate_baselines", "score_model"]


def evaluate(
    model: ZooModel | str | os.PathLike[str],
    data: Any,
    split: str = "test",
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    num_workers: int = 0,
) -> dict[str, float]:
    """Scores of a model on a split of `data`, in physical units where the data know them, and its `loss`.

    Args:
        model: A model, or what `load_model` takes.
        data: As `train` takes it.
        split: `train`, `val` or `test`.
        batch_size: Samples per forward pass.
        device: Where to compute; default: where the model is.
        num_workers: Processes that load data.

    Raises:
        ConfigError: The batch size is no positive number, or there is no such device.
        DataError: The data have no such split, or cannot be read.
        TrainingError: A process that loads data has died.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected a whole number above 0.")
    if device is not None:
        device = usable_device(device)
    if not isinstance(model, ZooModel):
        from astrozoo.weights import load_model

        model = load_model(model, device=device)
    samples = split_of(data, split)
    if samples is None:
        raise DataError(f"{type(data).__name__} has no split {split!r}; it has {_splits(data)}.")
    if device is not None:
        model.to(device)
    try:
        return score_model(LossModule(model), samples, data, batch_size=batch_size, num_workers=num_workers)
    except RuntimeError as error:
        explained = explain_dead_worker(error)
        if explained is None:
            raise
        raise TrainingError(explained) from error


def evaluate_baselines(data: Any, samples: Samples, model: ZooModel, *, batch_size: int) -> dict[str, dict[str, float]]:
    """Scores of the data's baselines on `samples`, with the losses they would have as predictions of `model`."""
    baselines = baselines_of(data)
    if not baselines:
        return {}
    scores = _Scores(baselines, data, model)
    with torch.no_grad():
        for batch in _batches(samples, data, batch_size, 0, range(-(-len(samples) // batch_size))):
            outputs = {name: baseline(batch) for name, baseline in baselines.items()}
            # Baselines work on what the loader gives; scores reduce over processes on the device of the run.
            placed = {name: item.to(model.device) if hasattr(item, "to") else item for name, item in outputs.items()}
            scores.update(placed, batch.to(model.device))
    return {name: values for name, values in scores.compute(None).items() if values}


def score_model(
    loss: LossModule,
    samples: Samples,
    data: Any,
    *,
    batch_size: int,
    num_workers: int = 0,
    runtime: Runtime | None = None,
) -> dict[str, float]:
    """Scores of `loss.model`, each process on its share of the batches. Random generators are left as they were.

    A loss that draws random numbers draws the same ones in every evaluation, so that scores compare.
    """
    model = loss.model
    processes, rank = (runtime.processes, runtime.rank) if runtime else (1, 0)
    batch_size = max(1, min(batch_size, -(-len(samples) // processes)))  # so that each process gets a batch if it can
    count = -(-len(samples) // batch_size)
    rounds = -(-count // processes)
    # Sharded models communicate in every forward pass, so each process runs equally many; surplus ones do not score.
    mine = [(index * processes + rank) % count for index in range(rounds)]
    move = mover(model, model.device)
    scores = _Scores({"model": None}, data, model)
    training = model.training
    with _fixed_generators(model.device), torch.no_grad():
        model.eval()
        try:
            with _batches(samples, data, batch_size, num_workers, mine) as batches:
                for index, batch in enumerate(batches):
                    batch = move(batch)
                    predicted = scores.shared_loss or scores.metrics["model"] is not None
                    outputs = loss(batch, True) if predicted else None
                    own = None if scores.shared_loss else loss(batch)
                    if index * processes + rank < count:
                        scores.update({"model": _float(outputs)}, batch, {"model": own})
        finally:
            model.train(training)
            if runtime is not None and runtime.strategy == "fsdp2":
                reshard(loss)
    return scores.compute(runtime)["model"]


class _Scores:
    """Metrics and mean losses of several predictors over the same batches."""

    def __init__(self, names: Mapping[str, Any], data: Any, model: ZooModel) -> None:
        self.shared_loss = type(model).loss is ZooModel.loss
        self.model = model
        self.metrics = {name: metrics_of(data) for name in names}
        self._totals: dict[str, dict[str, list[float]]] = {name: {} for name in names}  # part of the loss: sum, weight

    def update(
        self, outputs: Mapping[str, Any], batch: Batch, losses: Mapping[str, dict[str, Tensor] | None] | None = None
    ) -> None:
        """Add one batch, with what the predictors made of it, and the parts of losses that are the models' own."""
        weights: Mapping[str, Any] = self.model.loss_weights(batch) or {"loss": len(batch)}
        for name, output in outputs.items():
            metrics = self.metrics[name]
            if metrics is not None:
                metrics.update(output, batch)
            parts = losses.get(name) if losses else None
            if self.shared_loss:
                parts = objectives.task_loss(self.model.task, output, batch)
            if parts is not None:
                for part, weight in weights.items():
                    total = self._totals[name].setdefault(part, [0.0, 0.0])
                    total[0] += float(parts[part]) * float(weight)
                    total[1] += float(weight)

    def compute(self, runtime: Runtime | None) -> dict[str, dict[str, float]]:
        """Metrics by predictor, and `loss`: as if all samples were one batch; NaN where no target is known."""
        result = {}
        for name, metrics in self.metrics.items():
            values = {key: float(value) for key, value in metrics.compute().items()} if metrics is not None else {}
            # A process that had nothing to score knows no parts.
            everyone = runtime.gather(self._totals[name]) if runtime else [self._totals[name]]
            names = dict.fromkeys(part for totals in everyone for part in totals)
            means = []
            for part in names:
                total, weight = (math.fsum(item[part][i] for item in everyone if part in item) for i in (0, 1))
                means.append(total / weight if weight else math.nan)
            result[name] = {**values, **({"loss": math.fsum(means) / len(means)} if means else {})}
        return result


def _batches(samples: Samples, data: Any, size: int, workers: int, indices: Any) -> Batches:
    chunks = [list(range(index * size, min((index + 1) * size, len(samples)))) for index in indices]
    # To start processes for a single batch takes longer than to load it here.
    return Batches(samples, collate_of(data), chunks, workers=workers if len(chunks) > 1 else 0)


@contextlib.contextmanager
def _fixed_generators(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def _float(outputs: Any) -> Any:
    """Autocast gives half-precision outputs; scores are computed in at least float32."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*(_float(item) for item in outputs))
    return outputs


def _splits(data: Any) -> str:
    return ", ".join(name for name in ("train", "val", "test") if getattr(data, name, None) is not None) or "none"
