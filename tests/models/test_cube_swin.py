from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature

from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import swin

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}
REGION = {"longitude": "regional", "poles": "edge"}


build = partial(miniature, swin.cube_swin_tiny)


def roll(inputs, columns):
    return {name: x.roll(columns, -1) if x.ndim > 2 else x for name, x in inputs.items()}


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low * 1.1 < getattr(swin, f"cube_swin_{size}").build(device="meta").num_parameters() / 1e6 < high / 1.1


@pytest.mark.parametrize("level", [1, 5])
@pytest.mark.parametrize("lat", [16, 13])
@pytest.mark.parametrize("steps", [1, -1])
def test_rolling_longitude_rolls_output(level, lat, steps):
    model = build(level_strides=(2, 1))
    step = model.longitude_step(model.config)
    assert step == 4 * 2 * 2  # window, strides
    inputs = inputs_of(model, 1, level=level, lat=lat, lon=3 * step)
    with torch.no_grad():
        rolled, y = model(**roll(inputs, step * steps)), model(**inputs)
    torch.testing.assert_close(rolled, y.roll(step * steps, -1), rtol=0, atol=1e-10)


def test_a_perturbation_crosses_the_dateline():
    model = build()
    inputs = inputs_of(model, 1, level=1, lat=16, lon=64)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][..., 8, 0] += 1
    difference = (model(**moved) - model(**inputs)).abs().amax((0, 1, 2, 3))
    assert difference[-1] > 1e-6


def test_a_regional_grid_has_edges():
    model = build(**REGION)
    inputs = inputs_of(model, level=2, lat=16, lon=32)
    assert not torch.allclose(model(**roll(inputs, 16)), model(**inputs).roll(16, -1))


@pytest.mark.parametrize("region", [{}, REGION], ids=["globe", "region"])
@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 4, 4), (1, 33, 49), (1, 37, 49), (3, 5, 64), (8, 31, 45)])
def test_any_grid_comes_back_at_its_size(level, lat, lon, region):
    model = build(dtype=torch.float32, **region)
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


@pytest.mark.parametrize("size", RANGES)
def test_small_grids_are_taken(size):
    variant = getattr(swin, f"cube_swin_{size}")
    assert max(swin.CubeSwin.grid_minimum(variant.config())) <= 8


def test_a_grid_below_the_minimum_names_the_dimension():
    model = swin.cube_swin_tiny.build()
    with pytest.raises(InputError, match="lat is 3, the smallest accepted is 4"):
        model(torch.zeros(1, 5, 1, 3, 32))


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model, level=1, lat=8, lon=8)).any()


def test_every_other_block_of_a_stage_has_shifted_windows():
    model = swin.cube_swin_tiny.build(device="meta")
    stages = [*model.encoder, *model.decoder]
    shifted = [[block.shifted for block in stage if isinstance(block, swin.WindowBlock)] for stage in stages]
    assert shifted == [[], [False, True], [False, True, False, True], [False, True], []]


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model, level=1, lat=16, lon=16)).sum().backward()
    films = [module for module in model.modules() if isinstance(module, swin.FiLM)]
    assert len(films) == 2 * 4 + 1
    assert all(film.affine.weight.grad.any() for film in films)


def test_patches_leave_no_seams_of_one_cell():
    # The last block mixes the cells on both sides of a patch's edge: without it they would only share a token.
    model = build(widths=(8, 16), depths=(0, 0), decoder_depths=(1,), strides=(4,), level_strides=(1,))
    inputs = inputs_of(model, 1, level=1, lat=16, lon=16)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][..., 5, 5] += 1
    changed = (model(**moved) - model(**inputs)).abs().amax((0, 1, 2)) > 1e-12
    assert changed[3:9, 3:9].all()  # one cell beyond the patch of 4 to 7


def test_dropout_and_drop_path_act_only_in_training():
    model = build(dropout=0.5, drop_path=0.5)
    inputs = inputs_of(model, level=1, lat=8, lon=8)
    torch.testing.assert_close(model(**inputs), model(**inputs), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(**inputs), model(**inputs))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", (2, 4)),
        ("window", (2, 4, 0)),
        ("references", (2,)),
        ("references", (0, 3)),
        ("head_width", 5),
        ("head_width", 0),
        ("mlp_ratio", 0.5),
        ("widths", (8,)),
        ("widths", (8, 16, 20)),
        ("depths", (1,)),
        ("longitude", "cyclic"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    single = {"depths": (1,), "decoder_depths": (), "strides": (), "level_strides": ()}
    fields = {field: value, **(single if value == (8,) else {})}
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**fields)
    named = "widths" if field == "head_width" and value == 5 else field
    assert f"CubeSwinConfig.{named} is " in str(error.value)


def test_lists_from_a_file_become_tuples():
    assert build(window=[2, 4, 4]).config.window == (2, 4, 4)
