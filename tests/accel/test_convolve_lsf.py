import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def brute_force(wavelength, flux, sigma, truncate):
    inner = (wavelength[1:] + wavelength[:-1]) / 2
    ends = (2 * wavelength[0] - inner[0], 2 * wavelength[-1] - inner[-1])
    bins = np.diff(np.concatenate([ends[:1], inner, ends[1:]]))
    result = np.full(flux.shape, np.nan)
    for i in range(len(wavelength)):
        near = np.isfinite(flux) & (np.abs(wavelength - wavelength[i]) <= truncate * sigma[i])
        if near.any():
            weights = bins[near] * np.exp(-0.5 * ((wavelength[near] - wavelength[i]) / sigma[i]) ** 2)
            result[i] = weights @ flux[near] / weights.sum()
    return result


@pytest.mark.parametrize("copies", [1, 8, 11])
def test_it_is_the_definition(provider, copies):
    generator = np.random.default_rng(0)
    wavelength = np.cumsum(generator.uniform(0.5, 1.5, 333))
    flux, sigma = generator.normal(size=333), generator.uniform(0.1, 9.0, 333)
    flux[generator.random(333) < 0.1] = np.nan
    flux[60:80] = np.nan
    flux[200] = np.inf
    expected = brute_force(wavelength, flux, sigma, 3.3)
    found = accel.convolve_lsf(wavelength, np.tile(flux, (copies, 1)), sigma, truncate=3.3)
    np.testing.assert_allclose(found, np.tile(expected, (copies, 1)), rtol=1e-11, atol=1e-12)


def test_a_gaussian_line_becomes_a_wider_gaussian(provider):
    wavelength = np.arange(0, 60, 0.02)
    line = np.exp(-0.5 * ((wavelength - 30) / 1.5) ** 2)
    found = accel.convolve_lsf(wavelength, line, 2.0, truncate=8)
    expected = 1.5 / 2.5 * np.exp(-0.5 * ((wavelength - 30) / 2.5) ** 2)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_it_is_what_scipy_computes_on_an_even_grid(provider):
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    flux = np.random.default_rng(0).normal(size=(3, 500))
    found = accel.convolve_lsf(np.arange(500.0), flux, 2.5, truncate=4)
    expected = ndimage.gaussian_filter1d(flux, 2.5, truncate=4)
    np.testing.assert_allclose(found[:, 10:-10], expected[:, 10:-10], rtol=1e-10, atol=1e-12)


def test_a_constant_spectrum_stays_constant_at_the_ends_and_beside_gaps(provider):
    wavelength = np.geomspace(0.6, 5, 700)
    flux = np.full((9, 700), 3.0)
    flux[3, 200:210], flux[5, ::7] = np.nan, np.nan
    found = accel.convolve_lsf(wavelength, flux, accel.lsf_sigma(wavelength, 100))
    np.testing.assert_allclose(found, 3.0, rtol=1e-14)


def test_no_width_changes_nothing(provider):
    flux = np.array([1.0, np.nan, 3.0, -2.0])
    for sigma in (0.0, 0.1, 1e-320):
        np.testing.assert_array_equal(accel.convolve_lsf([1, 2, 4, 7], flux, sigma), flux)


def test_a_pixel_without_known_neighbours_is_missing(provider):
    flux = np.ones(30)
    flux[10:20] = np.nan
    found = accel.convolve_lsf(np.arange(30.0), flux, 1.0, truncate=3)
    assert np.isnan(found).nonzero()[0].tolist() == [13, 14, 15, 16]


def test_a_narrow_pixel_beside_a_wide_one_keeps_its_own_width(provider):
    sigma = np.zeros(40)
    sigma[20] = 1000.0
    flux = np.arange(40.0)
    found = accel.convolve_lsf(np.arange(40.0), flux, sigma)
    np.testing.assert_array_equal(np.delete(found, 20), np.delete(flux, 20))
    assert found[20] == pytest.approx(19.5, abs=0.1)


