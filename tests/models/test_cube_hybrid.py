from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature

from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import hybrid
from astrozoo.models.ushape_tokens import FeatureTrunk
from astrozoo.nn import MBConv, ResidualBlock, TransformerBlock

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}


build = partial(miniature, hybrid.cube_hybrid_tiny)


def rolled(inputs, columns):
    return {name: x.roll(columns, -1) if x.ndim > 2 else x for name, x in inputs.items()}


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(hybrid, f"cube_hybrid_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("attention", ["flash", "differential", "neighborhood"])
@pytest.mark.parametrize(("lat", "lon", "level"), [(16, 24, 1), (13, 16, 5)])
def test_rolling_longitude_rolls_output(attention, lat, lon, level):
    model = build(
        attention=attention, widths=(8, 16, 16), depths=(1, 1, 1), decoder_depths=(1, 1), strides=(2, 2),
        level_strides=(2, 1), attention_scales=2,
    )  # fmt: skip
    step = model.longitude_step(model.config)
    assert step == 4
    inputs = inputs_of(model, level=level, lat=lat, lon=lon)
    for steps in (1, -2):
        y = model(**rolled(inputs, step * steps))
        torch.testing.assert_close(y, model(**inputs).roll(step * steps, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    assert not torch.allclose(model(**rolled(inputs, 4)), model(**inputs).roll(4, -1))
    assert isinstance(model.longitude_step(model.config), str)


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 33, 49), (3, 5, 20), (8, 7, 9)])
def test_any_grid_comes_back_at_its_size(level, lat, lon):
    model = build()
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_grid_below_the_minimum_names_the_dimension():
    with pytest.raises(InputError, match="lon is 3, the smallest accepted is 4"):
        hybrid.cube_hybrid_tiny.build()(torch.zeros(1, 5, 1, 4, 3))


def test_stages_are_convolution_convolution_transformer_transformer():
    model = hybrid.cube_hybrid_small.build(device="meta")
    kinds = [type(next(iter(stage.blocks if isinstance(stage, FeatureTrunk) else stage))) for stage in model.encoder]
    assert kinds == [MBConv, MBConv, TransformerBlock, TransformerBlock]
    assert all(isinstance(block, ResidualBlock) for stage in model.decoder for block in stage)


@pytest.mark.parametrize("scales", [1, 2])
def test_all_scales_may_attend(scales):
    model = build(attention_scales=scales, head_dim=8, widths=(8, 16))
    assert sum(isinstance(stage, FeatureTrunk) for stage in model.encoder) == scales
    assert model(**inputs_of(model)).isfinite().all()


def test_transformer_stages_see_the_whole_globe_and_convolutions_their_neighbours():
    model = build(depths=(0, 1), poles="edge")
    inputs = inputs_of(model, level=1, lat=4, lon=64)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][:, 0, ..., 0] += 1
    stages, others = model.features(**inputs), model.features(**moved)
    far = {name: (others[name] - stages[name])[..., stages[name].shape[-1] // 2].abs().max() for name in stages}
    assert far["down0"] == 0
    assert far["down1"] > 0
    assert far["up0"] > 0


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model)).any()


def test_drop_path_rises_through_all_stages():
    model = hybrid.cube_hybrid_large.build(hybrid.cube_hybrid_large.config(drop_path=0.3), device="meta")
    rates = [block.drop_path.rate for stage in model.encoder for block in getattr(stage, "blocks", stage)]
    assert rates == sorted(rates)
    assert rates[0] == 0
    assert 0.2 < rates[-1] < 0.3


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model)).sum().backward()
    films = [parameter for name, parameter in model.named_parameters() if ".affine.weight" in name]
    assert len(films) == 1 + 2 * 2 + 1
    assert all(film.grad.any() for film in films)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_scales", 0),
        ("attention_scales", 3),
        ("depths", (1, 0)),
        ("expansion", 0),
        ("head_dim", 5),
        ("mlp_ratio", "wide"),
        ("attention", "gated_delta"),
        ("attention_options", 3),
        ("poles", "crosses"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeHybridConfig.{field} is " in str(error.value)
