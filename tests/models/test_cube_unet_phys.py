import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from astrozoo.batch import random_batch
from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import unet_phys

RANGES = {"small": (8, 35), "base": (35, 130), "large": (130, 450)}
PHYSICS = {
    "in_vars": 3,
    "out_vars": 3,
    "variables": ("t", "q", "ps"),
    "in_variables": ("ps", "t", "q"),
    "conserved": ("q", "t"),
    "told": ("ps",),
    "positive": ("q", "ps"),
    "mean": (280.0, 4e-3, 9.8e4),
    "std": (15.0, 5e-3, 2.5e3),
}


def build(*, jitter=0.1, dtype=torch.float32, **overrides):
    torch.manual_seed(0)
    fields = {**unet_phys.FAMILY.miniature, "dropout": 0.0, "drop_path": 0.0, **PHYSICS, **overrides}
    variant = unet_phys.cube_unet_phys_small
    model = variant.build(variant.config(**fields), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=jitter)
    return model


def inputs_of(model, seed=0, **sizes):
    inputs = random_batch(model.spec, 2, sizes=sizes, dtype=model.dtype, seed=seed).inputs
    if "budget" in inputs:
        inputs["budget"] = 9.8e4 + 10 * inputs["budget"]
    return inputs


def physical(field, variable):
    mean, std = (dict(zip(("t", "q", "ps"), PHYSICS[name], strict=True))[variable] for name in ("mean", "std"))
    return field.detach().double() * std + mean


def global_mean(field, edges=(-90, 90), level_mass=None):
    """`[batch, level, lat, lon]` -> `[batch]`, by the areas between the edges of rows."""
    areas = np.diff(np.sin(np.deg2rad(np.linspace(*edges, field.shape[2] + 1))))
    masses = np.ones(field.shape[1]) if level_mass is None else np.asarray(level_mass)
    weights = masses[:, None, None] * areas[:, None] * np.ones(field.shape[3])
    return (field.numpy() * weights).sum((1, 2, 3)) / weights.sum()


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    model = getattr(unet_phys, f"cube_unet_phys_{size}").build(device="meta")
    assert low <= model.num_parameters() / 1e6 <= high


@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    seed=st.integers(0, 1000),
    weights=st.sampled_from([0.0, 0.1, 1.0]),
    size=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 12)),
    longitude=st.sampled_from(["periodic", "regional"]),
    autocast=st.booleans(),
)
def test_budgets_close_for_any_weights_fields_and_grid(seed, weights, size, longitude, autocast):
    edges = (-90.0, 90.0) if longitude == "periodic" else (-30.0, 10.0)
    poles = "cross" if longitude == "periodic" else "edge"
    model = build(jitter=weights, longitude=longitude, poles=poles, edges=edges)
    inputs = inputs_of(model, seed, **dict(zip(("level", "lat", "lon"), size, strict=True)))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = model(**inputs)
    assert y.dtype == torch.float32
    t, q, ps = (physical(y[:, index], name) for index, name in enumerate(("t", "q", "ps")))
    rounding = 1.2e-7 * (1 + y.abs().amax().item())  # of normalised float32
    kept = physical(inputs["x"][:, 1], "t"), physical(inputs["x"][:, 2], "q")
    assert global_mean(t, edges) == pytest.approx(global_mean(kept[0], edges), abs=15 * rounding)
    assert global_mean(q, edges) == pytest.approx(global_mean(kept[1], edges).clip(0), abs=5e-3 * rounding)
    assert global_mean(ps, edges) == pytest.approx(inputs["budget"][:, 0].numpy(), abs=2.5e3 * rounding)
    assert (q >= 0).all()
    assert (ps >= 0).all()


def test_levels_weigh_by_mass_and_have_statistics_of_their_own():
    mass = (1.0, 2.0, 5.0)
    mean, std = ((280.0, 250.0, 220.0), 4e-3, 9.8e4), ((15.0, 10.0, 5.0), 5e-3, 2.5e3)
    model = build(level_mass=mass, mean=mean, std=std)
    inputs = inputs_of(model, lat=9, lon=12)
    y = model(**inputs)
    assert y.shape == (2, 3, 3, 9, 12)
    means = [
        global_mean(
            field.detach().double() * torch.tensor(std[0], dtype=torch.float64)[:, None, None]
            + torch.tensor(mean[0], dtype=torch.float64)[:, None, None],
            level_mass=mass,
        )
        for field in (y[:, 0], inputs["x"][:, 1])
    ]
    assert means[0] == pytest.approx(means[1], abs=1e-4)
    with pytest.raises(InputError, match="level is 2, expected 3"):
        model(**{**inputs, "x": inputs["x"][:, :, :2]})


