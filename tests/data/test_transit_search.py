import numpy as np
import pytest
import torch

from astrozoo.data import TransitCandidate, period_grid, search_transits, transit_views
from astrozoo.errors import InputError

NOISE = 5e-4
PLANETS = {"inner": (3.4567, 132.1, 0.1, 1.2e-3), "outer": (11.2345, 135.3, 0.2, 1.5e-3)}


def light_curve(*planets, days=80.0, seed=0):
    """Half-hour cadences with a gap and noise: time, flux."""
    generator = np.random.default_rng(seed)
    time = 131.5 + np.arange(0.0, days, 0.0204344)
    time = time[(time < 160.0) | (time > 163.0)]
    flux = 1.0 + NOISE * generator.normal(size=len(time))
    for period, epoch, duration, depth in planets:
        flux[np.abs((time - epoch + period / 2) % period - period / 2) < duration / 2] -= depth
    return time, flux


def assert_is(candidate, planet):
    period, epoch, _, depth = planet
    assert candidate.period == pytest.approx(period, rel=1e-3)
    assert (candidate.epoch - epoch + period / 2) % period - period / 2 == pytest.approx(0.0, abs=0.05)
    assert abs(candidate.depth - depth) < 4 * candidate.depth_err
    assert candidate.snr == candidate.depth / candidate.depth_err


@pytest.mark.parametrize("planet", PLANETS.values(), ids=PLANETS)
@pytest.mark.parametrize("flux_err", [None, NOISE], ids=["estimated error", "given error"])
def test_an_injected_transit_is_recovered(planet, flux_err):
    time, flux = light_curve(planet)
    flux[::50] = np.nan
    (candidate,) = search_transits(time, flux, flux_err, max_period=20.0)
    assert_is(candidate, planet)
    assert candidate.duration == pytest.approx(planet[2])
    assert 0.6 * 80 / planet[0] < candidate.transits <= 80 / planet[0] + 1


def test_two_planets_are_found_in_turn():
    candidates = search_transits(*light_curve(*PLANETS.values()), max_period=20.0)
    assert len(candidates) == 2
    for candidate, planet in zip(sorted(candidates, key=lambda one: one.period), PLANETS.values(), strict=True):
        assert_is(candidate, planet)


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_candidate_and_a_low_ratio(seed):
    time, flux = light_curve(seed=seed)
    assert search_transits(time, flux, max_period=20.0) == []
    (likeliest,) = search_transits(time, flux, max_period=20.0, min_snr=0.0, min_transits=1, max_candidates=1)
    assert likeliest.snr < 7.0


def test_a_single_glitch_is_no_candidate_and_hides_none():
    time, flux = light_curve(PLANETS["inner"])
    flux[(time > 150.0) & (time < 150.3)] -= 0.02
    candidates = search_transits(time, flux, min_period=2.0, max_period=45.0)
    assert_is(candidates[0], PLANETS["inner"])
    assert len(candidates) == 1


def test_a_transit_across_the_first_cadence_keeps_its_depth():
    planet = (3.4567, 131.5, 0.4, 1.2e-3)
    (candidate,) = search_transits(*light_curve(planet), max_period=20.0)
    assert_is(candidate, planet)
    assert candidate.duration == pytest.approx(0.4)


def test_neighbouring_periods_move_the_last_transit_by_a_duration_at_most():
    periods = period_grid(1400.0, 0.1, min_period=0.5, max_period=300.0)
    assert periods[0] == 0.5
    assert periods[-2] < 300.0 <= periods[-1] + 1e-9
    np.testing.assert_allclose(np.diff(periods) * (1400.0 / periods[:-1]), 0.1, rtol=1e-9)


def test_a_range_that_is_empty_has_no_periods():
    with pytest.raises(InputError, match="expected a rising range"):
        period_grid(100.0, 0.1, min_period=3.0, max_period=2.0)


def test_views_are_float32_inputs_of_a_model():
    time, flux = light_curve(*PLANETS.values())
    candidates = search_transits(time, flux, max_period=20.0)
    views = transit_views(time, flux, candidates, global_bins=201, local_bins=61)
    assert {name: tuple(view.shape) for name, view in views.items()} == {"global_view": (2, 201), "local_view": (2, 61)}
    for view in views.values():
        assert view.dtype == torch.float32
        torch.testing.assert_close(view.amin(1), -torch.ones(2))
    assert (views["local_view"][:, 25:36].mean(1) < -0.3).all()  # the transit, in the middle


def test_no_candidates_have_empty_views():
    views = transit_views(*light_curve(), [])
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "global_view": (0, 2001),
        "local_view": (0, 201),
    }


def test_a_candidate_may_come_from_elsewhere():
    time, flux = light_curve(PLANETS["outer"])
    period, epoch, duration, depth = PLANETS["outer"]
    known = TransitCandidate(
        period=period, epoch=epoch, duration=duration, depth=depth, depth_err=1e-4, snr=15.0, transits=7
    )
    assert int(transit_views(time, flux, [known])["local_view"].argmin()) in range(85, 116)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.ones(4)}, "expected one length"),
        ({"flux": np.ones(100)}, "flux has no scatter"),
        ({"max_period": 1000.0}, "expected a range within"),
        ({"min_period": 30.0, "max_period": 20.0}, "expected a range within"),
        ({"time": np.full(100, np.nan)}, "expected a range within"),
        ({"time": ["2020"] * 100}, "time has dtype"),
        ({"flux_err": 0.0}, "expected positive numbers"),
        ({"durations": ()}, "durations is empty"),
        ({"durations": (0.0, 0.1)}, "expected positive numbers"),
        ({"step": 0.0}, "expected positive numbers"),
    ],
)
def test_wrong_input_is_refused(change, message):
    arguments = {"time": np.arange(100.0), "flux": np.random.default_rng(0).normal(size=100), **change}
    with pytest.raises(InputError, match=message):
        search_transits(**arguments)
