import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_checks import assert_agree, assert_releases_the_lock, assert_threads_change_nothing

from astrozoo import accel
from astrozoo.errors import InputError


def grids(most):
    steps = st.lists(st.floats(0.05, 3.0), min_size=2, max_size=most)
    return st.builds(lambda start, steps: start + np.cumsum(steps), st.floats(-2.0, 5.0), steps)


def edges(centers):
    inner = (centers[1:] + centers[:-1]) / 2
    return np.concatenate([[centers[0] - (inner[0] - centers[0])], inner, [centers[-1] + (centers[-1] - inner[-1])]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_bins_become_their_mean_and_errors_add_in_quadrature(provider, dtype):
    flux, error = np.array([1, 3, 5, 9], dtype), np.array([3, 4, 6, 8], dtype)
    found, found_error = accel.rebin_flux([1, 2, 3, 4], flux, [1.5, 3.5], error)
    assert (found.dtype, found_error.dtype) == (dtype, dtype)
    assert (found.tolist(), found_error.tolist()) == ([2.0, 7.0], [2.5, 5.0])


def test_a_bin_within_an_old_one_copies_it_exactly(provider):
    flux = np.array([0.1, 0.7, 0.3])
    found, error = accel.rebin_flux([1.0, 2.0, 3.0], flux, [1.9, 2.0, 2.1], flux)
    assert (found.tolist(), error.tolist()) == ([0.7] * 3, [0.7] * 3)


def test_the_same_grid_changes_nothing(provider):
    grid, flux = np.geomspace(0.6, 5, 500), np.random.default_rng(0).normal(size=(3, 500))
    np.testing.assert_array_equal(accel.rebin_flux(grid, flux, grid), flux)


def test_bins_that_reach_outside_are_filled(provider):
    for fill in (np.nan, -1.0):
        found, error = accel.rebin_flux([1, 2, 3], [1.0, 1, 1], [0.4, 1.4, 2.4, 3.4], [1.0, 1, 1], fill=fill)
        np.testing.assert_array_equal(found, [fill, 1, 1, fill])
        np.testing.assert_array_equal(np.isnan(error), np.isnan(found))


def test_flux_is_conserved(provider):
    generator = np.random.default_rng(0)
    old = np.cumsum(generator.uniform(0.5, 2.0, 400))
    flux = generator.normal(1, 0.3, (2, 400))
    new = np.linspace(old[0] + 20, old[-1] - 20, 37)
    low, high = edges(new)[[0, -1]]
    overlap = np.clip(np.minimum(edges(old)[1:], high) - np.maximum(edges(old)[:-1], low), 0, None)
    found = accel.rebin_flux(old, flux, new)
    np.testing.assert_allclose(found @ np.diff(edges(new)), flux @ overlap, rtol=1e-12)


def test_a_missing_value_reaches_only_the_bins_that_overlap_it(provider):
    flux = np.ones((2, 40))
    flux[0, 20], flux[1, 5] = np.nan, np.inf
    found, error = accel.rebin_flux(np.arange(40.0), flux, np.arange(1.5, 38, 2), flux)
    assert np.isnan(found[0]).nonzero()[0].tolist() == [9]
    assert np.isinf(found[1]).nonzero()[0].tolist() == [2]
    assert np.isnan(error[0]).nonzero()[0].tolist() == [9]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [60, 1000, 20_000])
def test_it_is_what_spectres_computes(provider, dtype, size):
    spectres = pytest.importorskip("spectres", reason="spectres is not installed")
    generator = np.random.default_rng(0)
    old, new = np.geomspace(0.6, 5.0, 10_000), np.sort(generator.uniform(0.5, 5.2, size))
    flux = generator.normal(1, 0.1, (2, 3, 10_000)).astype(dtype)
    error = generator.uniform(0.1, 0.2, flux.shape).astype(dtype)
    found = accel.rebin_flux(old, flux, new, error, fill=-1.0)
    exact = spectres.spectres(new, old, flux.astype(float), error.astype(float), fill=-1.0, verbose=False)
    for ours, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6 if dtype == np.float32 else 1e-12, atol=1e-12)


@pytest.mark.usefixtures("rust")
@given(old=grids(40), new=grids(30), data=st.data())
def test_providers_agree(old, new, data):
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.dtype(">f8"), np.int16]))
    values = st.integers(-99, 99) if dtype == np.int16 else st.one_of(st.floats(-50, 50, width=16), st.just(np.nan))
    shape = (*data.draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)), 2 * len(old))
    flux = data.draw(hnp.arrays(dtype, shape, elements=values))[..., ::-2]
    error = data.draw(st.sampled_from([None, flux]))
    tolerance = 1e-5 if flux.dtype == np.float32 else 1e-10
    assert_agree(lambda: accel.rebin_flux(old, flux, new, error), rtol=tolerance, atol=50 * tolerance)


@pytest.mark.usefixtures("rust")
def test_threads_change_nothing():
    old, new = np.geomspace(0.6, 5, 3000), np.linspace(0.7, 4.9, 311)
    flux = np.random.default_rng(0).normal(size=(300, 3000)).astype(np.float32)
    assert_threads_change_nothing(lambda threads: accel.rebin_flux(old, flux, new, flux, threads=threads))


@pytest.mark.usefixtures("rust")
def test_the_interpreter_lock_is_released():
    flux = np.ones((300, 10_000))
    assert_releases_the_lock(lambda: accel.rebin_flux(np.arange(10_000.0), flux, np.arange(3.0, 9_000, 7.7)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wavelength": [1.0, 3.0, 2.0]}, r"wavelength goes from 3.0 to 2.0 at 2"),
        ({"wavelength": [1.0, np.nan, 2.0]}, "wavelength has nan"),
        ({"new_wavelength": [1.5, 1.5]}, "new_wavelength goes from 1.5 to 1.5"),
        ({"new_wavelength": [1.5]}, "new_wavelength has 1 values; expected at least 2"),
        ({"new_wavelength": [[1.5, 2.0]]}, "new_wavelength has shape"),
        ({"flux": np.ones((3, 4))}, r"flux has shape \(3, 4\); expected \(..., 3\)"),
        ({"flux": 1.0}, "flux has shape"),
        ({"flux": [1j, 2j, 3j]}, "flux has dtype complex"),
        ({"flux_err": np.ones((2, 3))}, r"flux_err has shape \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"wavelength": [1.0, 2.0, 3.0], "flux": np.ones(3), "new_wavelength": [1.5, 2.5], **change}
    with pytest.raises(InputError, match=message):
        accel.rebin_flux(**arguments)