def test_constraints_act_in_training_and_gradients_pass():
    model = build().train()
    batch = random_batch(model.spec, 2, sizes={"level": 2, "lat": 8, "lon": 12})
    batch.inputs["budget"] = 9.8e4 + 10 * batch.inputs["budget"]
    assert (physical(model(**batch.inputs)[:, 1], "q") >= 0).all()
    model.loss(batch)["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_without_names_it_is_the_unet_alone():
    model = unet_phys.cube_unet_phys_small.build(
        unet_phys.cube_unet_phys_small.config(widths=(8, 16), depths=(1, 1), decoder_depths=(1,), strides=(2,),
                                              level_strides=(2,))
    )  # fmt: skip
    inputs = inputs_of(model, level=2, lat=8, lon=12)
    assert set(inputs) == {"x"}
    assert not model(**inputs).any()


def test_untrained_model_predicts_the_climatology_within_its_budgets():
    model = build(jitter=0.0)
    y = model(**inputs_of(model, level=2, lat=8, lon=12))
    spread = (y - y.mean((2, 3, 4), keepdim=True)).abs().max()
    assert spread < 1e-6
    assert y.abs().max() < 1  # what is left: the means of the inputs


@pytest.mark.parametrize("steps", [1, -2])
@pytest.mark.parametrize("lat", [8, 13])
def test_rolling_longitude_rolls_output(lat, steps):
    model = build(dtype=torch.float64)
    inputs = inputs_of(model, level=3, lat=lat, lon=24)
    rolled = {name: x.roll(2 * steps, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(2 * steps, -1), rtol=0, atol=1e-10)


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge", dtype=torch.float64)
    inputs = inputs_of(model, level=2, lat=8, lon=16)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 7, 9), (3, 5, 64), (8, 33, 45)])
@pytest.mark.parametrize("rows", ["centres", "poles", "gauss"])
def test_any_grid_comes_back_at_its_size(level, lat, lon, rows):
    model = build(rows=rows)
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 3, level, lat, lon)
    assert y.isfinite().all()


def test_a_budget_is_asked_for_exactly_where_told():
    model = build()
    inputs = inputs_of(model, level=1, lat=8, lon=8)
    budget = inputs.pop("budget")
    with pytest.raises(InputError, match=r"needs input budget\[batch, told=1\]"):
        model(**inputs)
    with pytest.raises(InputError, match="takes no input 'budget'"):
        build(told=())(**inputs, budget=budget)


def test_features_do_not_depend_on_the_budget():
    model = build()
    inputs = inputs_of(model, level=2, lat=8, lon=8)
    stages = model.features(**inputs)
    assert tuple(stages) == ("down0", "down1", "up0")
    other = model.features(**{**inputs, "budget": inputs["budget"] + 1})
    assert all(torch.equal(stages[name], other[name]) for name in stages)


def test_the_configuration_survives_json():
    config = build(level_mass=(1.0, 2.0), mean=((1.0, 2.0), 3.0, 4.0)).config
    again = type(config)(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert isinstance(again.mean[0], tuple)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("variables", ("t", "q"), "3 different names"),
        ("variables", ("t", "q", "q"), "3 different names"),
        ("in_variables", ("t", "q", 3), "3 different names"),
        ("told", ("pss",), "Did you mean 'ps'?"),
        ("conserved", ("q", "q"), "every name once"),
        ("told", ("q",), "not among `conserved`"),
        ("positive", ("rain",), "'t', 'q', 'ps'"),
        ("mean", (1.0, 2.0), "3 entries"),
        ("mean", (1.0, 2.0, float("nan")), "finite numbers"),
        ("mean", ((1.0, 2.0), 2.0, 3.0), "as many as level_mass has (0)"),
        ("std", (1.0, 0.0, 1.0), "above 0"),
        ("level_mass", (1.0, -1.0), "above 0"),
        ("rows", "centre", "Did you mean 'centres'?"),
        ("edges", (10.0, -10.0), "south < north"),
        ("edges", (-90.0,), "south < north"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value, says):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeUNetPhysConfig.{field} is {value!r}" in str(error.value)
    assert says in str(error.value)


def test_gaussian_rows_need_the_globe():
    with pytest.raises(ConfigError, match="rows is 'gauss'"):
        build(rows="gauss", edges=(0.0, 60.0))


def test_what_is_kept_must_be_among_the_inputs():
    with pytest.raises(ConfigError, match=r"conserved is .* among the inputs"):
        build(in_variables=("ps", "t", "u"))
