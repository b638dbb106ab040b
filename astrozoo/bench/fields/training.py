"""One contestant, one set of fields, one seed: trained with the common budget and scored on what it has not seen.

Forecasts are corrections: a contestant sees fields without the mean over its own sample's cells and times, divided by
their spread, and its output is added to persistence or damped persistence, whichever validates better. That is the same
for all; it leaves to be learnt what a straight line does not know, and makes a climate that is warmer, and unevenly so,
than in any training year no stranger.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.batch import Batch
from astrozoo.bench.fields.contestants import Contestant, sequences, standardised
from astrozoo.bench.fields.sets import FieldSet
from astrozoo.bench.fields.stages import first_stage, optimizer_of
from astrozoo.objectives import task_loss

__all__ = ["Budget", "Forecaster", "Outcome", "draw", "run_cell"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What everybody gets.

    Attributes:
        steps: Optimiser steps.
        batch: Samples in a step, or as many as there are.
        rates: Highest learning rates tried with the first seed; the one that validates best is kept for the others.
        decay: Weight decay of AdamW.
        checks: Evaluations on the validation part; the best one's weights are scored.
    """

    steps: int = 400
    batch: int = 16
    rates: tuple[float, ...] = (1e-3, 3e-3)
    decay: float = 0.05
    checks: int = 10


@dataclass(kw_only=True)
class Outcome:
    """What came of one training.

    Attributes:
        contestant, fields, seed: Which.
        rate: Highest learning rate.
        parameters: Of the model as it was scored.
        rmse, acc: By lead time; ACC is missing where no anomaly is defined.
        headline: RMSE over everything.
        validation: Of the weights that were kept; None where the set has no validation part.
        seconds: Of training, beside whatever else the device did.
        peak_bytes: Memory that training took on a GPU; 0 elsewhere.
        device: Where it ran.
    """

    contestant: str
    fields: str
    seed: int
    rate: float
    parameters: int
    rmse: list[float]
    acc: list[float]
    headline: float
    validation: float | None
    seconds: float
    peak_bytes: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


class Forecaster(nn.Module):
    """A contestant's network with what all share around it."""

    def __init__(self, network: nn.Module, fields: FieldSet) -> None:
        super().__init__()
        self.network = network
        self.start = fields.start

    def forward(self, batch: Batch) -> Tensor:
        """Normalised fields in the shape of the targets."""
        others = {name: batch.inputs[name] for name in ("static", "condition") if name in batch.inputs}
        x, _ = sequences(batch)
        if self.start is None:
            y = self.network(x, **others)
            return y if batch.targets["y"].ndim == 6 else y[:, 0]
        return self.start(batch) + self.network(standardised(x), **others)


def run_cell(contestant: Contestant, fields: FieldSet, seed: int, budget: Budget, device: str) -> Outcome:
    """Train with the budget, at the rate that validates best if the set can tell, and score."""
    if fields.chosen_by is None:
        return _train(contestant, fields, seed, budget.rates[0], budget, device)
    outcomes = [_train(contestant, fields, seed, rate, budget, device) for rate in budget.rates]
    return min(outcomes, key=lambda outcome: float("inf") if outcome.validation is None else outcome.validation)


