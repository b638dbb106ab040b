import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError

PERIOD, EPOCH, DEPTH, DURATION = 7.31, 133.9, 4e-3, 0.2


def light_curve(cadences=4000, seed=0):
    """Times in days with gaps, flux with a transit, errors that differ."""
    generator = np.random.default_rng(seed)
    time = 131.5 + 0.0204344 * np.sort(generator.choice(2 * cadences, cadences, replace=False))
    error = 1e-3 * generator.uniform(0.7, 1.3, cadences)
    dip = np.abs((time - EPOCH + PERIOD / 2) % PERIOD - PERIOD / 2) < DURATION / 2
    return time, 1.0 + error * generator.normal(size=cadences) - DEPTH * dip, error


def power_of_astropy(time, flux, error, periods, durations, **options):
    timeseries = pytest.importorskip("astropy.timeseries", reason="astropy is not installed")
    search = timeseries.BoxLeastSquares(time, flux, error)
    return search.power(periods, durations, objective="likelihood", method="fast", **options)


def assert_equals_astropy(found, expected):
    for name, part in found._asdict().items():
        # A time is a multiple of a bin: it is the same, or another box is.
        np.testing.assert_allclose(part, getattr(expected, name), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("with_errors", [True, False], ids=["errors", "no errors"])
@pytest.mark.parametrize(("durations", "oversample"), [(0.2, 10), ((0.1, 0.2, 0.37), 7), ((0.4, 0.05), 1)])
def test_it_is_what_astropy_computes(provider, durations, oversample, with_errors):
    time, flux, error = light_curve()
    periods = np.linspace(0.5, 60.0, 301)
    errors = error if with_errors else None
    found = accel.box_least_squares(time, flux, errors, periods=periods, durations=durations, oversample=oversample)
    assert_equals_astropy(found, power_of_astropy(time, flux, errors, periods, durations, oversample=oversample))


def test_cadences_on_the_edges_of_bins_fall_into_those_of_astropy(provider):
    time, flux = np.arange(3000) * 0.02, np.random.default_rng(1).normal(1.0, 1e-3, 3000)
    periods = np.arange(50, 1000) * 0.02  # whole numbers of cadences; bins are a quarter of one
    found = accel.box_least_squares(time, flux, periods=periods, durations=[0.05, 0.1])
    assert_equals_astropy(found, power_of_astropy(time, flux, None, periods, [0.05, 0.1]))


def test_a_transit_is_found_with_its_depth(provider):
    time, flux, error = light_curve()
    periods = np.linspace(5.0, 10.0, 2001)
    found = accel.box_least_squares(time, flux, error, periods=periods, durations=[0.1, 0.2, 0.4])
    best = int(np.argmax(found.power))
    assert periods[best] == pytest.approx(PERIOD, abs=0.005)
    assert found.duration[best] == pytest.approx(DURATION)
    assert abs(found.depth[best] - DEPTH) < 4 * found.depth_err[best]
    assert (found.transit_time[best] - EPOCH + PERIOD / 2) % PERIOD - PERIOD / 2 == pytest.approx(0.0, abs=0.03)
    np.testing.assert_array_equal(found.depth_snr, found.depth / found.depth_err)


def test_a_box_alone_has_the_likelihood_of_its_definition(provider):
    time, flux = np.arange(10.0), np.ones(10)
    flux[4] = 0.0
    found = accel.box_least_squares(time, flux, 0.5, periods=[20.0], durations=[1.0], oversample=1)
    assert found.depth[0] == 1.0
    assert found.depth_err[0] == pytest.approx(0.5 * np.sqrt(1 + 1 / 9))
    assert found.log_likelihood[0] == found.power[0] == 0.5 * 4.0  # half of chi squared inside the box
    assert (found.duration[0], found.transit_time[0]) == (1.0, 4.5)


def test_a_brightening_is_no_transit(provider):
    time, flux, error = light_curve()
    dips, rises = (
        accel.box_least_squares(time, sign * flux, error, periods=[PERIOD], durations=0.2).power for sign in (1, -1)
    )
    assert rises[0] < 0.1 * dips[0]


def test_unknown_cadences_are_left_out_and_order_does_not_matter(provider):
    time, flux, error = light_curve(800)
    options = {"periods": [3.3, PERIOD, 9.0], "durations": [0.2, 0.3]}
    expected = accel.box_least_squares(time, flux, error, **options)
    shuffled = np.random.default_rng(0).permutation(803)
    longer = [np.append(part, 3 * [1.0]) for part in (time, flux, error)]
    for i, part in enumerate(longer):
        part[800 + i] = [np.nan, np.inf, np.nan][i]
    found = accel.box_least_squares(*(part[shuffled] for part in longer), **options)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9)


