from functools import partial

import pytest
import torch
from miniatures import inputs_of, miniature

from astrozoo.errors import ConfigError, InputError
from astrozoo.models.cube import afno

RANGES = {"tiny": (1.5, 8), "small": (8, 35), "base": (35, 130), "large": (130, 450)}
EDGES = [("periodic", "cross"), ("periodic", "edge"), ("regional", "edge")]


build = partial(miniature, afno.cube_afno_tiny)


def mixer_and_tokens(*, level=1, lat=6, lon=8, poles="cross", longitude="periodic", **overrides):
    model = build(poles=poles, longitude=longitude, **overrides)
    torch.manual_seed(1)
    x = torch.randn(2, level, lat, lon, model.config.width, dtype=torch.float64)
    tables = model.waves.tables(x)
    return model.blocks[0].waves, x, tables, afno.plane_table(tables, model.waves.kinds[1])


@pytest.mark.parametrize("size", RANGES)
def test_parameters_are_in_the_range_of_the_size(size):
    low, high = RANGES[size]
    assert low <= getattr(afno, f"cube_afno_{size}").build(device="meta").num_parameters() / 1e6 <= high


@pytest.mark.parametrize("poles", ["cross", "edge"])
@pytest.mark.parametrize(("lat", "lon"), [(8, 12), (7, 20), (4, 4)])
def test_rolling_longitude_by_a_patch_rolls_output(poles, lat, lon):
    model = build(poles=poles, patch=(2, 3, 4))
    inputs = inputs_of(model, level=3, lat=lat, lon=lon)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    torch.testing.assert_close(model(**rolled), model(**inputs).roll(4, -1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("poles", ["cross", "edge"])
def test_mixer_is_the_complex_network_of_the_paper_between_transforms(level, poles):
    # Written as the paper does, with complex numbers and a loop over groups of channels.
    mixer, x, tables, plane = mixer_and_tokens(level=level, lat=5, lon=9, poles=poles)
    lat, lon = x.shape[2:4]
    waves = torch.einsum("blhwc,qw->blhqc", x + 0j, torch.complex(tables.lon[:, 0], tables.lon[:, 1]) / lon)
    waves = torch.einsum("blhqc,qkh->blkqc", waves, (plane / lat).to(waves.dtype))
    vertical = tables.level[:, 0].to(waves.dtype)
    waves = torch.einsum("blkqc,ml->bmkqc", waves, vertical / level)
    numbers = [torch.arange(size, dtype=torch.float64) for size in waves.shape[1:4]]
    m, k, q = torch.meshgrid(*((1 + n).log() / 4 for n in numbers), indexing="ij")
    gain = 1 + torch.stack([q, k, m, q**2, k**2, m**2], -1) @ mixer.gain.detach()
    mixed, size = torch.zeros_like(waves), mixer.weight1.shape[2]
    for group in range(mixer.weight1.shape[1]):
        part = slice(group * size, (group + 1) * size)
        hidden = waves[..., part] @ torch.complex(*mixer.weight1[:, group]) * gain[..., part]
        hidden = torch.polar((hidden.abs() + mixer.bias[group, 0, 0]).relu(), hidden.angle())
        out = hidden @ torch.complex(*mixer.weight2[:, group])
        mixed[..., part] = torch.polar((out.abs() - mixer.threshold).relu(), out.angle())
    y = torch.einsum("bmkqc,qkh->bmhqc", mixed, plane.to(mixed.dtype))
    y = torch.einsum("bmhqc,qw->bmhwc", y, torch.complex(tables.lon[:, 0], -tables.lon[:, 1])).real
    y = torch.einsum("bmhwc,ml->blhwc", y, vertical.real)
    torch.testing.assert_close(mixer(x, tables, plane), y, rtol=0, atol=1e-8)


@pytest.mark.parametrize("poles", ["cross", "edge"])
def test_mixer_that_changes_no_wave_gives_smooth_tokens_back(poles):
    mixer, x, tables, plane = mixer_and_tokens(level=2, lat=5, lon=9, poles=poles, threshold=0.0)
    with torch.no_grad():
        for weight in (mixer.weight1, mixer.weight2):
            weight.zero_()
            weight[0].copy_(torch.eye(weight.shape[-1]))
        mixer.bias.zero_()
        mixer.gain.zero_()
        once = mixer(x, tables, plane)
        torch.testing.assert_close(mixer(once, tables, plane), once, rtol=0, atol=1e-5)
        if poles == "edge":  # cosines are complete; of sines over a pole the last one has no phase, and is left out
            torch.testing.assert_close(once, x, rtol=0, atol=1e-5)


def test_threshold_lowers_moduli_and_keeps_phases():
    waves = torch.tensor([[3.0, 0.3, 0.0], [4.0, -0.4, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[2.4, 0.0, 0.0], [3.2, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(afno._shrink(waves, 1.0), expected)


def test_waves_that_are_not_kept_are_not_mixed():
    model = build(kept_waves=0.3, position_waves=0)
    seen = []
    model.blocks[0].waves.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    model(**inputs_of(model, level=5, lat=20, lon=20))
    assert [len(table) for table in seen[0]] == [2, 3, 3]  # of 5 levels, 10 rows and 20 columns of patches


def test_a_single_level_is_what_equal_levels_are():
    model = build(position_waves=0, patch=(1, 2, 2))
    inputs = inputs_of(model, level=1, lat=6, lon=8)
    repeated = {**inputs, "x": inputs["x"].expand(-1, -1, 4, -1, -1)}
    torch.testing.assert_close(model(**repeated), model(**inputs).expand(-1, -1, 4, -1, -1), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("longitude", "poles"), EDGES)
@pytest.mark.parametrize(("level", "lat", "lon"), [(1, 2, 2), (1, 33, 49), (3, 7, 9)])
def test_any_grid_comes_back_at_its_size(longitude, poles, level, lat, lon):
    model = build(longitude=longitude, poles=poles, patch=(2, 2, 2))
    y = model(**inputs_of(model, level=level, lat=lat, lon=lon))
    assert y.shape == (2, 2, level, lat, lon)
    assert y.isfinite().all()


def test_a_regional_grid_has_edges():
    model = build(longitude="regional", poles="edge")
    inputs = inputs_of(model, level=1, lat=8, lon=12)
    rolled = {name: x.roll(4, -1) if x.ndim > 2 else x for name, x in inputs.items()}
    assert not torch.allclose(model(**rolled), model(**inputs).roll(4, -1))


def test_a_grid_below_a_patch_names_the_dimension():
    with pytest.raises(InputError, match="lat is 3, the smallest accepted is 4"):
        afno.cube_afno_tiny.build()(torch.zeros(1, 5, 1, 3, 32))


def test_every_patch_sees_the_whole_globe():
    model = build()
    inputs = inputs_of(model, level=3, lat=6, lon=10)
    moved = {**inputs, "x": inputs["x"].clone()}
    moved["x"][:, :, 0, 0, 0] += 1
    assert (model(**moved) - model(**inputs)).abs().amin() > 0


def test_untrained_model_predicts_the_climatology():
    model = build(jitter=False)
    assert not model(**inputs_of(model)).any()


def test_condition_acts_in_every_block():
    model = build()
    model(**inputs_of(model, lat=4, lon=4)).sum().backward()
    for block in model.blocks:
        assert block.wave_film.affine.weight.grad.any()
        assert block.mlp_film.affine.weight.grad.any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("patch", (2, 2)),
        ("patch", (1, 0, 1)),
        ("channel_blocks", 3),
        ("kept_waves", 0),
        ("kept_waves", 1.5),
        ("kept_waves", True),
        ("threshold", -0.1),
        ("drop_path", 1.0),
        ("poles", "crosses"),
    ],
)
def test_a_bad_value_names_field_and_value(field, value):
    with pytest.raises(ConfigError, match=rf"CubeAFNOConfig\.{field} is .*allowed: "):
        build(**{field: value})
