from functools import partial

import pytest
import torch
from miniatures import miniature, move

from astrozoo import registry
from astrozoo.batch import random_batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import unet5d
from astrozoo.models.cube.unet5d import TIMES, CubeUNet5DConfig, TimeAttention

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}
CAUSAL = [name for name in unet5d.FAMILY.attentions if registry.attention_info(name).causal]


build = partial(miniature, unet5d.cube_unet5d_tiny)


def inputs_of(model, **sizes):
    sizes = {"level": 2, "lat": 4, "lon": 8, **sizes}
    return random_batch(model.spec, 2, sizes=sizes, dtype=model.dtype).inputs


def time_attention(time="climate_time", **overrides):
    torch.manual_seed(0)
    config = CubeUNet5DConfig(**{"head_dim": 8, **overrides})
    attention = TimeAttention(config, 16, time, 0.0).double().eval()
    attention.norm.reset_parameters()
    move(attention)
    return attention


def changed(module, x, other, *args):
    """Which of `[batch, climate_time, geo_time, level, lat, lon]` react when `x` becomes `other`."""
    with torch.no_grad():
        difference = module(other, *args) - module(x, *args)
    return difference.abs().amax(1) > 1e-12


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(unet5d, f"cube_unet5d_{size}").build(device="meta").num_parameters() / 1e6 <= high


def test_inputs_and_outputs_name_both_times():
    spec = unet5d.cube_unet5d_tiny.spec()
    assert [dim.name for dim in spec.inputs[0].dims] == ["batch", "var", *TIMES, "level", "lat", "lon"]
    assert [dim.name for dim in spec.outputs[0].dims] == ["batch", "out_var", *TIMES, "level", "lat", "lon"]


# -- attention along one time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("causal", [False, True])
def test_time_attention_equals_attention_of_each_cell_alone(time, causal):
    module = time_attention(time, causal_time=causal)
    climate, geo = 3, 4
    x = torch.randn(2 * climate * geo, 16, 2, 3, 2, dtype=torch.float64)
    normed = module.norm(x).unflatten(0, (2, climate, geo))
    expected = x.unflatten(0, (2, climate, geo)).clone()
    for batch in range(2):
        for other in range(geo if time == "climate_time" else climate):
            for cell in [(0, 0, 0), (1, 2, 1), (0, 1, 1)]:
                place = (batch, slice(None), other) if time == "climate_time" else (batch, other)
                line = normed[place][(slice(None), slice(None), *cell)]  # [time, width]
                seen = module.enter(module.attention.forward_reference(line[None]))[0]
                row = expected[place][(slice(None), slice(None), *cell)]
                torch.testing.assert_close(
                    module(x, (climate, geo)).unflatten(0, (2, climate, geo))[place][(slice(None), slice(None), *cell)],
                    row + seen, rtol=0, atol=1e-12,
                )  # fmt: skip


@pytest.mark.parametrize("time", TIMES)
def test_a_change_reaches_the_same_cell_at_other_times_of_one_axis(time):
    module = time_attention(time)
    x = torch.randn(2 * 3 * 4, 16, 1, 2, 3, dtype=torch.float64)
    other = x.clone()
    other.unflatten(0, (2, 3, 4))[1, 2, 1, 0, 0, 1, 2] += 1
    reached = changed(module, x, other, (3, 4)).unflatten(0, (2, 3, 4))
    expected = torch.zeros_like(reached)
    expected[(1, slice(None), 1, 0, 1, 2) if time == "climate_time" else (1, 2, slice(None), 0, 1, 2)] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("attention", CAUSAL)
def test_with_causal_time_no_time_sees_a_later_one(attention):
    module = time_attention("geo_time", causal_time=True, attention=attention)
    x = torch.randn(2 * 5, 16, 1, 2, 2, dtype=torch.float64)
    other = x.clone()
    other.unflatten(0, (1, 2, 5))[:, 0, 3, 0] += 1
    reached = changed(module, x, other, (2, 5)).unflatten(0, (2, 5)).flatten(2).any(-1)
    assert not reached[1].any()
    assert not reached[0, :3].any()
    assert reached[0, 3]


def test_attentions_that_only_look_back_make_time_causal():
    for attention in ("gated_delta", "mamba2"):
        assert CubeUNet5DConfig(attention=attention).causal
    assert not CubeUNet5DConfig().causal


@pytest.mark.parametrize("attention", ["flash", "latent", "linear", "metric_bias", "perceiver"])
def test_without_positions_times_are_a_set_and_with_them_they_are_ordered(attention):
    x = torch.randn(4 * 2, 16, 1, 2, 2, dtype=torch.float64)
    order = [2, 0, 3, 1]
    for positions in (False, True):
        module = time_attention(attention=attention, time_positions=positions)
        moved = x.unflatten(0, (4, 2))[order].flatten(0, 1)
        with torch.no_grad():
            expected = module(x, (4, 2)).unflatten(0, (4, 2))[order].flatten(0, 1)
            same = torch.allclose(module(moved, (4, 2)), expected, rtol=0, atol=1e-12)
        assert same is (not positions) or attention == "metric_bias"  # which knows distances of time by itself


def test_many_lines_are_attended_in_parts():
    module = time_attention()
    lines = torch.randn(11, 3, 16, dtype=torch.float64)
    for most in (None, 11, 4, 1):
        torch.testing.assert_close(unet5d._in_parts(module.attention, lines, most), module.attention(lines))


