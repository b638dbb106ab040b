import numpy as np
import pytest

from astrozoo import accel
from astrozoo.data import flatten_light_curve
from astrozoo.errors import ConfigError, DataError

PERIOD, DURATION, DEPTH = 3.7, 0.2, 0.01


def light_curve():
    """`time`, `flux`, `transit`: a spotted star with a planet, 27 days at 10 minutes with a gap of a day."""
    time = np.arange(27 * 144) / 144
    time = time[(time < 12) | (time > 13)]
    transit = np.abs((time - 1.1 + PERIOD / 2) % PERIOD - PERIOD / 2) < DURATION / 2
    noise = 3e-4 * np.random.default_rng(0).standard_normal(time.size)
    star = 1.4e4 * (1 + 0.004 * np.sin(2 * np.pi * time / 9.3))
    return time, star * (1 + noise - DEPTH * transit), transit


@pytest.mark.parametrize("method", ["biweight", "median"])
def test_the_trend_goes_and_the_transit_keeps_its_depth(method):
    time, flux, transit = light_curve()
    flat, trend = flatten_light_curve(time, flux, 3.5 * DURATION, method=method, return_trend=True)
    assert 1 - np.median(flat[transit]) == pytest.approx(DEPTH, rel=0.05)
    assert np.std(flat[~transit]) < 4e-4  # 2.8e-3 before
    assert np.median(flat[~transit]) == pytest.approx(1, abs=5e-5)
    np.testing.assert_allclose(flat * trend, flux)


def test_without_a_transit_only_noise_remains():
    time, flux, transit = light_curve()
    flat = flatten_light_curve(time[~transit], flux[~transit], 0.7, edge_cutoff=0.35)
    assert np.nanstd(flat) == pytest.approx(3e-4, rel=0.05)


def test_a_step_across_a_gap_leaves_no_trace_unless_it_is_bridged():
    time, flux, _ = light_curve()
    stepped = np.where(time > 12.5, 2 * flux, flux)
    for break_tolerance, trace in ((0.5, False), (np.inf, True)):
        one, other = (
            flatten_light_curve(time, curve, 2.5, break_tolerance=break_tolerance) for curve in (flux, stepped)
        )
        assert (np.abs(one - other).max() > 1e-4) == trace


def test_many_light_curves_share_one_time():
    time, flux, _ = light_curve()
    both = flatten_light_curve(time, np.stack([flux, flux[::-1]]).astype(np.float32), 0.7)
    assert (both.dtype, both.shape) == (np.float32, (2, time.size))
    np.testing.assert_allclose(both[0], flatten_light_curve(time, flux, 0.7), rtol=1e-6)


def test_cadences_without_time_or_flux_are_nan_and_change_nothing():
    time, flux, _ = light_curve()
    lost = np.random.default_rng(1).random(time.size) < 0.05
    expected = flatten_light_curve(time[~lost], flux[~lost], 0.7)
    for broken in ((np.where(lost, np.nan, time), flux), (time, np.where(lost, np.nan, flux))):
        found = flatten_light_curve(*broken, 0.7)
        assert np.isnan(found[lost]).all()
        np.testing.assert_array_equal(found[~lost], expected)


def test_the_ends_of_segments_can_be_cut_off():
    time, flux, _ = light_curve()
    cut = np.isnan(flatten_light_curve(time, flux, 0.7, edge_cutoff=0.2))
    ends = np.array([0, 12, 13, 27])
    assert (cut == (np.abs(time[:, None] - ends).min(axis=1) < 0.19))[~cut].all()
    assert cut.sum() == pytest.approx(4 * 0.2 * 144, abs=8)


def test_the_reference_gives_the_same():
    time, flux, _ = light_curve()
    with accel.using("numpy"):
        expected = flatten_light_curve(time, flux, 0.7)
    np.testing.assert_allclose(flatten_light_curve(time, flux, 0.7), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": [0.0, 2.0, 1.0]}, "time falls from 2.0"),
        ({"time": [0.0, 1.0]}, r"expected \(..., 2\)"),
        ({"time": [[0.0, 1.0, 2.0]]}, "time has shape"),
        ({"flux": ["a", "b", "c"]}, "flux has dtype"),
        ({"flux": [np.nan, np.inf, np.nan]}, "no finite value"),
        ({"flux": [0.1, -0.1, -0.3]}, "expected positive flux"),
        ({"window": -1.0}, "window is -1.0"),
    ],
)
def test_light_curves_that_cannot_be_flattened_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        flatten_light_curve(**{"time": [0.0, 1.0, 2.0], "flux": [1.0, 1.1, 0.9], "window": 1.0, **change})


def test_an_unknown_method_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="biweight"):
        flatten_light_curve([0.0], [1.0], 1.0, method="biwieght")