@pytest.mark.parametrize("unit", [1e-12, 1e9])
def test_the_unit_of_flux_changes_nothing(provider, unit):
    time, flux, error = light_curve(800)
    one, other = (
        accel.box_least_squares(time, flux * unit, error * unit, periods=[3.3, PERIOD], durations=0.2)
        for unit in (1.0, unit)
    )
    np.testing.assert_allclose(other.depth_snr, one.depth_snr, rtol=1e-9)
    np.testing.assert_allclose(other.power, one.power, rtol=1e-9)
    np.testing.assert_allclose(other.depth, one.depth * unit, rtol=1e-9)


@pytest.mark.parametrize("time", [[], [3.0], [3.0, 3.1]], ids=["none", "one", "within one box"])
def test_a_light_curve_without_a_box_has_no_likelihood(provider, time):
    found = accel.box_least_squares(time, np.arange(len(time)) * 1.0, periods=[2.0, 3.0], durations=[1.0], oversample=2)
    assert (found.power == -np.inf).all()
    assert np.isnan(found.depth).all()
    assert np.isnan(found.transit_time).all()


@pytest.mark.usefixtures("rust")
@given(
    seed=st.integers(0, 1000),
    cadences=st.integers(0, 200),
    dtype=st.sampled_from([np.float32, np.float64, ">f8"]),
    step=st.sampled_from([1, 2, -1]),
    durations=st.lists(st.floats(0.1, 1.9), min_size=1, max_size=3),
    oversample=st.integers(1, 12),
)
def test_providers_agree(seed, cadences, dtype, step, durations, oversample):
    generator = np.random.default_rng(seed)
    time, flux, error = (
        part.astype(dtype)[::step] for part in generator.uniform(1.0, [[60.0], [2.0], [3.0]], (3, cadences))
    )
    periods = generator.uniform(2.0, 30.0, 4)[::step]

    def search():
        found = accel.box_least_squares(time, flux, error, periods=periods, durations=durations, oversample=oversample)
        return found._replace(transit_time=None, duration=None)  # of equal boxes, rounding decides which is first

    assert_agree(search, rtol=1e-8)


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    time, flux, error = light_curve()
    periods = np.linspace(0.5, 60.0, 203)
    assert_threads_change_nothing(
        lambda threads: accel.box_least_squares(
            time, flux, error, periods=periods, durations=[0.1, 0.3], threads=threads
        )
    )


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    time, flux, _ = light_curve(20_000)
    periods = np.linspace(1.0, 20.0, 100)
    assert_releases_the_lock(lambda: accel.box_least_squares(time, flux, periods=periods, durations=0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.ones(4)}, "expected one length"),
        ({"flux_err": np.ones(4)}, "expected one length"),
        ({"time": np.ones((3, 1))}, "time has shape"),
        ({"flux": np.ones(3, complex)}, "flux has dtype"),
        ({"flux_err": [1.0, 0.0, 1.0]}, r"flux_err reaches 0\.0"),
        ({"periods": []}, "periods has shape"),
        ({"periods": [3.0, -1.0]}, r"periods has -1\.0"),
        ({"periods": [3.0, np.inf]}, "periods has inf"),
        ({"durations": [0.0]}, r"durations has 0\.0"),
        ({"durations": [[0.1]]}, "durations has shape"),
        ({"durations": [0.1, 2.0]}, r"durations reach 2\.0"),
        ({"durations": [1e-12]}, "bins"),
        ({"oversample": 0}, "oversample is 0"),
        ({"oversample": 2.5}, "oversample is 2.5"),
    ],
)
def test_wrong_input_is_refused(change, message):
    arguments = {"time": np.arange(3.0), "flux": np.ones(3), "periods": [2.0], "durations": [0.5], **change}
    with pytest.raises(InputError, match=message):
        accel.box_least_squares(arguments.pop("time"), arguments.pop("flux"), **arguments)
