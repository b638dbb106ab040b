from functools import partial

import pytest
import torch
import torch.nn.functional as F
from miniatures import inputs_of, miniature

from astrozoo.batch import Batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import convnext
from astrozoo.models.cube.convnext import MaskedPretraining

RANGES = {"nano": (0.2, 1.5), "tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}


build = partial(miniature, convnext.cube_convnext_tiny)


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(convnext, f"cube_convnext_{size}").build(device="meta").num_parameters() / 1e6 <= high


# -- the block and the grid ----------------------------------------------------------------------------------------


def test_a_block_is_that_of_the_paper():
    # Away from edges and on one level of a band, our block is the official one: `F` spelt out in float64.
    model = build(static_vars=0, condition_dim=0, longitude="regional", poles="edge")
    block = model.encoder[0][0]
    x = torch.randn(2, 8, 1, 9, 12, dtype=torch.float64)
    taps = block.depthwise.level_weight[:, 1]
    kernel = block.depthwise.weight * taps[:, None, None, None]
    image = F.pad(x.squeeze(2), (3, 3, 3, 3), mode="replicate")
    y = F.conv2d(image, kernel, block.depthwise.bias, groups=8).permute(0, 2, 3, 1)
    y = F.layer_norm(y, (8,), block.norm.weight, block.norm.bias, 1e-6)
    y = F.gelu(F.linear(y, block.expand.weight, block.expand.bias))
    response = y.norm(dim=(1, 2), keepdim=True)
    y = block.response.weight * (y * response / response.mean(-1, keepdim=True)) + block.response.bias + y
    y = F.linear(y, block.reduce.weight, block.reduce.bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x, None), x + y.unsqueeze(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("lat", "lon"), [(16, 24), (13, 12)])
@pytest.mark.parametrize("steps", [1, -2])
def test_rolling_longitude_rolls_output(lat, lon, steps):
    model = build(widths=(8, 12, 16), depths=(1, 1, 1), decoder_depths=(1, 1), strides=(2, 2), level_strides=(2, 1))
    inputs = inputs_of(model, level=3, lat=lat, lon=lon)
    rolled = {name: x.roll(4 * steps, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert type(model).longitude_step(model.config) == 4
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(4 * steps, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 7, 9), (3, 5, 64), (1, 33, 49)])
def test_any_grid_comes_back_at_its_size(level, lat, lon):
    model = build()
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_grid_below_the_minimum_names_the_dimension():
    with pytest.raises(InputError, match="lat is 4, the smallest accepted is 8"):
        convnext.cube_convnext_nano.build()(torch.zeros(1, 5, 1, 4, 32))


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=0)
    assert not model(**inputs_of(model)).any()


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model)).sum().backward()
    blocks = [module for module in model.modules() if isinstance(module, convnext.ConvNeXtBlock)]
    assert len(blocks) == 3
    assert all(block.film.affine.weight.grad.any() for block in blocks)


# -- pretraining ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pretraining():
    model = build(widths=(8, 12, 16), depths=(1, 1, 1), decoder_depths=(1, 1), strides=(2, 2), level_strides=(2, 1))
    return MaskedPretraining(model, ratio=0.6)


@pytest.mark.parametrize(("lat", "lon"), [(16, 24), (13, 19)])
def test_the_encoder_knows_nothing_of_masked_cells(pretraining, lat, lon):
    inputs = inputs_of(pretraining.models[0], level=3, lat=lat, lon=lon)
    visible = pretraining.random_mask(inputs["x"])
    fine = visible.repeat_interleave(4, -2).repeat_interleave(4, -1)[..., :lat, :lon]
    features = pretraining.encode(**inputs, visible=visible)
    assert not (features * (1 - visible)).any()
    hidden = torch.where(fine > 0, inputs["x"], torch.nan)
    torch.testing.assert_close(pretraining.encode(**{**inputs, "x": hidden}, visible=visible), features, rtol=0, atol=0)


def test_with_everything_visible_it_is_the_encoder_of_the_model(pretraining):
    model = pretraining.models[0]
    inputs = inputs_of(model, level=3, lat=16, lon=24)
    visible = torch.ones(2, 1, 1, 4, 6, dtype=torch.float64)
    got = pretraining.encode(**inputs, visible=visible)
    torch.testing.assert_close(got, model.features(**inputs)["down2"], rtol=0, atol=1e-12)


def test_the_share_of_masked_cells_is_exact_in_each_sample(pretraining):
    visible = pretraining.random_mask(torch.zeros(5, 2, 1, 40, 40))
    assert visible.shape == (5, 1, 1, 10, 10)
    assert visible.sum((1, 2, 3, 4)).tolist() == [40] * 5
    assert not torch.equal(visible[0], visible[1])


def test_the_loss_looks_at_masked_cells_only_and_trains_encoder_and_decoder(pretraining):
    inputs = inputs_of(pretraining.models[0], level=3, lat=13, lon=19)
    loss = pretraining.loss(Batch(inputs, {}))["loss"]
    loss.backward()
    assert [name for name, value in pretraining.named_parameters() if value.grad is None or not value.grad.any()] == []
    model = pretraining.models[0]
    assert all(value.grad is None for value in (*model.decoder.parameters(), *model.head.parameters()))
    visible = pretraining.random_mask(inputs["x"])
    filled, seen = pretraining(**inputs, visible=visible)
    torch.manual_seed(3)
    loss = pretraining.loss(Batch(inputs, {}))["loss"].item()
    torch.manual_seed(3)
    filled, seen = pretraining(**inputs)
    expected = (filled - inputs["x"]).square()[(seen == 0).expand_as(filled)].mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_pretraining_fills_in_a_wave():
    model = build(in_vars=1, static_vars=0, condition_dim=0, dtype=torch.float32, jitter=0).train()
    pretraining = MaskedPretraining(model, ratio=0.4)
    optimizer = torch.optim.AdamW(pretraining.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        phase = torch.rand(8, 1, 1, 1, 1) * 6.3
        x = torch.sin(torch.arange(16) * 0.3927 + phase).expand(8, 1, 1, 8, 16).contiguous()
        loss = pretraining.loss(Batch({"x": x}, {}))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_ratio_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="between 0 and 1"):
        MaskedPretraining(build(), ratio=1.0)


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value"), [("kernel", 4), ("kernel", 0), ("expansion", 0), ("widths", (8, 0))])
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeConvNeXtConfig.{field} is " in str(error.value)
