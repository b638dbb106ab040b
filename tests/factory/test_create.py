"""create_model, create_attention and example_batch."""

from __future__ import annotations

import pytest
import torch

import astrozoo
from astrozoo.errors import ConfigError, UnknownModelError

SMALL = {"widths": (4, 8), "depths": (1, 1), "decoder_depths": (1,), "strides": (2,), "level_strides": (2,)}


def test_overrides_reach_the_configuration_and_the_batch_fits_the_model():
    model = astrozoo.create_model("cube_unet_nano", in_vars=3, out_vars=2, **SMALL)
    batch = astrozoo.example_batch(model, batch_size=2, sizes={"lat": 16, "lon": 32})
    assert batch.inputs["x"].shape == (2, 3, 8, 16, 32)
    assert model(**batch.inputs).shape == (2, 2, 8, 16, 32)
    assert torch.isfinite(model.loss(batch)["loss"])


def test_spec_of_a_model_carries_origin_and_costs_only_of_what_was_measured():
    default = astrozoo.create_model("cube_unet_nano", device="meta")
    assert default.spec.distribution == "astrozoo"
    assert default.spec.costs.parameters == default.num_parameters()
    assert astrozoo.create_model("cube_unet_nano", in_vars=9, device="meta").spec.costs is None


def test_meta_device_and_dtype_are_honoured():
    model = astrozoo.create_model("cube_unet_huge", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


def test_equal_seeds_give_equal_models_and_batches():
    pair = []
    for _ in range(2):
        torch.manual_seed(7)
        pair.append(astrozoo.create_model("cube_unet_nano", **SMALL))
    assert all(torch.equal(a, b) for a, b in zip(pair[0].parameters(), pair[1].parameters(), strict=True))
    a, b, c = (astrozoo.example_batch("cube_unet_nano", seed=seed).inputs["x"] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_unknown_field_names_the_nearest():
    with pytest.raises(ConfigError, match="'in_vars'"):
        astrozoo.create_model("cube_unet_nano", in_var=3)


def test_attention_of_a_family_without_tokens_is_refused():
    with pytest.raises(ConfigError, match="no token attention"):
        astrozoo.create_model("cube_unet_nano", attention="flash")


def test_unknown_attention_is_an_error():
    with pytest.raises(UnknownModelError, match="attention"):
        astrozoo.create_attention("no_such_attention", dim=8, num_heads=2)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"sizes": {"lattitude": 4}}, {"sizes": {"var": 4}}])
def test_batch_that_cannot_be_made_is_refused(options):
    with pytest.raises(ConfigError):
        astrozoo.example_batch("cube_unet_nano", **options)


def test_model_already_built_takes_no_overrides():
    model = astrozoo.create_model("cube_unet_nano", device="meta")
    with pytest.raises(ConfigError, match="already built"):
        astrozoo.example_batch(model, in_vars=2)
    assert astrozoo.example_batch(model).inputs["x"].is_meta
