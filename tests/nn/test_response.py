import math

import pytest
import torch

from astrozoo.nn import ResponseNorm
from astrozoo.nn.response import row_areas


def layer(globe, channels=3, dtype=torch.float64):
    norm = ResponseNorm(channels, globe=globe).to(dtype)
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


@pytest.mark.parametrize("globe", [True, False], ids=["globe", "band"])
@pytest.mark.parametrize("levels", [1, 3])
def test_it_is_the_formula(globe, levels):
    norm = layer(globe)
    x = torch.randn(2, 3, levels, 5, 8, dtype=torch.float64)
    area = [
        math.sin(math.radians(-90 + 36 * (row + 1))) - math.sin(math.radians(-90 + 36 * row)) if globe else 1.0
        for row in range(5)
    ]
    weights = torch.tensor(area, dtype=torch.float64)[:, None].expand(levels, 5, 8)
    weights = weights / weights.sum()
    response = torch.stack([torch.stack([(c.square() * weights).sum().sqrt() for c in sample]) for sample in x])
    ratio = (response / (response.mean(1, keepdim=True) + 1e-6))[..., None, None, None]
    gamma, beta = (value[:, None, None, None] for value in (norm.weight, norm.bias))
    torch.testing.assert_close(norm(x), gamma * (x * ratio) + beta + x, rtol=1e-9, atol=1e-9)


def test_a_band_of_latitudes_equals_the_paper():
    # The official layer is the norm over all places, divided by its mean over channels; factors cancel.
    norm = layer(globe=False)
    x = torch.randn(2, 3, 1, 5, 8, dtype=torch.float64)
    pixels = x.squeeze(2).permute(0, 2, 3, 1)
    response = torch.norm(pixels, p=2, dim=(1, 2), keepdim=True)
    ratio = response / (response.mean(-1, keepdim=True) + 1e-6)
    expected = norm.weight * (pixels * ratio) + norm.bias + pixels
    torch.testing.assert_close(norm(x).squeeze(2).permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)


def test_areas_of_rows_are_those_of_the_sphere():
    areas = row_areas(180, dtype=torch.float64)
    assert areas.sum().item() == pytest.approx(1)
    assert areas[0].item() == pytest.approx((1 - math.cos(math.radians(1))) / 2)
    torch.testing.assert_close(areas, areas.flip(0), rtol=0, atol=1e-14)


def test_the_response_hardly_depends_on_the_resolution():
    norm = layer(globe=True, channels=1)

    def wave(rows):
        lat = (torch.arange(rows, dtype=torch.float64) + 0.5) * math.pi / rows
        return torch.cos(lat)[:, None].expand(1, 1, 1, rows, 4)

    for rows in (32, 128):
        assert norm.response(wave(rows)).item() == pytest.approx(math.sqrt(1 / 3), rel=1e-3)


def test_it_starts_as_the_identity_and_zeros_stay_zero_with_finite_gradients():
    norm = ResponseNorm(3, globe=True)
    norm.reset_parameters()
    x = torch.randn(2, 3, 2, 4, 4)
    assert torch.equal(norm(x), x)
    zeros = torch.zeros(2, 3, 2, 4, 4, requires_grad=True)
    y = norm(zeros)
    assert not y.any()
    y.sum().backward()
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_overflow(dtype):
    norm = layer(globe=True, dtype=torch.float32)
    x = torch.randn(1, 3, 2, 16, 32) * 300
    with torch.autocast("cpu", dtype=dtype):
        y = norm(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), norm(x), rtol=2e-2, atol=2.0)
