import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError

KERNELS = {"median": accel.median_filter_time, "biweight": accel.biweight_detrend}


@pytest.fixture(params=list(KERNELS))
def kernel(request):
    return KERNELS[request.param]


def light_curve(cadences=3000, seed=0):
    """`time`, `flux` at 30 minutes, with jitter, two gaps, missing flux, outliers and a trend."""
    generator = np.random.default_rng(seed)
    time = np.arange(cadences + 200) / 48 + generator.uniform(-1e-3, 1e-3, cadences + 200)
    keep = np.ones(time.size, bool)
    keep[cadences // 3 : cadences // 3 + 150] = keep[cadences // 2 : cadences // 2 + 50] = False
    time = time[keep]
    flux = 1 + 0.01 * np.sin(time) + 1e-3 * generator.standard_normal(time.size)
    flux[generator.random(time.size) < 0.02] += 0.05
    flux[generator.random(time.size) < 0.02] = np.nan
    return time, flux


def windows_of(time, flux, window, break_tolerance):
    """The values in the window of each cadence, by the definition; None where the flux is missing."""
    known = np.flatnonzero(np.isfinite(flux))
    segment = np.concatenate([[0], np.cumsum(np.diff(time[known]) > break_tolerance)])
    found = [None] * len(time)
    for i, number in zip(known, segment, strict=True):
        mine = known[segment == number]
        found[i] = flux[mine[(time[mine] >= time[i] - window / 2) & (time[mine] < time[i] + window / 2)]]
    return found


@st.composite
def curves(draw):
    """A time with repeats and gaps, and flux `[curve, time]` with ties, missing and infinite values."""
    size = draw(st.integers(0, 40))
    steps = draw(st.lists(st.sampled_from([0.0, 0.5, 0.5, 0.7, 1.0, 1.3, 6.0]), min_size=size, max_size=size))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = (draw(st.integers(0, 3)), size) if draw(st.booleans()) else (size,)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    flux = generator.normal(100.0, 1.0, shape).astype(dtype)
    if draw(st.booleans()):
        flux = np.round(flux)
    flux[generator.random(shape) < 0.1] = draw(st.sampled_from([np.nan, np.inf]))
    return np.cumsum(steps), flux


def test_the_median_of_each_window(provider):
    time, flux = [0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 1.0, 4.0, 2.0, 3.0]
    # the later end of a window does not belong to it
    assert accel.median_filter_time(time, flux, 2.0, break_tolerance=5.0).tolist() == [5.0, 3.0, 2.5, 3.0, 2.5]
    assert accel.median_filter_time(time, flux, 2.1).tolist() == [3.0, 4.0, 2.0, 3.0, 2.5]


@pytest.mark.parametrize("break_tolerance", [None, 0.3, np.inf])
def test_the_median_follows_its_definition(provider, break_tolerance):
    time, flux = light_curve(700)
    found = accel.median_filter_time(time, flux, 1.5, break_tolerance=break_tolerance)
    windows = windows_of(time, flux, 1.5, 0.75 if break_tolerance is None else break_tolerance)
    np.testing.assert_array_equal(found, [np.nan if values is None else np.median(values) for values in windows])


def test_the_biweight_is_where_weighted_deviations_cancel(provider):
    optimize = pytest.importorskip("scipy.optimize")
    time, flux = light_curve(700)
    found = accel.biweight_detrend(time, flux, 1.5, cval=4.0)
    for trend, values in zip(found, windows_of(time, flux, 1.5, 0.75), strict=True):
        if values is None:
            assert np.isnan(trend)
            continue
        median = np.median(values)
        mad = np.median(np.abs(values - median))

        def pull(centre, values=values, mad=mad):
            u = (values - centre) / (4.0 * mad)
            return np.sum(np.where(np.abs(u) < 1, u * (1 - u**2) ** 2, 0.0))

        if values.size >= 20:  # few values may have several centres in reach
            assert trend == pytest.approx(optimize.brentq(pull, median - mad, median + mad, xtol=1e-15), abs=1e-9 * mad)


@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("options", [{}, {"edge_cutoff": 0.4}, {"break_tolerance": 0.4, "edge_cutoff": 9.0}])
def test_it_is_what_wotan_finds(provider, method, options):
    pytest.importorskip("wotan")
    time, flux = light_curve()
    for window in (0.75, 2.0, 15.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from wotan import flatten

            _, expected = flatten(time, flux, window_length=window, method=method, return_trend=True, **options)
        np.testing.assert_allclose(KERNELS[method](time, flux, window, **options), expected, rtol=1e-8)


@pytest.mark.usefixtures("rust")
@given(curve=curves(), window=st.sampled_from([0.3, 1.0, 4.0, 11.0]), data=st.data())
def test_providers_agree(curve, window, data):
    time, flux = curve
    options = {
        "break_tolerance": data.draw(st.sampled_from([None, 0.6, 2.0, np.inf])),
        "edge_cutoff": data.draw(st.sampled_from([0.0, 0.5, 3.0])),
    }
    assert_agree(lambda: accel.median_filter_time(time, flux, window, **options), rtol=0.0)
    assert_agree(lambda: accel.biweight_detrend(time, flux, window, **options), rtol=1e-9)


@pytest.mark.usefixtures("rust")
@pytest.mark.parametrize("window", [0.75, 5.0, 40.0])
def test_providers_agree_on_light_curves(window):
    time, flux = light_curve()
    assert_agree(lambda: accel.median_filter_time(time, flux, window), rtol=0.0)
    assert_agree(lambda: accel.biweight_detrend(time, flux, window), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, ">f4"])
def test_any_layout_and_real_dtype_serves(provider, kernel, dtype):
    time, flux = light_curve(500)
    curves = np.nan_to_num(1000 * np.stack([flux, flux[::-1]])).astype(dtype)
    found = kernel(time[::-1].astype(">f8")[::-1], np.asfortranarray(curves), 2.0)
    assert found.dtype == {"f": np.float32, "e": np.float32}.get(curves.dtype.char, np.float64)
    assert found.shape == curves.shape
    for row, curve in zip(found, curves, strict=True):
        expected = kernel(time, curve.astype(np.float64), 2.0)
        np.testing.assert_allclose(row, expected, rtol=1e-6 if found.dtype == np.float32 else 1e-12)


def test_curves_are_independent_whatever_stands_beside(provider, kernel):
    time, flux = light_curve(400)
    cube = np.stack([flux, np.full_like(flux, np.nan), flux + 1, np.ones_like(flux)]).reshape(2, 2, -1)
    found = kernel(time, cube, 1.5)
    np.testing.assert_array_equal(found[0, 0], kernel(time, flux, 1.5))
    np.testing.assert_allclose(found[1, 0], found[0, 0] + 1, rtol=1e-9)
    assert np.isnan(found[0, 1]).all()
    assert (found[1, 1] == 1).all()


def test_unit_and_offset_of_the_flux_do_not_matter(provider, kernel):
    time, flux = light_curve(600)
    trend = kernel(time, flux, 1.5)
    np.testing.assert_allclose(kernel(time, -3e4 * flux - 7.0, 1.5), -3e4 * trend - 7.0, rtol=1e-9)


def test_missing_flux_has_no_trend_and_no_influence(provider, kernel):
    time, flux = light_curve(300)
    known = np.isfinite(flux)
    found = kernel(time, flux, 1.5)
    assert np.isnan(found[~known]).all()
    np.testing.assert_array_equal(found[known], kernel(time[known], flux[known], 1.5))


def test_windows_do_not_reach_across_a_gap(provider, kernel):
    time = np.concatenate([np.arange(50.0), 60.0 + np.arange(5.0)])
    flux = np.where(time < 55, 1.0, 2.0)
    np.testing.assert_array_equal(kernel(time, flux, 18.0), flux)  # the gap takes 11
    assert (kernel(time, flux, 40.0, break_tolerance=np.inf) == 1.0).all()


def test_no_trend_near_the_ends_of_a_segment(provider, kernel):
    time = np.concatenate([np.arange(50.0), 100.0 + np.arange(50.0)])
    found = kernel(time, np.ones(100), 20.0, edge_cutoff=3.0)
    assert np.flatnonzero(np.isnan(found)).tolist() == [0, 1, 2, 47, 48, 49, 50, 51, 52, 97, 98, 99]
    assert np.isfinite(kernel(time, np.ones(100), 20.0, edge_cutoff=1e9)).sum() == 60  # half a window is the most


def test_transits_and_flares_do_not_move_the_biweight(provider):
    time = np.arange(2000) / 48
    flux = 1 + 1e-4 * np.random.default_rng(0).standard_normal(time.size)
    spoilt = flux.copy()
    spoilt[::40] -= 0.01
    spoilt[7::200] += 0.1
    found, clean = (accel.biweight_detrend(time, curve, 1.0) for curve in (spoilt, flux))
    assert np.abs(found - clean).max() < 3e-5


@pytest.mark.parametrize("value", [1.0, 1e300, 5e-324])
def test_equal_and_extreme_values_stay_what_they_are(provider, kernel, value):
    assert (kernel(np.arange(20.0), np.full(20, value), 5.0) == value).all()
    assert np.isfinite(kernel(np.arange(20.0), value * (np.arange(20.0) % 3), 5.0)).all()


def test_one_cadence_is_its_own_trend(provider, kernel):
    assert kernel([3.0], [7.0], 1.0).tolist() == [7.0]
    assert kernel([0.0, 9.0, 18.0], [7.0, 8.0, 9.0], 1.0).tolist() == [7.0, 8.0, 9.0]


def test_a_window_below_the_precision_of_the_time_holds_nothing(provider, kernel):
    assert np.isnan(kernel([2.4e6, 2.4e6 + 1], [7.0, 8.0], 1e-12)).all()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0), (2, 0, 0)])
