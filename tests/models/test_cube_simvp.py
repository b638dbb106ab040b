from functools import partial

import pytest
import torch
from miniatures import miniature

from astrozoo.batch import random_batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import simvp

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130)}


build = partial(miniature, simvp.cube_simvp_tiny)


def inputs_of(model, **sizes):
    return random_batch(model.spec, 2, sizes={"level": 1, "lat": 8, "lon": 12, **sizes}, dtype=model.dtype).inputs


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(simvp, f"cube_simvp_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("overrides", [{}, {"poles": "edge"}, {"level_kernel": 1}], ids=str)
@pytest.mark.parametrize(("level", "lat"), [(1, 8), (3, 7)])
def test_rolling_longitude_rolls_output(overrides, level, lat):
    model = build(**overrides)
    step = simvp.CubeSimVP.longitude_step(model.config)
    inputs = inputs_of(model, level=level, lat=lat)
    rolled = {name: x.roll(step, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(step, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 7, 9), (3, 5, 16), (1, 33, 49)])
def test_any_grid_comes_back_at_its_size(level, lat, lon):
    model = build()
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 3, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_grid_below_the_minimum_names_the_dimension():
    model = simvp.cube_simvp_tiny.build()
    with pytest.raises(InputError, match="lat is 3, the smallest accepted is 4"):
        model(torch.zeros(1, 2, 5, 1, 3, 16))


def test_before_few_fields_the_earliest_is_repeated_and_of_many_the_last_are_used():
    model = build()
    inputs = inputs_of(model, time=5)
    x = inputs.pop("x")
    last = model(x[:, -3:], **inputs)
    torch.testing.assert_close(model(x, **inputs), last)
    short = x[:, -2:]
    torch.testing.assert_close(model(short, **inputs), model(torch.cat([short[:, :1], short], 1), **inputs))


@pytest.mark.parametrize("block_steps", [1, 2, 5])
def test_further_blocks_are_forecast_from_the_predicted_fields(block_steps):
    # The features of known fields are kept; the result is that of reading all fields again.
    model = build(block_steps=block_steps, translator_width=8, depth=1)
    inputs = inputs_of(model, time=2, lat=4, lon=4)
    x = inputs.pop("x")
    fields = torch.cat([x[:, :1], x], 1)
    while fields.shape[1] < 3 + 6:
        fields = torch.cat([fields, model(fields, **inputs, steps=block_steps)], 1)
    torch.testing.assert_close(model(x, **inputs, steps=6), fields[:, 3:9])


def test_without_feedback_a_forecast_is_at_most_a_block():
    model = build(out_vars=3, out_steps=2)
    assert model(**inputs_of(model)).shape == (2, 2, 3, 1, 8, 12)
    with pytest.raises(ConfigError, match="predicts 2 steps at once and feeds nothing back"):
        model(**inputs_of(model), steps=3)
    with pytest.raises(ConfigError, match=r"out_steps is 3; allowed: without feedback .*at most block_steps, 2"):
        build(feedback=False)


def test_every_field_out_starts_with_the_fine_features_of_the_last_field_in():
    mixture = simvp.TimeMixture(3, 2).double()
    mixture.reset_parameters()
    x = torch.randn(3 * 2, 4, 2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(mixture(x, 2), x[4:].repeat(2, 1, 1, 1, 1))


def test_the_mixture_of_times_is_a_sum_over_them():
    mixture = simvp.TimeMixture(3, 2).double()
    torch.nn.init.normal_(mixture.weight)
    x = torch.randn(3 * 2, 4, 2, 3, 5, dtype=torch.float64)
    expected = torch.einsum("ot,tbczyx->obczyx", mixture.weight, x.unflatten(0, (3, 2))).flatten(0, 1)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        torch.testing.assert_close(mixture(x.contiguous(memory_format=layout), 2), expected)
    torch.testing.assert_close(mixture(x, 1), expected[:2])


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model)).sum().backward()
    for block in model.translator:
        assert block.film1.affine.weight.grad.any()
        assert block.film2.affine.weight.grad.any()


def test_static_fields_act_on_every_level_and_step():
    model = build()
    inputs = inputs_of(model, level=3)
    other = model(**{**inputs, "static": inputs["static"] + 1})
    assert (other - model(**inputs)).abs().amax((0, 2, 4, 5)).gt(0).all()


def test_dropout_and_drop_path_act_only_in_training():
    for rate in ("dropout", "drop_path"):
        model = build(**{rate: 0.5})
        inputs = inputs_of(model)
        torch.testing.assert_close(model(**inputs), model(**inputs), rtol=0, atol=0)
        model.train()
        assert not torch.equal(model(**inputs), model(**inputs))


def test_features_have_times_where_there_are_some():
    model = build()
    stages = model.features(**inputs_of(model, level=4, time=2))
    assert {name: tuple(stage.shape[1:]) for name, stage in stages.items()} == {
        "encoder0": (2, 8, 4, 8, 12),
        "encoder1": (2, 12, 2, 4, 6),
        "translator0": (16, 2, 4, 6),
        "translator1": (16, 2, 4, 6),
        "decoder0": (2, 8, 4, 8, 12),
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("in_steps", 0),
        ("block_steps", True),
        ("widths", (8,)),
        ("widths", (8, 0)),
        ("strides", (2, 2)),
        ("level_strides", ()),
        ("level_kernel", 2),
        ("translator_width", 0),
        ("depth", 0),
        ("mlp_ratio", 0),
        ("drop_path", 1.0),
        ("longitude", "cyclic"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeSimVPConfig.{field} is " in str(error.value)
