import pytest
import torch

from astrozoo import create_attention
from astrozoo.batch import random_batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import vit
from astrozoo.models.patches import VariableTokens, into_patches, out_of_patches
from astrozoo.models.tokens import GRID_ATTENTIONS, is_relative
from astrozoo.testing import assert_check

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450), "huge": (450, 1200)}


def build(*, jitter=True, dtype=torch.float64, **overrides):
    torch.manual_seed(0)
    fields = {**vit.FAMILY.miniature, "dropout": 0.0, "drop_path": 0.0, **overrides}
    model = vit.cube_vit_tiny.build(vit.cube_vit_tiny.config(**fields), dtype=dtype).eval()
    if jitter:  # the head starts at zero; give every weight something to say
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def inputs_of(model, **sizes):
    return random_batch(model.spec, 2, sizes=sizes, dtype=model.dtype).inputs


def turned(inputs, columns):
    return {name: x.roll(columns, -1) if x.ndim > 2 else x for name, x in inputs.items()}


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(vit, f"cube_vit_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("size", RANGES)
def test_every_size_runs_at_full_size_on_meta(size):
    assert_check(getattr(vit, f"cube_vit_{size}"), "full_size")


# -- the planet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [name for name in GRID_ATTENTIONS if is_relative(name)])
@pytest.mark.parametrize("level", [1, 3])
def test_rolling_longitude_by_a_patch_rolls_output(attention, level):
    model = build(patch=4, attention=attention)
    assert model.longitude_step(model.config) == 4
    inputs = inputs_of(model, level=level, lat=11, lon=20)
    y = model(**inputs)
    for patches in (1, 2, -1):
        torch.testing.assert_close(model(**turned(inputs, 4 * patches)), y.roll(4 * patches, -1), rtol=0, atol=1e-10)


def test_other_attentions_say_why_output_does_not_roll():
    model = build(attention="linear")
    assert "'linear'" in model.longitude_step(model.config)
    inputs = inputs_of(model, level=1, lat=8, lon=16)
    assert not torch.allclose(model(**turned(inputs, 4)), model(**inputs).roll(4, -1))


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    assert not torch.allclose(model(**turned(inputs, 4)), model(**inputs).roll(4, -1))


def test_latitudes_and_levels_are_told_apart():
    model = build()
    inputs = inputs_of(model, level=4, lat=8, lon=8)
    constant = {name: torch.ones_like(x) for name, x in inputs.items()}
    y = model(**constant)
    assert (y[:, :, :2] - y[:, :, 2:]).abs().max() > 1e-3
    assert (y[..., :2, :] - y[..., 2:4, :]).abs().max() > 1e-3


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 33, 49), (3, 5, 64), (8, 9, 12)])
def test_any_grid_comes_back_at_its_size(level, lat, lon):
    model = build(dtype=torch.float32)
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_grid_below_a_patch_names_the_dimension():
    with pytest.raises(InputError, match="lat is 3, the smallest accepted is 4"):
        vit.cube_vit_tiny.build()(torch.zeros(1, 5, 1, 3, 32))


def test_a_single_level_costs_no_second_one():
    model = build(level_patch=2)
    patches, _ = model.encoder.embed.cut(torch.zeros(1, 2, 1, 4, 4, dtype=torch.float64), None)
    assert patches.shape == (1, 4, 2, 4)


def test_a_single_level_is_embedded_as_if_it_were_repeated():
    embed = build(static_vars=0).encoder.embed
    x = torch.randn(2, 2, 1, 6, 8, dtype=torch.float64)
    repeated = embed(*embed.cut(x.expand(-1, -1, 2, -1, -1), None))
    torch.testing.assert_close(embed(*embed.cut(x, None)), repeated)


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longitude", ["periodic", "regional"])
@pytest.mark.parametrize("cells", [(1, 4, 4), (3, 7, 10), (4, 8, 8)], ids=str)
def test_patches_cut_and_put_together_are_the_fields(cells, longitude):
    x = torch.randn(2, 3, *cells)
    patches = into_patches(x, (2, 4, 4), longitude=longitude)
    assert torch.equal(out_of_patches(patches, (2, 4, 4), cells), x)
    assert torch.equal(patches[:, 0, :, :4], x[:, :, 0, 0, :4])