# -- the model ---------------------------------------------------------------------------------------------------------


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model)).any()


@pytest.mark.parametrize("axis", [2, 3])
def test_an_untrained_attention_treats_every_time_alike(axis):
    """Before training, the model is a U-Net of space: permuting times permutes the output, others do not matter."""
    model = build()
    for module in model.modules():
        if isinstance(module, TimeAttention):
            module.reset_parameters()
    inputs = inputs_of(model, climate_time=3, geo_time=3)
    order = torch.tensor([2, 0, 1])
    y = model(**{**inputs, "x": inputs["x"].index_select(axis, order)})
    torch.testing.assert_close(y, model(**inputs).index_select(axis, order), rtol=0, atol=1e-10)
    alone = {**inputs, "x": inputs["x"].narrow(axis, 1, 1)}
    torch.testing.assert_close(model(**alone), model(**inputs).narrow(axis, 1, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scales", [0, 1])
def test_fields_of_one_time_meet_others_only_in_attention(scales):
    model = build(attention_scales=scales)
    inputs = inputs_of(model, climate_time=3, geo_time=2)
    other = {**inputs, "x": inputs["x"].clone()}
    other["x"][0, :, 1, 0] += 1
    with torch.no_grad():
        reached = (model(**other) - model(**inputs)).abs().amax((1, 4, 5, 6)) > 1e-12  # [batch, climate, geo]
    expected = torch.zeros_like(reached)
    expected[(0,) if scales else (0, 1, 0)] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("axis", [2, 3])
def test_permuting_times_permutes_the_output_only_without_positions(positions, axis):
    model = build(time_positions=positions)
    inputs = inputs_of(model, climate_time=4, geo_time=4)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        y = model(**{**inputs, "x": inputs["x"].index_select(axis, order)})
        expected = model(**inputs).index_select(axis, order)
    assert torch.allclose(y, expected, rtol=0, atol=1e-10) is not positions


def test_times_of_length_one_run_no_attention_and_equal_the_u_net_of_space():
    model = build()
    plain = build(attention_scales=0, jitter=False)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(".times." in name for name in unexpected)
    inputs = inputs_of(model, climate_time=1, geo_time=1)
    for module in model.modules():
        if isinstance(module, TimeAttention):
            module.attention = None  # would fail if it were asked
    torch.testing.assert_close(model(**inputs), plain(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("climate", "geo"), [(1, 1), (1, 5), (7, 1), (2, 3)])
@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (3, 5, 9)])
def test_any_times_and_any_grid_come_back_at_their_sizes(climate, geo, level, lat, lon):
    model = build()
    inputs = inputs_of(model, climate_time=climate, geo_time=geo, level=level, lat=lat, lon=lon)
    y = model(**inputs)
    assert y.shape == (2, 2, climate, geo, level, lat, lon)
    assert y.isfinite().all()
    stages = model.features(**inputs)
    assert all(stage.shape[:1] + stage.shape[2:4] == (2, climate, geo) for stage in stages.values())


def test_a_time_that_is_left_out_has_no_parameters():
    full, one = build(), build(times=("climate_time",))
    assert one.num_parameters() < full.num_parameters()
    inputs = inputs_of(one, climate_time=2, geo_time=3)
    other = {**inputs, "x": inputs["x"].clone()}
    other["x"][:, :, :, 2] += 1
    torch.testing.assert_close(one(**other)[:, :, :, :2], one(**inputs)[:, :, :, :2], rtol=0, atol=0)


def test_static_fields_and_condition_act_at_every_time():
    model = build()
    inputs = inputs_of(model, climate_time=3, geo_time=2)
    for name in ("static", "condition"):
        difference = model(**{**inputs, name: inputs[name] + 1}) - model(**inputs)
        assert (difference.abs().amax((1, 4, 5, 6)) > 0).all()


@pytest.mark.parametrize(("lat", "lon"), [(8, 12), (5, 8)])
def test_rolling_longitude_rolls_output(lat, lon):
    model = build(
        widths=(8, 16, 16), depths=(1, 1, 1), decoder_depths=(1, 1), strides=(2, 2), level_strides=(2, 1),
        attention_scales=2,
    )  # fmt: skip
    assert model.longitude_step(model.config) == 4
    inputs = inputs_of(model, level=3, lat=lat, lon=lon)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(4, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


def test_a_field_without_times_is_refused_by_name():
    with pytest.raises(InputError, match="climate_time, geo_time"):
        build()(torch.zeros(1, 2, 2, 4, 8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("times", ("time",)),
        ("times", ("geo_time", "geo_time")),
        ("times", "geo_time"),
        ("attention_scales", -1),
        ("attention_scales", 3),
        ("head_dim", 3),
        ("causal_time", "yes"),
        ("time_positions", None),
        ("attention", "graph"),
        ("attention_options", ["window"]),
        ("depths", (1,)),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeUNet5DConfig.{field} is " in str(error.value)


def test_an_attention_that_cannot_be_causal_says_so():
    with pytest.raises(ConfigError, match="cannot keep tokens from seeing later ones"):
        build(causal_time=True, attention="multiscale")


def test_lists_from_a_file_become_tuples():
    assert CubeUNet5DConfig(times=["geo_time"]).times == ("geo_time",)
