from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature

from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import unet_cbam

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}
DEEP = {
    "widths": (8, 12, 16),
    "depths": (1, 1, 1),
    "decoder_depths": (1, 1),
    "strides": (2, 2),
    "level_strides": (2, 1),
}


build = partial(miniature, unet_cbam.cube_unet_cbam_tiny)


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(unet_cbam, f"cube_unet_cbam_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("lat", [16, 13])
@pytest.mark.parametrize("lon", [24, 12])
@pytest.mark.parametrize("steps", [1, -1])
def test_rolling_longitude_rolls_output(lat, lon, steps):
    model = build(**DEEP)
    inputs = inputs_of(model, level=5, lat=lat, lon=lon)
    rolled = {name: x.roll(4 * steps, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(4 * steps, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 7, 9), (3, 5, 32), (8, 17, 25)])
def test_any_grid_comes_back_at_its_size(level, lat, lon):
    model = build()
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_grid_below_the_minimum_names_the_dimension():
    with pytest.raises(InputError, match="lat is 8, the smallest accepted is 16"):
        unet_cbam.cube_unet_cbam_small.build()(torch.zeros(1, 5, 1, 8, 32))


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model, level=2, lat=8, lon=16)).any()


def reached(model):
    """Cells of the output that a change in one cell of the input reaches."""
    inputs = inputs_of(model, level=1, lat=16, lon=32)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][0, :, 0, 8, 16] += 1
    return (model(**moved) - model(**inputs)).abs()[0].amax(0)[0] > 1e-12


def test_channel_and_level_gates_see_the_whole_globe_and_the_spatial_gate_its_surroundings():
    one = {"widths": (8,), "depths": (1,), "decoder_depths": (), "strides": (), "level_strides": ()}
    assert reached(build(**one)).all()
    assert reached(build(**one, gates=("channel",))).all()
    assert reached(build(**one, gates=("level",))).all()
    near = reached(build(**one, gates=("spatial",), gate_kernel=7)).nonzero()
    # three convolutions of 3 x 3 and one of 7 x 7
    assert (near.amin(0).tolist(), near.amax(0).tolist()) == ([2, 10], [14, 22])


def test_every_block_has_the_gates_asked_for():
    model = build(**DEEP, gates=["level", "spatial"])  # a list, as from a file
    blocks = [module for module in model.modules() if isinstance(module, unet_cbam.GatedResidualBlock)]
    assert len(blocks) == 5
    assert all(block.cbam.channel is None and block.cbam.level and block.cbam.spatial for block in blocks)
    assert model.config.gates == ("level", "spatial")


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model, level=2, lat=8, lon=16)).sum().backward()
    blocks = [module for module in model.modules() if isinstance(module, unet_cbam.GatedResidualBlock)]
    assert all(block.film.affine.weight.grad.any() for block in blocks)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gates", ()),
        ("gates", "channel"),
        ("gates", ("channel", "colour")),
        ("reduction", 0),
        ("gate_kernel", 6),
        ("gate_kernel", 0),
        ("widths", ()),
        ("level_kernel", 5),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeUNetCBAMConfig.{field} is {value!r}" in str(error.value)
