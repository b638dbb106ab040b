from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature

from astrozoo.errors import ConfigError
from astrozoo.models.cube import fno

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}
SPECTRAL = ("factorized", "tucker", "dense")
EDGES = [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")]


build = partial(miniature, fno.cube_fno_tiny, rank=(6, 3, 3))


def relative(got, expected):
    return ((got - expected).square().mean() / expected.square().mean()).sqrt().item()


def smooth(lat, lon, level=2):
    """Two variables that are polynomials in the Cartesian coordinates of a sphere, at cell centres."""
    theta = torch.pi * (torch.arange(lat, dtype=torch.float64)[:, None] + 0.5) / lat
    phi = 2 * torch.pi * torch.arange(lon, dtype=torch.float64) / lon
    x, y, z = theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos().expand(lat, lon)
    height = (torch.arange(level, dtype=torch.float64)[:, None, None] + 0.5) / level
    return torch.stack([x * y + z + height * 0, z * z - y + (torch.pi * height).cos()])[None]


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(fno, f"cube_fno_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("poles", ["cross", "edge"])
@pytest.mark.parametrize("spectral", SPECTRAL)
@pytest.mark.parametrize(("lat", "lon"), [(8, 12), (5, 9), (1, 1)])
def test_rolling_longitude_rolls_output(spectral, poles, lat, lon):
    model = build(spectral=spectral, poles=poles)
    inputs = inputs_of(model, level=3, lat=lat, lon=lon)
    rolled = {name: x.roll(1, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(1, -1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("spectral", SPECTRAL)
def test_a_finer_grid_changes_predictions_of_a_smooth_field_little(spectral):
    # The nonlinearities make waves beyond the grid's, which fold back: the finer the grid, the fewer.
    model = build(spectral=spectral, modes=(2, 5, 5), static_vars=0, condition_dim=0)
    with torch.no_grad():
        coarse, fine, finest = (model(smooth(12 * n, 24 * n)) for n in (1, 3, 9))
    first, second = relative(fine[..., 1::3, ::3], coarse), relative(finest[..., 1::3, ::3], fine)
    assert first < 0.02
    assert second < first / 5


@pytest.mark.parametrize("spectral", SPECTRAL)
def test_a_single_level_is_what_equal_levels_are(spectral):
    model = build(spectral=spectral, position_waves=0)
    inputs = inputs_of(model, level=1, lat=6, lon=8)
    repeated = {**inputs, "x": inputs["x"].expand(-1, -1, 4, -1, -1)}
    torch.testing.assert_close(model(**repeated), model(**inputs).expand(-1, -1, 4, -1, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("longitude", "poles"), EDGES)
def test_opposite_edges_are_neighbours_only_on_a_circle(longitude, poles):
    model = build(longitude=longitude, poles=poles)
    inputs = inputs_of(model, level=1, lat=8, lon=12)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert torch.allclose(model(**rolled), model(**inputs).roll(4, -1)) is (longitude == "periodic")


@pytest.mark.parametrize("spectral", SPECTRAL)
@pytest.mark.parametrize(("longitude", "poles"), EDGES)
@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 1, 1), (1, 7, 9), (3, 33, 49)])
def test_any_grid_comes_back_at_its_size(spectral, longitude, poles, level, lat, lon):
    model = build(spectral=spectral, longitude=longitude, poles=poles)
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_as_many_blocks_as_axes_see_the_whole_globe():
    model = build(depth=3, modes=(3, 4, 4))
    inputs = inputs_of(model, level=3, lat=6, lon=10)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][:, :, 0, 0, 0] += 1
    assert (model(**moved) - model(**inputs)).abs().amin() > 0


@pytest.mark.parametrize("spectral", SPECTRAL)
def test_shared_weights_are_kept_once_and_used_in_every_block(spectral):
    own, shared = (build(spectral=spectral, depth=3, share_weights=share) for share in (False, True))
    assert (len(own.spectral), len(shared.spectral)) == (3, 1)
    apart = build(jitter=False, spectral=spectral, depth=3)
    for index in range(3):
        apart.spectral[index].load_state_dict(shared.spectral[0].state_dict())
    rest = {name: tensor for name, tensor in shared.state_dict().items() if not name.startswith("spectral.")}
    apart.load_state_dict(rest, strict=False)
    inputs = inputs_of(own, lat=6, lon=8)
    torch.testing.assert_close(apart(**inputs), shared(**inputs), rtol=0, atol=0)


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model)).any()


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model, lat=4, lon=4)).sum().backward()
    assert all(block.film.affine.weight.grad.any() for block in model.blocks)


def test_waves_beyond_the_kept_ones_pass_cell_by_cell():
    # Without it, a field of short waves alone would be invisible to the blocks.
    model = build(modes=(1, 2, 2), static_vars=0, condition_dim=0, position_waves=0)
    x = torch.cos(torch.pi * torch.arange(12, dtype=torch.float64)).expand(1, 2, 1, 8, 12)
    assert model(x).std(-1).min() > 0


@pytest.mark.parametrize("spectral", ["tucker", "dense"])  # the conformance kit compiles the default
def test_other_spectral_weights_compile_without_breaks(spectral):
    model = build(dtype=torch.float32, spectral=spectral, depth=1)
    inputs = inputs_of(model, level=1, lat=6, lon=9)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs), model(**inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("depth", 0),
        ("modes", (4, 4)),
        ("modes", (0, 4, 4)),
        ("rank", (4, 4)),
        ("spectral", "diagonal"),
        ("share_weights", 1),
        ("mlp_ratio", 0),
        ("position_waves", -1),
        ("dropout", 1.0),
        ("longitude", "cyclic"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match=rf"CubeFNOConfig\.{field} is .*allowed: "):
        build(**{field: value})