def test_no_cadences_give_no_trend(provider, kernel, shape):
    assert kernel([], np.empty(shape), 1.0).shape == shape


def test_no_curves_give_no_trend(provider, kernel):
    assert kernel(np.arange(5.0), np.empty((0, 5)), 1.0).shape == (0, 5)


@pytest.mark.usefixtures("rust")
@pytest.mark.parametrize("window", [0.75, 30.0])
def test_threads_change_nothing(kernel, window):
    time, flux = light_curve(20_000)
    curves = np.stack([flux, flux[::-1]]).astype(np.float32)
    assert_threads_change_nothing(lambda threads: kernel(time, curves, window, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released(kernel):
    time, flux = light_curve(100_000)
    assert_releases_the_lock(lambda: kernel(time, flux, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": np.ones((2, 2))}, r"time has shape \(2, 2\)"),
        ({"time": [0.0, np.nan, 2.0]}, r"time\[1\] is nan"),
        ({"time": [0.0, 2.0, 1.0]}, "time falls from 2.0 to 1.0 at 2"),
        ({"time": ["a", "b", "c"]}, "time has dtype"),
        ({"flux": [1.0, 2.0]}, r"flux has shape \(2,\); expected \(..., 3\)"),
        ({"flux": 1.0}, "flux has shape"),
        ({"flux": [1j, 2j, 3j]}, "flux has dtype"),
        ({"window": 0.0}, "window is 0.0; expected a positive number"),
        ({"window": np.inf}, "window is inf"),
        ({"window": "day"}, "window is 'day'"),
        ({"break_tolerance": 0.0}, "break_tolerance is 0.0; expected a positive number or inf"),
        ({"break_tolerance": np.nan}, "break_tolerance is nan"),
        ({"edge_cutoff": -1.0}, "edge_cutoff is -1.0; expected a number of at least 0"),
    ],
)
def test_what_cannot_be_detrended_is_refused(kernel, change, message):
    with pytest.raises(InputError, match=message):
        kernel(**{"time": [0.0, 1.0, 2.0], "flux": [1.0, 2.0, 3.0], "window": 1.0, **change})


@pytest.mark.parametrize("cval", [0.0, -1.0, np.inf, None])
def test_a_cutoff_that_is_no_positive_number_is_refused(cval):
    with pytest.raises(InputError, match="cval is"):
        accel.biweight_detrend([0.0, 1.0], [1.0, 2.0], 1.0, cval=cval)