def test_tokens_equal_a_learned_query_that_attends_to_embedded_variables():
    """ClimaX's aggregation, step by step: embed a patch of each variable, add its embedding, attend, project."""
    torch.manual_seed(0)
    variables, dim, heads, width = 3, 8, 2, 6
    config = vit.CubeViTConfig(in_vars=variables, dim=dim, num_heads=heads, patch=2, level_patch=1)
    tokens = VariableTokens(config).double()
    embedding = torch.randn(variables, 4, width).double()
    names = torch.randn(variables, width).double()
    query = torch.randn(1, 1, dim).double()
    attention = create_attention("perceiver", dim=dim, num_heads=heads, context_dim=width, dtype=torch.float64)
    with torch.no_grad():
        attention.output.weight.copy_(torch.eye(dim))
        q = attention.query(query).unflatten(-1, (heads, -1))[0, 0]  # [head, dim / head]
        key = attention.key.weight.unflatten(0, (heads, -1))  # [head, dim / head, width]
        asked = torch.einsum("hd,hdw->wh", q, key) * (dim // heads) ** -0.5
        value = attention.value.weight.T
        tokens.fields.value.copy_((embedding @ value).reshape(variables, 1, 2, 2, dim))
        tokens.fields.value_bias.copy_(names @ value)
        tokens.fields.logit.copy_((embedding @ asked).reshape(variables, 1, 2, 2, heads))
        tokens.fields.logit_bias.copy_(names @ asked)
        x = torch.randn(2, variables, 1, 4, 6).double()
        patches, _ = tokens.cut(x, None)
        embedded = torch.einsum("btvc,vcw->btvw", patches, embedding) + names
        expected = attention(query.expand(2 * 6, -1, -1), embedded.flatten(0, 1))[:, 0].unflatten(0, (2, 6))
        torch.testing.assert_close(tokens(patches), expected)


def test_variables_start_with_equal_weight_and_tokens_of_noise_with_size_one():
    torch.manual_seed(0)
    model = vit.cube_vit_tiny.build(vit.cube_vit_tiny.config(static_vars=3))
    embed = model.encoder.embed
    patches, static = embed.cut(torch.randn(2, 5, 4, 16, 16), torch.randn(2, 3, 16, 16))
    _, logits = embed.fields(patches)
    assert not logits.any()
    assert embed(patches, static).std().item() == pytest.approx(1, rel=0.1)


def test_cost_of_the_trunk_does_not_grow_with_variables():
    few, many = (build(in_vars=count, out_vars=2).encoder.trunk for count in (2, 30))
    assert sum(p.numel() for p in few.parameters()) == sum(p.numel() for p in many.parameters())


def test_static_fields_act_on_every_level():
    model = build()
    inputs = inputs_of(model, level=4, lat=8, lon=8)
    other = model(**{**inputs, "static": inputs["static"] + 1})
    assert (other - model(**inputs)).abs().amax((0, 1, 3, 4)).gt(0).all()


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model, level=2, lat=8, lon=8)).sum().backward()
    assert len(model.encoder.trunk.blocks) == 2
    assert all(film.affine.weight.grad.any() for block in model.encoder.trunk.blocks for film in block.films)


def test_every_cell_sees_every_other():
    model = build(static_vars=0, condition_dim=0)
    x = torch.randn(1, 2, 2, 8, 16, dtype=torch.float64, requires_grad=True)
    model(x)[0, 0, 0, 0, 0].backward()
    assert x.grad.ne(0).all()


def test_seams_between_patches_are_crossed():
    # Without blocks to carry it, only the convolutions of the decoder bring a cell's change over a patch's edge.
    model = build(patch=4, static_vars=0, condition_dim=0, poles="edge")
    with torch.no_grad():
        for block in model.encoder.trunk.blocks:
            block.attention.output.weight.zero_()
    x = torch.randn(1, 2, 1, 8, 16, dtype=torch.float64)
    moved = x.clone()
    moved[..., 0, 3] += 1
    changed = (model(moved) - model(x)).abs().amax((0, 1, 2))[0]
    assert changed[4:9].gt(0).all()  # a cell by the stem, and by each of the four convolutions of the decoder
    assert changed[9:12].eq(0).all()


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model, level=2, lat=8, lon=8)).any()


def test_features_are_grids_of_tokens_and_cells():
    model = build(dtype=torch.float32)
    stages = model.features(**inputs_of(model, level=3, lat=9, lon=12))
    assert {name: tuple(x.shape[1:]) for name, x in stages.items()} == {
        "tokens": (16, 2, 5, 6),
        "block1": (16, 2, 5, 6),
        "block2": (16, 2, 5, 6),
        "cells": (8, 3, 9, 12),
    }


@pytest.mark.parametrize("attention", ["metric_bias", "neighborhood"])
def test_attentions_with_places_compile_whole(attention):
    model = build(attention=attention, dtype=torch.float32)
    inputs = inputs_of(model, level=2, lat=4, lon=8)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs), model(**inputs), rtol=1e-4, atol=1e-4)


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"), [("cell_width", 0), ("level_kernel", 2), ("num_heads", 3), ("attention", "mamba2")]
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match=f"CubeViTConfig.{field} is {value!r}; allowed: "):
        build(**{field: value})


def test_an_encoder_is_taken_over_only_from_one_like_it():
    model, other = build(), build(dim=32)
    with pytest.raises(ConfigError, match=r"embed.fields.value is \[2, 2, 2, 2, 16\], given \[2, 2, 2, 2, 32\]"):
        model.load_encoder(other)
    with pytest.raises(ConfigError, match="Linear has no encoder"):
        model.load_encoder(torch.nn.Linear(1, 1))
