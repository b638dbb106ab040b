"""What needs no training by gradient: persistence, climatology, and ridge regressions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from astrozoo.batch import Batch
from astrozoo.bench.fields.contestants import sequences, standardised
from astrozoo.bench.fields.sets import FieldSet
from astrozoo.bench.fields.training import draw
from astrozoo.objectives.area import area_weights

__all__ = ["baselines"]

_PATTERNS = 20
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4)

Baseline = Callable[[Batch], Tensor]


def baselines(fields: FieldSet) -> dict[str, Baseline]:
    """Forecasts without a network, by name, in the normalised space of the targets."""
    if fields.forecasts:
        known = fields.task.baselines()
        kept = {name: known[name] for name in ("persistence", "damped_persistence", "climatology")}
        return {**kept, "ridge": _pattern_ridge(fields)}
    known = {"climatology": fields.task.baselines()["climatology"]}
    if fields.task.field_schema.task == "infill":
        known["nearest"] = _nearest
    return {**known, "ridge": _local_ridge(fields)}


def _pattern_ridge(fields: FieldSet) -> Baseline:
    """The leading patterns (EOFs) from those of all input times, by ridge regression; the penalty by validation.

    As the networks it sees departures from the sample's own mean, and corrects the same start.
    """
    start = fields.start
    assert start is not None
    train = fields.task.collate(fields.task.train.__getitems__(range(len(fields.task.train))))
    weight = area_weights(train.context["lat"].double()).sqrt()[:, None]
    x, y = (tensor.double() for tensor in sequences(train))
    patterns = torch.linalg.svd(((x[:, -1] - x[:, -1].mean(0)) * weight).flatten(1), full_matrices=False).Vh
    patterns = patterns[: min(_PATTERNS, len(patterns))].T  # [cell, pattern]

    def features(batch: Batch) -> Tensor:
        x = sequences(batch)[0].double()
        amplitudes = (standardised(x) * weight).flatten(2) @ patterns  # [sample, time, pattern]
        others = [batch.inputs["condition"].double()] if "condition" in batch.inputs else []
        return torch.cat([amplitudes.flatten(1), torch.ones(len(x), 1, dtype=x.dtype), *others], 1)

    change = ((y - start(train)) * weight).flatten(2) @ patterns  # [sample, step, pattern]
    given = features(train)
    gram, cross = given.T @ given, given.T @ change.flatten(1)

    def at(penalty: float) -> Baseline:
        scale = penalty * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        solution = torch.linalg.solve(gram + scale, cross)

        def predict(batch: Batch) -> Tensor:
            first = start(batch).double()
            amplitudes = (features(batch) @ solution).unflatten(1, change.shape[1:])
            moved = (amplitudes @ patterns.T).unflatten(2, first.shape[2:]) / weight
            return (first + moved).float()

        return predict

    return min(
        (at(penalty) for penalty in _PENALTIES),
        key=lambda ridge: fields.score(ridge, fields.chosen_by)[fields.headline],
    )


def _local_ridge(fields: FieldSet) -> Baseline:
    """Each cell from all variables in the 5 x 5 cells around it, by one ridge regression over all cells and levels."""

    def stencil(batch: Batch) -> Tensor:
        x = batch.inputs["x"]
        planes = x.transpose(1, 2).flatten(0, 1)  # [sample * level, var, lat, lon]
        if "static" in batch.inputs:
            planes = torch.cat([planes, batch.inputs["static"].repeat_interleave(x.shape[2], 0)], 1)
        planes = F.pad(F.pad(planes, (2, 2, 0, 0), mode="circular"), (0, 0, 2, 2), mode="replicate")
        rows = F.unfold(planes, 5).mT.double()  # [sample * level, cell, channel * 25]
        level = torch.eye(x.shape[2], dtype=rows.dtype).repeat(len(x), 1)[:, None].expand(-1, rows.shape[1], -1)
        return torch.cat([rows, level], 2).flatten(0, 1)

    gram, cross = None, None
    generator = torch.Generator().manual_seed(0)
    for step in range(24):
        batch = draw(fields, 1, step, generator)
        given = stencil(batch)
        target = batch.targets["y"].movedim(1, -1).flatten(0, -2).double()  # [sample * level * cell, var]
        known = torch.isfinite(target).all(1)
        given, target = given[known], target[known]
        gram = given.T @ given if gram is None else gram + given.T @ given
        cross = given.T @ target if cross is None else cross + given.T @ target
    assert gram is not None
    assert cross is not None
    solution = torch.linalg.solve(gram + 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype), cross)

    def predict(batch: Batch) -> Tensor:
        sizes = batch.targets["y"].movedim(1, -1).shape
        return (stencil(batch) @ solution).reshape(sizes).movedim(-1, 1).float()

    return predict


def _nearest(batch: Batch) -> Tensor:
    """The nearest known column along the circle of latitude."""
    fields, known = batch.inputs["x"].chunk(2, 1)
    result, found = fields.clone(), known > 0
    for distance in range(1, fields.shape[-1] // 2 + 1):
        for turn in (distance, -distance):
            there = (known.roll(turn, -1) > 0) & ~found
            result = torch.where(there, fields.roll(turn, -1), result)
            found = found | there
    return result