def _train(contestant: Contestant, fields: FieldSet, seed: int, rate: float, budget: Budget, device: str) -> Outcome:
    torch.manual_seed(seed)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.empty(1, device=device)  # there are no statistics before the first allocation
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    counter = itertools.count()
    family = contestant.name.rpartition("_")[0]
    network = first_stage(
        contestant.name, family, fields, budget.steps // 2, rate, budget.decay,
        lambda half=None: draw(fields, budget.batch, next(counter), generator, half), device,
    )  # fmt: skip
    steps = budget.steps if network is None else budget.steps - budget.steps // 2
    model = Forecaster((contestant.build(fields) if network is None else network).to(device), fields)
    optimizer, schedule = optimizer_of(model, steps, rate, budget.decay)
    best: float = float("inf")
    kept: list[Tensor] = []
    for step in range(steps):
        batch = draw(fields, budget.batch, next(counter), generator).to(device)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss = task_loss("field_forecast", model(batch), batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if fields.chosen_by is not None and (step + 1) % max(1, steps // budget.checks) == 0:
            value = fields.score(model, fields.chosen_by, device)[fields.headline]
            if value < best:
                best, kept = value, [tensor.detach().clone() for tensor in state(model)]
    for tensor, best_value in zip(state(model) if kept else [], kept, strict=True):
        tensor.data.copy_(best_value)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    scores = fields.score(model, fields.scored_on, device)
    return Outcome(
        contestant=contestant.name, fields=fields.name, seed=seed, rate=rate,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        rmse=by_lead(scores, fields, "rmse"), acc=by_lead(scores, fields, "acc"), headline=scores[fields.headline],
        validation=best if kept else None, seconds=seconds, peak_bytes=peak,
        device=device_name(device),
    )  # fmt: skip


def state(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers; some peers' state dicts hold more than tensors."""
    return [*model.parameters(), *model.buffers()]


def draw(fields: FieldSet, size: int, step: int, generator: torch.Generator, half: int | None = None) -> Batch:
    """A training batch; small sets are taken whole, single snapshots several times.

    Of the samples with even (`half` is 0) or odd numbers (1) only, where there are several.
    """
    copies = range(fields.copies)
    drawn = [_drawn(fields, size, step * len(copies) + copy, generator, half) for copy in copies]
    first = drawn[0]
    if len(drawn) == 1:
        return first
    return Batch(
        {name: torch.cat([one.inputs[name] for one in drawn]) for name in first.inputs},
        {name: torch.cat([one.targets[name] for one in drawn]) for name in first.targets},
        first.context,
    )


def _drawn(fields: FieldSet, size: int, epoch: int, generator: torch.Generator, half: int | None) -> Batch:
    train = fields.task.train
    train.set_epoch(epoch)
    order = torch.randperm(len(train), generator=generator)
    if half is not None and len(train) > 1:
        order = order[order % 2 == half]
    chosen = order[:size].tolist()
    batch = fields.task.collate(train.__getitems__(chosen))
    if fields.turns:
        turn = int(torch.randint(batch.inputs["x"].shape[-1], (), generator=generator))
        batch = _changed(batch, lambda x, _: x.roll(turn, -1), ("x", "static"))
    if fields.odd is not None and torch.rand((), generator=generator) < 0.5:
        batch = mirrored(batch, fields)
    return batch


def mirrored(batch: Batch, fields: FieldSet) -> Batch:
    """The batch with north and south exchanged, but not its static fields: the sine of the latitude stays its own.

    Physical values of odd variables change sign.
    """
    schema = fields.task.field_schema

    def flip(x: Tensor, names: Sequence[str]) -> Tensor:
        odd = torch.tensor([name in (fields.odd or ()) for name in names])[:, None, None, None]
        mean, std = (torch.from_numpy(schema.stacked(names, what)).float() for what in ("mean", "std"))
        x = x.flip(-2)
        return torch.where(odd, -x - 2 * mean / std, x)

    return _changed(batch, lambda x, name: flip(x, schema.targets if name == "y" else schema.inputs), ("x",))


def _changed(batch: Batch, change: Callable[[Tensor, str], Tensor], inputs: Sequence[str]) -> Batch:
    """The batch with its targets and these inputs changed."""
    return Batch(
        {name: change(x, name) if name in inputs else x for name, x in batch.inputs.items()},
        {name: change(y, name) for name, y in batch.targets.items()},
        batch.context,
    )


def by_lead(scores: dict[str, float], fields: FieldSet, kind: str) -> list[float]:
    """The scores at each lead; one where there is no lead."""
    schema = fields.task.field_schema
    label = schema.labels(schema.targets)[0]
    if not fields.forecasts:
        if kind == "rmse":
            return [scores[fields.headline]]
        values = [scores[f"acc/{label}"] for label in schema.labels(schema.targets) if f"acc/{label}" in scores]
        return [sum(values) / len(values)] if values else []
    keys = [f"{kind}/{label}_lead{step}" for step in range(1, (schema.steps or 1) + 1)]
    return [scores[key] for key in keys if key in scores]


def device_name(device: str) -> str:
    """What the numbers were measured on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
