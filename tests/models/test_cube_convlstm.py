from functools import partial

import pytest
import torch
from miniatures import miniature

from astrozoo.batch import random_batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import convlstm

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130)}


build = partial(miniature, convlstm.cube_convlstm_tiny)


def inputs_of(model, **sizes):
    return random_batch(model.spec, 2, sizes={"level": 1, "lat": 8, "lon": 12, **sizes}, dtype=model.dtype).inputs


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(convlstm, f"cube_convlstm_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("overrides", [{}, {"feedback": False}, {"poles": "edge"}, {"strides": (2, 2)}], ids=str)
@pytest.mark.parametrize(("level", "lat"), [(1, 8), (3, 7)])
def test_rolling_longitude_rolls_output(overrides, level, lat):
    model = build(**overrides)
    step = convlstm.CubeConvLSTM.longitude_step(model.config)
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
    model = convlstm.cube_convlstm_tiny.build()
    with pytest.raises(InputError, match="lat is 4, the smallest accepted is 8"):
        model(torch.zeros(1, 2, 5, 1, 4, 16))


def test_reading_field_by_field_is_reading_all_at_once():
    # The encoder is a recurrence: states after a sequence are those after its end, started from those before.
    model = build(condition_dim=0, static_vars=0)
    x = inputs_of(model, time=5)["x"]
    whole = model.encode(x, None, None)[0]
    features = torch.nn.functional.silu(model.observe(x.transpose(0, 1).flatten(0, 1), None))
    for scale, (coarsen, layer) in enumerate(zip(model.coarsen, model.encoder, strict=True)):
        state, hidden = None, []
        for field in coarsen(features).unflatten(0, (5, -1)):
            state = layer.cell(layer.project(field, None), state)
            hidden.append(state[0])
        features = torch.cat(hidden)
        torch.testing.assert_close(whole[2 * scale : 2 * scale + 2], state)


def test_other_variables_out_than_in_are_forecast_from_the_states_alone():
    model = build(out_vars=3)
    assert model.persistence is None
    assert not model.forecaster.down
    assert model(**inputs_of(model, time=2), steps=7).shape == (2, 7, 3, 1, 8, 12)


def test_memory_reaches_back_to_the_first_field():
    # What the last field does not show is remembered: two pasts, one present, two futures.
    model = build(condition_dim=0, static_vars=0)
    x = inputs_of(model, time=12)["x"]
    other = torch.cat([x[:, :1] + 1, x[:, 1:]], 1)
    assert (model(x) - model(other)).abs().max() > 1e-8


def test_a_state_moves_as_far_as_the_kernel_reaches_in_a_step():
    model = build(strides=(1,), widths=(8,), level_strides=(1,), feedback=False, kernel=5, static_vars=0, poles="edge")
    inputs = inputs_of(model, lat=16, lon=48, time=1)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][..., 8, 24] += 1
    changed = (model(**moved, steps=3) - model(**inputs, steps=3)).abs().amax((0, 2, 3, 4)) > 0  # [step, lon]
    # Stem 1 and input 2 cells; then in every step the recurrence 2, and the mixture before the head 1.
    assert [row.nonzero().max().item() - 24 for row in changed] == [6, 8, 10]


def test_condition_acts_in_every_layer():
    model = build()
    model(**inputs_of(model)).sum().backward()
    layers = [module for module in model.modules() if isinstance(module, convlstm.Layer)]
    assert len(layers) == 4
    assert all(layer.film.affine.weight.grad.any() for layer in layers)


def test_static_fields_act_on_every_level_and_step():
    model = build()
    inputs = inputs_of(model, level=3)
    other = model(**{**inputs, "static": inputs["static"] + 1})
    assert (other - model(**inputs)).abs().amax((0, 2, 4, 5)).gt(0).all()


def test_dropout_acts_only_in_training():
    model = build(dropout=0.5)
    inputs = inputs_of(model)
    torch.testing.assert_close(model(**inputs), model(**inputs), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(**inputs), model(**inputs))


def test_features_are_the_states():
    model = build()
    stages = model.features(**inputs_of(model, level=4))
    shapes = {name: tuple(stage.shape[1:]) for name, stage in stages.items()}
    fine, coarse = (8, 4, 8, 12), (12, 2, 4, 6)
    assert shapes == {"encoder0": fine, "encoder1": coarse, "forecaster1": coarse, "forecaster0": fine}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("in_vars", 0),
        ("stem_width", 0),
        ("widths", ()),
        ("widths", (8, 0)),
        ("strides", (2,)),
        ("level_strides", (1, 2, 2)),
        ("kernel", 4),
        ("level_kernel", 2),
        ("peepholes", "yes"),
        ("dropout", 1.0),
        ("poles", "crosses"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeConvLSTMConfig.{field} is " in str(error.value)
