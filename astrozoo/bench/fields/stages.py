"""Families whose training has two stages, within the same budget: half of the steps for each.

`cube_mae` learns to fill in what it hides of the inputs; its encoder then goes on as `cube_vit` of the same size.
`cube_nas` searches with the paper's two-level step: weights learn from one half of the samples, the architecture from
the other. The network it derives goes on with all of them, from the weights of the chosen operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from astrozoo import registry
from astrozoo.batch import Batch
from astrozoo.bench.fields.contestants import Layout, overrides_for, sequences, standardised
from astrozoo.bench.fields.sets import FieldSet
from astrozoo.factory import create_model
from astrozoo.nn import BilevelStep

__all__ = ["first_stage", "optimizer_of"]

Draw = Callable[..., Batch]  # of all samples, or of the half 0 or 1 of them


def first_stage(
    variant: str, family: str, fields: FieldSet, steps: int, rate: float, decay: float, draw: Draw, device: str
) -> nn.Module | None:
    """The network after a first stage of `steps`; None for families that have none.

    Args:
        variant: Who.
        family: Of the variant.
        fields: What is learnt from.
        steps: Of the optimiser.
        rate: Highest learning rate.
        decay: Weight decay.
        draw: Gives training batches.
        device: Where to compute.
    """
    if family == "cube_mae":
        return _pretrained(variant, fields, steps, rate, decay, draw, device)
    if family == "cube_nas":
        return _searched(variant, fields, steps, rate, draw, device)
    return None


def optimizer_of(
    model: nn.Module, steps: int, rate: float, decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """What every stage of everybody is trained with."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)


def _pretrained(
    variant: str, fields: FieldSet, steps: int, rate: float, decay: float, draw: Draw, device: str
) -> nn.Module:
    target = variant.replace("cube_mae", "cube_vit")
    overrides = overrides_for(target, fields)
    known = registry.model_info(variant).config
    same = {name: value for name, value in overrides.items() if name in known}
    model = create_model(variant, **{**same, "out_vars": overrides["in_vars"]}).to(device)
    optimizer, schedule = optimizer_of(model, steps, rate, decay)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model.loss(_plain(draw().to(device), fields))["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    tuned: Any = create_model(target, **overrides).to(device)
    tuned.load_encoder(model)
    return Layout(tuned, fields)


def _searched(variant: str, fields: FieldSet, steps: int, rate: float, draw: Draw, device: str) -> nn.Module:
    model: Any = create_model(variant, **overrides_for(variant, fields)).to(device)
    weights = torch.optim.AdamW(model.weight_parameters(), lr=rate)
    step = BilevelStep(model, weights=weights, unrolled=False)
    for _ in range(steps):
        step(*(_plain(draw(half).to(device), fields) for half in (0, 1)))
    return Layout(model.derive(), fields)


def _plain(batch: Batch, fields: FieldSet) -> Batch:
    """Times as channels: the sample without its mean, and what is to be added to the start."""
    x, y = sequences(batch)
    if fields.start is not None:
        x, y = standardised(x), y - fields.start(batch)
    others = {name: value for name, value in batch.inputs.items() if name != "x"}
    return Batch({"x": x.flatten(1, 2), **others}, {"y": y.flatten(1, 2)}, batch.context)
