from functools import partial

import numpy as np
import pytest
import torch
from miniatures import inputs_of, miniature

pytest.importorskip("torch_harmonics")
from scipy.special import sph_harm_y

from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import sfno
from astrozoo.nn.harmonics import Harmonics
from astrozoo.nn.latitudes import latitudes

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130)}
BARE = {"static_vars": 0, "condition_dim": 0, "latitude_degrees": 0}


build = partial(miniature, sfno.cube_sfno_tiny, degrees=8)


def directions(rows, lat, lon):
    north = np.deg2rad(latitudes(rows, lat))[:, None]
    east = 2 * np.pi * np.arange(lon) / lon
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north) * np.ones(lon)], -1)


def rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def at(field, rows, points):
    """A field `[lat, lon]` between its cells: its series of harmonics, evaluated by scipy."""
    harmonics = Harmonics.of(rows, *field.shape, 999)
    spectrum = harmonics.analysis(field[..., None])[..., 0].numpy()
    theta, phi = np.arccos(np.clip(points[..., 2], -1, 1)), np.arctan2(points[..., 1], points[..., 0])
    total = np.zeros(points.shape[:-1])
    for degree in range(harmonics.degrees):
        for order in range(degree + 1):
            real, imaginary = spectrum[degree, order]
            total += (2 if order else 1) * ((real + 1j * imaginary) * sph_harm_y(degree, order, theta, phi)).real
    return torch.from_numpy(total)


