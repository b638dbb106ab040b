import math

import pytest
import torch

from astrozoo import registry
from astrozoo.nn.position import GridPosition, turns_longitude


def build(dim=6, patch=(2, 4, 4), **options):
    torch.manual_seed(0)
    position = GridPosition(dim, patch, **{"longitude": "periodic", "relative": False, **options}).double()
    position.reset_parameters()
    return position


LIKE = torch.zeros((), dtype=torch.float64)


def test_coordinates_are_the_middles_of_what_tokens_cover():
    level, lat, lon = build().coordinates((3, 9, 10), LIKE)
    torch.testing.assert_close(level, torch.tensor([1.0, 2.5], dtype=torch.float64) / 3)
    torch.testing.assert_close(lat, torch.tensor([2.0, 6.0, 8.5], dtype=torch.float64) / 9)
    torch.testing.assert_close(lon, torch.tensor([2.0, 6.0, 10.0], dtype=torch.float64) / 10)  # on around the circle
    _, _, lon = build(longitude="regional").coordinates((3, 9, 10), LIKE)
    torch.testing.assert_close(lon, torch.tensor([2.0, 6.0, 9.0], dtype=torch.float64) / 10)


def test_a_single_level_is_the_middle_of_one():
    assert build().coordinates((1, 8, 8), LIKE)[0].tolist() == [0.5]


def test_encoding_is_the_sum_of_sines_and_cosines_in_float64():
    position = build(harmonics=4)
    got = position.encoding((3, 9, 12), LIKE)
    level, lat, lon = position.coordinates((3, 9, 12), LIKE)
    for index in ((0, 0, 0), (1, 2, 1), (1, 1, 2)):
        z, phi, lam = level[index[0]] * math.pi, lat[index[1]] * math.pi, lon[index[2]] * 2 * math.pi
        expected = position.lat.bias + position.level.weight[:, 0] * z.cos()
        for k in range(4):
            expected = expected + position.lat.weight[:, k] * ((k + 1) * phi).cos()
            expected = expected + position.lat.weight[:, 4 + k] * ((k + 1) * phi).sin()
            expected = expected + position.lon.weight[:, k] * ((k + 1) * lam).cos()
            expected = expected + position.lon.weight[:, 4 + k] * ((k + 1) * lam).sin()
        torch.testing.assert_close(got[index], expected)


def test_a_circle_has_no_seam_and_a_region_has_edges():
    turned = {}
    for longitude in ("periodic", "regional"):
        position = build(longitude=longitude, patch=(1, 1, 1), harmonics=2)
        steps = position.encoding((1, 1, 64), LIKE)[0, 0]
        sizes = (steps - steps.roll(1, 0)).norm(dim=-1)
        turned[longitude] = (sizes[0] / sizes[1:].mean()).item()
    assert turned["periodic"] < 2
    assert turned["regional"] > 3


def test_longitude_is_not_added_where_attention_turns_by_it():
    relative = build(relative=True)
    assert relative.lon is None
    assert relative.encoding((2, 8, 16), LIKE).shape == (1, 2, 1, 6)
    assert build(relative=True, longitude="regional").lon is not None  # where a region's edges are matters
    assert build(relative=False).angles((2, 8, 16), LIKE) is None


def test_angles_run_once_around_the_circle_level_by_level():
    angles = build(relative=True).angles((2, 8, 16), LIKE)
    assert angles.shape == (1, 8, 1)
    expected = torch.tensor([2.0, 6.0, 10.0, 14.0], dtype=torch.float64) / 16 * 2 * math.pi
    torch.testing.assert_close(angles[0, :, 0], expected.repeat(2))


def test_points_of_a_globe_are_weighted_by_their_area():
    coords, weights = build(patch=(1, 2, 2)).points((2, 60, 4), LIKE)
    assert coords.shape == (1, 120, 2)
    assert coords[..., 0].min() == -87
    assert coords[..., 1].unique().tolist() == [90, 270]
    rows = torch.arange(-90.0, 91, 6, dtype=torch.float64).deg2rad().sin().diff()  # exact areas of the rows
    torch.testing.assert_close(weights[0, ::2][:30] / weights.max(), rows / rows.max(), rtol=2e-3, atol=0)
    assert build(longitude="regional").points((1, 8, 8), LIKE)[1] is None


def test_a_regions_points_keep_its_shape():
    coords, _ = build(longitude="regional", patch=(1, 1, 1)).points((1, 10, 40), LIKE)
    assert coords[..., 0].max().item() == pytest.approx(9.5 / 40)
    assert coords[..., 1].max().item() == pytest.approx(39.5 / 40)


def test_half_precision_tokens_stay_and_positions_are_computed_in_float32():
    position = build().to(torch.bfloat16)
    tokens = torch.zeros(1, 1, 2, 2, 6, dtype=torch.bfloat16)
    placed = position(tokens, (1, 8, 8))
    assert placed.dtype == torch.bfloat16
    exact = position.double().encoding((1, 8, 8), LIKE)
    torch.testing.assert_close(placed[0].double(), exact, rtol=2**-8, atol=2**-8)


def test_those_that_turn_are_dense_or_neighbourhoods():
    names = [name for name in registry.list_attentions() if turns_longitude(registry.attention_info(name))]
    assert names == [
        "differential", "flash", "grouped_query", "latent", "metric_bias", "neighborhood", "perceiver", "ring",
    ]  # fmt: skip
