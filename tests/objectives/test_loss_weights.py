"""What a loss is a mean over: the weights that make the losses of parts of a batch into that of the whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from astrozoo.batch import Batch, random_batch
from astrozoo.catalogue import definitions
from astrozoo.objectives import register_task_loss, task_weights
from astrozoo.objectives.losses import known_weight

FAMILIES = {variant.family.name: variant for variant in definitions().models.values()}


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"cube_mae"}))
def test_loss_of_a_batch_is_the_weighted_mean_of_its_samples(family):
    variant = FAMILIES[family]
    torch.manual_seed(0)
    known = {field.name for field in dataclasses.fields(variant.family.config)}
    quiet = {name: 0.0 for name in ("dropout", "drop_path") if name in known}
    model = variant.build(variant.config(**{**variant.family.miniature, **quiet}), dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    batch = random_batch(model.spec, 3, sizes={"lat": 16, "lon": 32}, dtype=torch.float64)
    batch.context["lat"] = torch.linspace(-85, 85, 16, dtype=torch.float64)
    if "y" in batch.targets:
        y = batch.targets["y"]
        y[0, ..., 2:] = (
            torch.nan
        )  # most of the first sample is missing, and the poles, which weigh little, of the second
        y[1, ..., [0, 1, -2, -1], :] = torch.nan
    parts = [
        Batch(*({name: item[i : i + 1] for name, item in part.items()} for part in (batch.inputs, batch.targets)))
        for i in range(3)
    ]
    for part in parts:
        part.context = batch.context
    with torch.no_grad():
        losses = torch.stack([model.loss(part)["loss"] for part in parts])
        weights = torch.stack([model.loss_weights(part)["loss"] for part in parts])
        whole = model.loss(batch)["loss"]
    torch.testing.assert_close((weights * losses).sum() / weights.sum(), whole, rtol=1e-10, atol=0)
    torch.testing.assert_close(weights.sum(), model.loss_weights(batch)["loss"], rtol=1e-12, atol=0)
    assert not torch.isclose(losses.mean(), whole, rtol=1e-6)  # the plain mean would not do


def test_only_models_that_hide_fields_have_no_weights():
    without = []
    for name, variant in FAMILIES.items():
        model = variant.build(variant.config(**variant.family.miniature))
        if not model.loss_weights(random_batch(model.spec, 1)):
            without.append(name)
    assert without == ["cube_mae"]


def test_each_target_has_a_weight_of_its_own():
    batch = Batch({}, {"mass": torch.tensor([1.0, torch.nan]), "radius": torch.tensor([1.0, 2.0])})
    assert {name: float(weight) for name, weight in task_weights("regression", batch).items()} == {
        "mass": 1.0,
        "radius": 2.0,
    }


def test_weights_go_with_the_loss_that_replaces_another():
    register_task_loss("test_weights", weights=lambda batch: {"loss": torch.ones(())})(lambda outputs, batch: {})
    assert task_weights("test_weights", Batch({}))
    register_task_loss("test_weights")(lambda outputs, batch: {})
    assert task_weights("test_weights", Batch({})) == {}


def test_half_precision_targets_are_counted_exactly():
    target = torch.zeros(70_000, dtype=torch.float16)  # more than float16 can count
    assert known_weight(target).item() == 70_000
    assert known_weight(target, torch.tensor(0.5)).item() == 35_000
