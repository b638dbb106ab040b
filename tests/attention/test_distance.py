"""Distances against independent formulas in float64, for close, far, polar and coinciding points."""

from __future__ import annotations

import math

import pytest
import torch

from astrozoo.attention.distance import distance


def sphere(count, dtype=torch.float64):
    direction = torch.nn.functional.normalize(torch.randn(count, 3, dtype=torch.float64), dim=1)
    return degrees(direction).to(dtype)


def degrees(direction):
    """Latitude and longitude (point, 2) of unit vectors (point, 3)."""
    lat = torch.atan2(direction[:, 2], direction[:, :2].norm(dim=1))
    return torch.rad2deg(torch.stack((lat, torch.atan2(direction[:, 1], direction[:, 0])), dim=1))


def vectors(coords):
    lat, lon = torch.deg2rad(coords.double()).unbind(dim=-1)
    return torch.stack((lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()), dim=-1)


def angles(query, key):
    """Angle of unit vectors by cross and dot product."""
    a, b = torch.broadcast_tensors(vectors(query)[:, None], vectors(key)[None])
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(dim=-1))


def test_great_circle_equals_the_angle_of_vectors():
    query, key = sphere(40), sphere(50)
    expected = angles(query, key)
    torch.testing.assert_close(distance(query[None], key[None], "great_circle")[0], expected, rtol=1e-12, atol=1e-12)


def test_great_circle_is_exact_in_float32_for_points_1e_4_radians_apart():
    """Everywhere, the poles and the date line included; the truth is float64 on the very same coordinates."""
    lat = torch.tensor([0.0, 10.0, -45.0, 77.7, 89.9, 89.999, -90.0, 90.0, 0.0])
    start = torch.stack((lat, torch.tensor([3.0, 180.0, -180.0, 359.9, 12.0, 77.0, 5.0, 0.0, 179.999])), dim=1)
    for bearing in torch.linspace(0, 2 * math.pi, 17):
        step = math.degrees(1e-4) * torch.stack((bearing.cos(), bearing.sin()))
        step = torch.stack((step[0].expand(9), step[1] / torch.deg2rad(lat).cos().clamp(min=1e-4)), dim=1)
        end = start + step
        end[:, 0].clamp_(-90, 90)
        got = distance(start[None], end[None], "great_circle")[0].diagonal()
        truth = distance(start[None].double(), end[None].double(), "great_circle")[0].diagonal()
        assert ((got.double() - truth).abs() <= 1e-6 * truth).all()
        exact = angles(start, end).diagonal()  # the vectors keep 12 digits of such distances
        torch.testing.assert_close(truth, exact, rtol=1e-10, atol=1e-15)


def test_great_circle_of_opposite_and_coinciding_points():
    points = torch.tensor([[[0.0, 0.0], [90.0, 40.0], [12.0, -100.0], [12.0, 260.0]]])
    opposite = torch.tensor([[[0.0, 180.0], [-90.0, 0.0], [-12.0, 80.0], [-12.0, 80.0]]])
    far = distance(points, opposite, "great_circle")[0].diagonal()
    torch.testing.assert_close(far, torch.full((4,), math.pi), rtol=1e-6, atol=0)
    assert (distance(points, points, "great_circle")[0].diagonal() == 0).all()
    assert distance(points, points, "great_circle")[0, 2, 3] == 0  # one place, two longitudes


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_euclidean_is_the_length_of_the_difference(axes):
    query, key = (torch.randn(2, count, axes, dtype=torch.float64) for count in (7, 9))
    torch.testing.assert_close(distance(query, key, "euclidean"), torch.cdist(query, key))


def test_periodic_takes_the_shorter_way_around():
    period = (2.0, 360.0, 1.5)
    query, key = (torch.randn(1, count, 3, dtype=torch.float64) * 300 for count in (7, 9))
    images = torch.arange(-1000, 1001).double() * period[0]
    nearest = ((query[:, :, None] - key[:, None])[..., :1] + images).abs().amin(dim=-1)
    got = distance(query[..., :1], key[..., :1], "periodic", period[:1])
    torch.testing.assert_close(got, nearest, rtol=1e-10, atol=1e-10)
    angle = (query[:, :, None] - key[:, None]) / torch.tensor(period) * 2 * math.pi
    shorter = torch.atan2(angle.sin(), angle.cos()) * torch.tensor(period) / (2 * math.pi)
    torch.testing.assert_close(distance(query, key, "periodic", period), shorter.norm(dim=-1), rtol=1e-9, atol=1e-9)


def test_wavelength_is_the_ratio_in_logarithms_also_for_close_lines():
    key = torch.tensor([[[0.4], [5e-7], [21e4]]], dtype=torch.float64)
    query = key * (1 + 1e-6)
    got = distance(query, key, "wavelength")[0]
    torch.testing.assert_close(
        got.diagonal(), torch.full((3,), math.log1p(1e-6), dtype=torch.float64), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(got[0, 1], (query[0, 0, 0].log() - key[0, 1, 0].log()).abs())
    single, other = query.float(), key.float()
    truth = distance(single.double(), other.double(), "wavelength")[0].diagonal()
    torch.testing.assert_close(distance(single, other, "wavelength")[0].diagonal().double(), truth, rtol=1e-6, atol=0)


def test_time_keeps_days_of_the_julian_count_in_float64():
    days = torch.tensor([[[2460000.5], [2460000.50001]]], dtype=torch.float64)
    assert abs(distance(days, days, "time")[0, 0, 1].item() - 1e-5) < 1e-9


@pytest.mark.parametrize("metric", ["great_circle", "euclidean", "periodic", "wavelength", "time"])
def test_every_metric_is_symmetric_and_zero_on_itself_with_finite_gradients(metric):
    axes = {"wavelength": 1, "time": 1}.get(metric, 2)
    coords = (torch.rand(1, 6, axes, dtype=torch.float64) * 80 + 1).requires_grad_()
    found = distance(coords, coords, metric, (50.0, 70.0)[:axes])
    torch.testing.assert_close(found, found.transpose(1, 2), rtol=1e-12, atol=1e-13)
    assert (found[0].diagonal() == 0).all()
    assert (found + torch.eye(6) > 0).all()
    assert torch.autograd.grad(found.sum(), coords)[0].isfinite().all()


@pytest.mark.parametrize("metric", ["great_circle", "euclidean", "periodic", "wavelength", "time"])
def test_gradients_equal_finite_differences(metric):
    axes = {"wavelength": 1, "time": 1}.get(metric, 2)
    query, key = ((torch.rand(1, count, axes, dtype=torch.float64) * 80 + 1).requires_grad_() for count in (3, 4))
    assert torch.autograd.gradcheck(lambda q, k: distance(q, k, metric, (50.0, 70.0)[:axes]), (query, key))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_distances_are_at_least_float32(dtype):
    coords = torch.rand(1, 3, 2).to(dtype)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert distance(coords, coords, "great_circle").dtype == wanted
