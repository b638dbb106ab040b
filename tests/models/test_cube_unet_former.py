from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature

from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import unet, unet_former

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}


build = partial(miniature, unet_former.cube_unet_former_tiny)


def rolled(inputs, columns):
    return {name: x.roll(columns, -1) if x.ndim > 2 else x for name, x in inputs.items()}


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(unet_former, f"cube_unet_former_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("attention", ["flash", "differential", "latent", "neighborhood", "metric_bias"])
@pytest.mark.parametrize(("lat", "lon", "level"), [(16, 24, 1), (13, 12, 5)])
def test_rolling_longitude_rolls_output(attention, lat, lon, level):
    model = build(
        attention=attention, widths=(8, 12, 16), depths=(1, 1, 0), decoder_depths=(1, 1), strides=(2, 2),
        level_strides=(2, 1), head_dim=8,
    )  # fmt: skip
    step = model.longitude_step(model.config)
    assert step == 4
    inputs = inputs_of(model, level=level, lat=lat, lon=lon)
    for steps in (1, -2):
        y = model(**rolled(inputs, step * steps))
        torch.testing.assert_close(y, model(**inputs).roll(step * steps, -1), rtol=0, atol=1e-10)


def test_longitude_step_says_why_there_is_none():
    for overrides in ({"attention": "linformer"}, {"longitude": "regional", "poles": "edge"}):
        config = unet_former.CubeUNetFormerConfig(**overrides)
        assert isinstance(unet_former.CubeUNetFormer.longitude_step(config), str)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    assert not torch.allclose(model(**rolled(inputs, 4)), model(**inputs).roll(4, -1))


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 33, 49), (3, 5, 20), (8, 7, 9)])
def test_any_grid_comes_back_at_its_size(level, lat, lon):
    model = build()
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_grid_below_the_minimum_names_the_dimension():
    model = unet_former.cube_unet_former_tiny.build()
    with pytest.raises(InputError, match="lon is 3, the smallest accepted is 4"):
        model(torch.zeros(1, 5, 1, 4, 3))


def test_the_transformer_carries_what_convolutions_cannot_reach():
    far = {}
    for join in (True, False):
        model = build(longitude="regional", poles="edge", depths=(1, 0), decoder_depths=(1,), condition_dim=0)
        if not join:
            torch.nn.init.zeros_(model.join.weight)
        inputs = inputs_of(model, level=1, lat=4, lon=64)
        moved = {**inputs, "x": inputs["x"].clone()}
        moved["x"][..., 0] += 1
        far[join] = (model(**moved) - model(**inputs))[..., 48:].abs().max()
    assert far[True] > 0
    assert far[False] == 0


def test_an_untrained_transformer_leaves_the_u_net_as_it_is():
    """With the last convolution at zero the model is a cube_unet with the same weights."""
    model = build()
    torch.nn.init.zeros_(model.join.weight)
    torch.nn.init.zeros_(model.join.bias)
    fields = {
        name: value for name, value in unet_former.FAMILY.miniature.items() if name not in ("trunk_depth", "head_dim")
    }
    fields |= {"dropout": 0.0, "drop_path": 0.0}
    plain = unet.cube_unet_tiny.build(unet.cube_unet_tiny.config(**fields), dtype=torch.float64).eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert {name.split(".")[0] for name in unexpected} == {"trunk", "join"}
    inputs = inputs_of(model)
    torch.testing.assert_close(model(**inputs), plain(**inputs), rtol=0, atol=1e-12)


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model)).any()


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model)).sum().backward()
    films = [parameter for name, parameter in model.named_parameters() if ".affine.weight" in name]
    assert len(films) == 3 + 2 * 2  # a residual block each, and two of a transformer block
    assert all(film.grad.any() for film in films)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trunk_depth", 0),
        ("head_dim", 0),
        ("head_dim", 5),
        ("mlp_ratio", 0),
        ("attention", "mamba2"),
        ("attention", 3),
        ("attention_options", ["window"]),
        ("widths", ()),
        ("longitude", "cyclic"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeUNetFormerConfig.{field} is " in str(error.value)
