from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature

from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import unet
from astrozoo.nn import ResidualBlock

RANGES = {
    "nano": (0.2, 1.5),
    "tiny": (1.5, 8),
    "small": (8, 35),
    "base": (35, 130),
    "large": (130, 450),
    "huge": (450, 1200),
}


build = partial(miniature, unet.cube_unet_tiny)


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(unet, f"cube_unet_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("lat", [16, 13])
@pytest.mark.parametrize("lon", [24, 12])
@pytest.mark.parametrize("steps", [1, 2, -1])
def test_rolling_longitude_rolls_output(lat, lon, steps):
    model = build(widths=(8, 12, 16), depths=(1, 1, 1), decoder_depths=(1, 1), strides=(2, 2), level_strides=(2, 1))
    inputs = inputs_of(model, level=5, lat=lat, lon=lon)
    rolled = {name: x.roll(4 * steps, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(4 * steps, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


def test_turning_the_globe_upside_down_and_back_is_seen_across_the_pole():
    # A perturbation in the polar row reaches the opposite meridian over the pole, but not where the pole is an edge.
    for poles, reaches in (("cross", True), ("edge", False)):
        model = build(poles=poles, widths=(8,), depths=(1,), decoder_depths=(), strides=(), level_strides=())
        inputs = inputs_of(model, level=1, lat=8, lon=32)
        moved = {**inputs, "x": inputs["x"].clone()}
        moved["x"][..., 0, 0] += 1
        difference = (model(**moved) - model(**inputs)).abs().amax((0, 1, 2))
        assert bool(difference[0, 16] > 0) is reaches


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 7, 9), (3, 5, 64), (8, 33, 45)])
def test_any_grid_comes_back_at_its_size(level, lat, lon):
    model = build()
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_grid_below_the_minimum_names_the_dimension():
    model = unet.cube_unet_small.build()
    with pytest.raises(InputError, match="lat is 8, the smallest accepted is 16"):
        model(torch.zeros(1, 5, 1, 8, 32))


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model)).any()


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model)).sum().backward()
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 3
    assert all(block.film.affine.weight.grad.any() for block in blocks)


def test_static_fields_act_on_every_level():
    model = build()
    inputs = inputs_of(model, level=4)
    other = model(**{**inputs, "static": inputs["static"] + 1})
    assert (other - model(**inputs)).abs().amax((0, 1, 3, 4)).gt(0).all()


def test_an_input_that_is_not_configured_is_refused():
    model = build(static_vars=0)
    with pytest.raises(InputError, match="takes no input 'static'"):
        model(**inputs_of(model), static=torch.zeros(2, 1, 32, 64, dtype=torch.float64))


def test_a_missing_value_spreads_and_is_not_hidden():
    model = build()
    inputs = inputs_of(model)
    inputs["x"][0, 0, 0, 10, 10] = torch.nan
    y = model(**inputs)
    assert y[0].isnan().any()
    assert y[1].isfinite().all()


def test_dropout_and_drop_path_act_only_in_training():
    model = build(dropout=0.5, drop_path=0.5)
    inputs = inputs_of(model)
    torch.testing.assert_close(model(**inputs), model(**inputs), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(**inputs), model(**inputs))


def test_compiled_with_inductor_gives_the_same():
    model = build(dtype=torch.float32)
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True)(**inputs), model(**inputs), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("in_vars", 0),
        ("in_vars", True),
        ("static_vars", -1),
        ("widths", ()),
        ("widths", (8, 0)),
        ("widths", (8, 16, 32)),
        ("depths", (1,)),
        ("strides", (2, 2)),
        ("level_kernel", 5),
        ("dropout", 1.0),
        ("drop_path", "much"),
        ("longitude", "cyclic"),
        ("poles", "crosses"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    named = "depths" if field == "widths" and len(value) == 3 else field
    assert f"CubeUNetConfig.{named} is " in str(error.value)


def test_a_regional_grid_cannot_cross_the_pole():
    with pytest.raises(ConfigError, match="poles is 'cross'"):
        build(longitude="regional")


def test_lists_from_a_file_become_tuples():
    assert build(widths=[8, 16]).config.widths == (8, 16)