def smooth(points):
    """Two variables that vary over the sphere, of degree 3 at most."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 0.3 * torch.from_numpy(np.stack([x + y * z - 0.5 * x * y * z, z - x * x + 0.3 * y]))


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(sfno, f"cube_sfno_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("rows", ["centres", "poles", "gauss"])
@pytest.mark.parametrize("scale_factor", [1, 2])
def test_rotating_the_sphere_rotates_the_output(rows, scale_factor):
    model = build(**BARE, rows=rows, scale_factor=scale_factor, jitter=0.05)
    lat, lon = (25, 50) if rows == "gauss" else (33, 66)
    points = directions(rows, lat, lon)
    turn = rotation(1)
    with torch.no_grad():
        y = model(x=smooth(points)[None, :, None])[0, 0, 0]
        turned = model(x=smooth(points @ turn)[None, :, None])[0, 0, 0]
    expected = at(y, rows, points @ turn)
    # What is left is what pointwise nonlinearities make beyond the grid's resolution: a finer grid leaves less.
    assert (turned - expected).abs().max() < 1e-5 * y.std()
    assert (turned - y).abs().max() > 0.1 * y.std()


def test_what_breaks_the_symmetry_is_asked_for():
    points, turn = directions("gauss", 25, 50), rotation(1)
    for overrides in ({"filters": "zonal"}, {"latitude_degrees": 2}):
        model = build(**{**BARE, **overrides}, rows="gauss", jitter=0.05)
        with torch.no_grad():
            y = model(x=smooth(points)[None, :, None])[0, 0, 0]
            turned = model(x=smooth(points @ turn)[None, :, None])[0, 0, 0]
        assert (turned - at(y, "gauss", points @ turn)).abs().max() > 1e-2 * y.std()


@pytest.mark.parametrize(("scale_factor", "lon"), [(1, 24), (1, 25), (2, 24), (3, 24), (2, 25)])
@pytest.mark.parametrize("filters", ["isotropic", "zonal"])
def test_rolling_longitude_rolls_output(scale_factor, lon, filters):
    model = build(scale_factor=scale_factor, filters=filters)
    inputs = inputs_of(model, level=3, lat=13, lon=lon)
    for steps in (1, -2):
        shift = scale_factor * steps
        rolled = {name: x.roll(shift, -1) if x.ndim > 2 else x for name, x in inputs.items()}
        torch.testing.assert_close(model(**rolled), model(**inputs).roll(shift, -1), rtol=0, atol=1e-10)


def test_without_a_profile_the_order_of_rows_does_not_matter():
    model = build(latitude_degrees=0)
    inputs = inputs_of(model, level=2, lat=13, lon=24)
    flipped = {name: x.flip(-2) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**flipped), model(**inputs).flip(-2), rtol=0, atol=1e-10)


def test_a_smooth_field_means_the_same_on_a_finer_grid():
    model = build(**BARE, rows="gauss", jitter=0.05)
    with torch.no_grad():
        coarse = model(x=smooth(directions("gauss", 24, 48))[None, :, None])[0, 0, 0]
        fine = model(x=smooth(directions("gauss", 33, 60))[None, :, None])[0, 0, 0]
    expected = at(coarse, "gauss", directions("gauss", 33, 60))
    assert (fine - expected).abs().max() < 1e-5 * fine.std()


@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 4, 4), (1, 7, 9), (3, 5, 64), (8, 33, 45)])
@pytest.mark.parametrize("rows", ["centres", "poles", "gauss"])
def test_any_grid_comes_back_at_its_size(level, lat, lon, rows):
    model = build(rows=rows)
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_levels_exchange_and_one_level_is_the_middle_of_the_kernel():
    model = build()
    inputs = inputs_of(model, level=5, lat=8, lon=12)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][:, :, 2] += 1
    reached = (model(**moved) - model(**inputs)).abs().amax((0, 1, 3, 4))
    assert (reached > 0).all()  # two blocks, one level each way in each
    with torch.no_grad():
        for block in model.blocks:
            block.levels.weight[::2] = 0
    single = {**inputs, "x": inputs["x"][:, :, 2:3]}
    torch.testing.assert_close(model(**single), model(**inputs)[:, :, 2:3])


def test_degrees_beyond_the_grid_are_left_alone():
    model = build()
    model(**inputs_of(model, level=2, lat=8, lon=12)).sum().backward()
    gradient = model.blocks[0].filter.weight.grad
    assert gradient[:4].any((1, 2)).all()
    assert not gradient[4:].any()


def test_a_coarser_internal_grid_keeps_less_for_the_gradient():
    from astrozoo.testing.behaviour import saved_bytes

    kept = []
    for scale_factor in (1, 2):
        model = build(scale_factor=scale_factor, depth=4, dtype=torch.float32)
        inputs = inputs_of(model, level=1, lat=32, lon=64)
        with saved_bytes(model) as count:
            model(**inputs).sum()
        kept.append(count())
        stages = model.features(**inputs)
        assert stages["stem"].shape == (2, 16, 1, 32 // scale_factor, 64 // scale_factor)
    assert kept[1] < 0.6 * kept[0]


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=0.0)
    assert not model(**inputs_of(model)).any()


def test_residual_branches_shrink_with_depth():
    def growth(depth):
        model = build(jitter=0.0, depth=depth, width=64, dtype=torch.float32)
        stages = list(model.features(**inputs_of(model, level=1, lat=16, lon=32)).values())
        return stages[-1].std() / stages[0].std()

    assert growth(16) < 2 * growth(2)


def test_static_fields_and_condition_act():
    model = build()
    inputs = inputs_of(model, level=2, lat=8, lon=12)
    for name in ("static", "condition"):
        assert not torch.allclose(model(**{**inputs, name: inputs[name] + 1}), model(**inputs))


def test_dropout_and_drop_path_act_only_in_training():
    model = build(dropout=0.5, drop_path=0.5)
    inputs = inputs_of(model, level=2, lat=8, lon=12)
    torch.testing.assert_close(model(**inputs), model(**inputs), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(**inputs), model(**inputs))


@pytest.mark.parametrize(("backend", "grids"), [("inductor", [(8, 16)]), ("aot_eager", [(8, 16), (13, 20), (9, 12)])])
def test_compiled_gives_the_same(backend, grids):
    model = build(dtype=torch.float32, depth=1, filters="zonal", scale_factor=2)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for lat, lon in grids:
        inputs = inputs_of(model, level=1, lat=lat, lon=lon)
        with torch.no_grad():
            torch.testing.assert_close(compiled(**inputs), model(**inputs), rtol=1e-4, atol=1e-4)


def test_the_state_holds_weights_only():
    model = build(dtype=torch.float32)
    before = set(model.state_dict())
    model(**inputs_of(model))
    assert set(model.state_dict()) == before == {name for name, _ in model.named_parameters()}


def test_a_grid_below_the_minimum_names_the_dimension():
    with pytest.raises(InputError, match="lat is 7, the smallest accepted is 8"):
        build(scale_factor=2)(**inputs_of(build(), lat=7))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("longitude", "regional", "whole sphere"),
        ("poles", "edge", "over the poles"),
        ("rows", "gaussian", "'gauss'"),
        ("filters", "axial", "'isotropic', 'zonal'"),
        ("degrees", 0, "at least 1"),
        ("width", 1.5, "at least 1"),
        ("scale_factor", 0, "at least 1"),
        ("mlp_ratio", 0, "0.25"),
        ("level_kernel", 5, "1, 3"),
        ("latitude_degrees", -1, "at least 0"),
        ("drop_path", 1.0, "below 1"),
        ("in_vars", 0, "at least 1"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value, says):
    with pytest.raises(ConfigError, match="allowed: ") as error:
        build(**{field: value})
    assert f"CubeSFNOConfig.{field} is {value!r}" in str(error.value)
    assert says in str(error.value)