def test_gaps_of_one_spectrum_do_not_touch_another(provider):
    generator = np.random.default_rng(0)
    wavelength, flux = np.geomspace(1, 2, 900), generator.normal(size=(20, 900))
    sigma = accel.lsf_sigma(wavelength, 300)
    whole = accel.convolve_lsf(wavelength, flux, sigma)
    flux[3, 100:300] = np.nan
    found = accel.convolve_lsf(wavelength, flux, sigma)
    np.testing.assert_allclose(np.delete(found, 3, 0), np.delete(whole, 3, 0), rtol=1e-12, atol=1e-14)


def test_resolving_power_is_wavelength_over_full_width(provider):
    sigma = accel.lsf_sigma([1.0, 2.0], [100.0, 50.0])
    half = np.exp(-0.5 * (np.array([0.5 / 100, 1.0 / 50]) / sigma) ** 2)
    assert half == pytest.approx([0.5, 0.5])
    assert accel.lsf_sigma(np.ones(3), 1000).shape == (3,)


@pytest.mark.usefixtures("rust")
@given(data=st.data())
def test_providers_agree(data):
    pixels = data.draw(st.integers(2, 50))
    wavelength = np.cumsum(data.draw(hnp.arrays(float, pixels, elements=st.floats(0.1, 2.0))))
    sigma = data.draw(hnp.arrays(float, pixels, elements=st.one_of(st.just(0.0), st.floats(0.01, 30.0))))
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.dtype(">f8"), np.int16]))
    values = st.integers(-99, 99) if dtype == np.int16 else st.one_of(st.floats(-50, 50, width=16), st.just(np.nan))
    shape = (*data.draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)), 2 * pixels)
    flux = data.draw(hnp.arrays(dtype, shape, elements=values))[..., ::-2]
    truncate = data.draw(st.floats(0.3, 8.0))
    tolerance = 1e-5 if flux.dtype == np.float32 else 1e-11
    assert_agree(
        lambda: accel.convolve_lsf(wavelength, flux, sigma, truncate=truncate), rtol=tolerance, atol=50 * tolerance
    )


@pytest.mark.usefixtures("rust")
@pytest.mark.parametrize("shape", [(300, 700), (1, 60_000)])
def test_threads_change_nothing(shape):
    wavelength = np.geomspace(0.6, 5, shape[1])
    flux = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    flux[:, ::97] = np.nan
    sigma = accel.lsf_sigma(wavelength, shape[1] / 20)
    assert_threads_change_nothing(lambda threads: accel.convolve_lsf(wavelength, flux, sigma, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    wavelength, flux = np.geomspace(1, 2, 3000), np.ones((300, 3000))
    assert_releases_the_lock(lambda: accel.convolve_lsf(wavelength, flux, 0.002))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavelength": [3.0, 2.0, 1.0]}, "wavelength goes from 3.0 to 2.0"),
        ({"wavelength": [1.0], "flux": [1.0]}, "wavelength has 1 values"),
        ({"flux": np.ones(4)}, r"flux has shape \(4,\); expected \(..., 3\)"),
        ({"sigma": [1.0, 2.0]}, r"sigma has shape \(2,\)"),
        ({"sigma": [1.0, -2.0, 1.0]}, "sigma has -2.0"),
        ({"sigma": np.nan}, "sigma has nan"),
        ({"truncate": 0}, "truncate is 0"),
        ({"truncate": np.nan}, "truncate is nan"),
        ({"truncate": 31.0}, "truncate is 31.0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        accel.convolve_lsf(**{"wavelength": [1.0, 2.0, 3.0], "flux": np.ones(3), "sigma": 1.0, **change})


@pytest.mark.parametrize("power", [0.0, -1.0, np.nan, [100.0, 0.0], [100.0, 100.0, 100.0]])
def test_what_is_no_resolving_power_is_refused(power):
    with pytest.raises(InputError, match="resolving_power has"):
        accel.lsf_sigma([1.0, 2.0], power)
