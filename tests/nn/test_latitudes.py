import numpy as np
import pytest
import torch

from astrozoo.nn.latitudes import ROWS, area_shares, latitudes
from astrozoo.objectives.area import area_weights


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_rows_go_north_and_share_the_whole_area(rows, count):
    lat, shares = latitudes(rows, count), area_shares(rows, count)
    assert lat.shape == shares.shape == (count,)
    assert (np.diff(lat) > 0).all()
    assert (shares > 0).all()
    assert shares.sum() == pytest.approx(1, abs=1e-15)
    assert shares == pytest.approx(shares[::-1], abs=1e-15)


@pytest.mark.parametrize("rows", ["centres", "poles"])
@pytest.mark.parametrize("edges", [(-90.0, 90.0), (20.0, 60.0), (-90.0, -60.0)])
def test_areas_are_those_of_losses_and_metrics(rows, edges):
    lat = torch.from_numpy(latitudes(rows, 37, edges))
    weights = area_weights(lat).numpy()
    assert area_shares(rows, 37, edges) == pytest.approx(weights / weights.sum(), rel=1e-12)


def test_gaussian_shares_integrate_polynomials_exactly():
    sines = np.sin(np.deg2rad(latitudes("gauss", 8)))
    assert area_shares("gauss", 8) @ sines**14 == pytest.approx(1 / 15, rel=1e-13)


def test_centres_lie_between_edges():
    assert latitudes("centres", 4, (0.0, 40.0)) == pytest.approx([5, 15, 25, 35])
    assert latitudes("poles", 5, (0.0, 40.0)) == pytest.approx([0, 10, 20, 30, 40])
