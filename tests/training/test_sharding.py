from __future__ import annotations

import copy
import dataclasses

import cases
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from astrozoo.batch import random_batch
from astrozoo.catalogue import definitions
from astrozoo.errors import ConfigError
from astrozoo.training.runtime import LossModule
from astrozoo.training.sharding import reshard, shard, wrap_points

VARIANTS = definitions().models
LARGEST = {variant.family.name: name for name, variant in VARIANTS.items()}  # variants are defined in order of size
FAMILIES = sorted(LARGEST)


@pytest.fixture
def one_process():
    """A process group of one: modules are cut and gathered as among many."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_the_spec_hold_most_weights_and_none_holds_a_third(family):
    variant = VARIANTS[LARGEST[family]]
    model = variant.build(device="meta")
    for pattern in model.spec.blocks:
        assert wrap_points(model, [pattern]), pattern
    sizes = [sum(p.numel() for p in model.get_submodule(name).parameters()) for name in wrap_points(model)]
    total = sum(p.numel() for p in model.parameters())
    assert sum(sizes) > 0.85 * total
    assert max(sizes) < total / 3


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_family_has_the_loss_and_gradients_of_the_whole(family, one_process):
    variant = VARIANTS[LARGEST[family]]
    torch.manual_seed(0)
    known = {field.name for field in dataclasses.fields(variant.family.config)}
    quiet = {name: 0.0 for name in ("dropout", "drop_path") if name in known}
    model = variant.build(variant.config(**{**variant.family.miniature, **quiet}), dtype=torch.float64)
    batch = random_batch(model.spec, 2, sizes={"lat": 16, "lon": 32}, dtype=torch.float64)
    whole, cut = LossModule(copy.deepcopy(model)), LossModule(model)
    shard(cut, model, torch.device("cpu"), 1)
    losses = []
    for module in (whole, cut):
        torch.manual_seed(1)  # masked models draw what they hide
        loss = module(batch)["loss"]
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    assert all(isinstance(parameter, DTensor) for parameter in cut.parameters())
    for (name, parameter), expected in zip(cut.named_parameters(), whole.parameters(), strict=True):
        ours = None if parameter.grad is None else parameter.grad.full_tensor()
        assert (ours is None) == (expected.grad is None), name
        if ours is not None:
            torch.testing.assert_close(ours, expected.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_pattern_fits_one_part_between_dots():
    model = VARIANTS[LARGEST["cube_unet"]].build(device="meta")
    names = wrap_points(model, ["encoder.*.*"])
    assert names[0] == "encoder.0.0"
    assert {name.count(".") for name in names} == {2}
    assert wrap_points(model, ["stem", "stem.*"])[-1] == "stem"  # what is inside is cut first


def test_lists_of_modules_are_not_cut():
    model = VARIANTS[LARGEST["cube_unet"]].build(device="meta")
    with pytest.raises(ConfigError, match=r"distributed.wrap has \['encoder.\*'\], expected names .*'encoder.\*.\*"):
        wrap_points(model, ["encoder.*", "decoder.*.*"])


def test_weights_gathered_for_an_evaluation_are_dropped(one_process):
    model = cases.net(torch.float64, dropout=0.0).eval()
    loss, inputs = LossModule(model), {"x": torch.ones(2, 3, dtype=torch.float64)}
    shard(loss, model, torch.device("cpu"), 1, ["stem"])
    with torch.no_grad():
        before = loss(cases.Batch(inputs), True)
        reshard(loss)
        assert all(isinstance(parameter, DTensor) for parameter in loss.parameters())
        nn.init.zeros_(model.head.weight)
        nn.init.constant_(model.head.bias, 3.0)
        after = loss(cases.Batch(inputs), True)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, torch.full_like(after, 3.0))
