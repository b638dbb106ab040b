import numpy as np
import pytest

from astrozoo.data import observe_spectra
from astrozoo.errors import DataError, InputError


def absorption(wavelength, width=0.002):
    return 1 - 0.8 * np.exp(-0.5 * ((wavelength - 1.5) / width) ** 2)


def equivalent_width(wavelength, flux):
    return np.sum((1 - flux) * np.gradient(wavelength))


def test_the_equivalent_width_of_a_line_is_conserved():
    fine, pixels = np.linspace(1, 2, 20_001), np.linspace(1.1, 1.9, 161)
    observed = observe_spectra(fine, absorption(fine), pixels, resolving_power=100)
    assert observed.min() > 0.6  # the line is smeared
    assert equivalent_width(pixels, observed) == pytest.approx(0.8 * 0.002 * np.sqrt(2 * np.pi), rel=1e-3)


def test_a_line_gets_the_width_of_the_instrument():
    fine, pixels = np.linspace(1, 2, 20_001), np.linspace(1.1, 1.9, 1601)
    depth = 1 - observe_spectra(fine, absorption(fine, 1e-3), pixels, resolving_power=100)
    assert np.ptp(pixels[depth > depth.max() / 2]) == pytest.approx(1.5 / 100, rel=0.03)


def test_a_model_grid_refined_twice_changes_little():
    pixels = np.linspace(1.1, 1.9, 161)
    coarse, fine = (
        observe_spectra(grid, absorption(grid), pixels, resolving_power=200)
        for grid in (np.geomspace(1, 2, 3001), np.geomspace(1, 2, 6001))
    )
    np.testing.assert_allclose(coarse, fine, atol=2e-4)


def test_batches_are_observed_like_single_spectra():
    fine, pixels = np.geomspace(1, 2, 2000), np.linspace(1.1, 1.9, 50)
    flux = np.random.default_rng(0).normal(1, 0.1, (2, 3, 2000)).astype(np.float32)
    observed, error = observe_spectra(fine, flux, pixels, resolving_power=300, flux_err=0 * flux + 0.1)
    assert (observed.shape, observed.dtype, error.shape) == ((2, 3, 50), np.float32, (2, 3, 50))
    alone = observe_spectra(fine, flux[1, 2], pixels, resolving_power=np.full(2000, 300.0))
    np.testing.assert_allclose(observed[1, 2], alone, rtol=1e-6)
    assert (error < 0.1).all()


def test_the_line_spread_bridges_a_short_gap():
    fine, pixels = np.geomspace(1, 2, 4000), np.linspace(1.1, 1.9, 50)
    flux = np.ones(4000)
    flux[2000:2004] = np.nan
    np.testing.assert_allclose(observe_spectra(fine, flux, pixels, resolving_power=300), 1)


def test_reductions_of_wasp_39b_agree_at_low_resolution(shared_data):
    folder = shared_data / "spectra"
    fine = np.loadtxt(folder / "wasp39b_nirspec_prism_tiberius_reduction.txt", usecols=(0, 1, 2))
    coarse = np.loadtxt(folder / "wasp39b_nirspec_prism_firefly_reduction.txt", skiprows=1, usecols=(0, 1))
    pixels = np.linspace(3.2, 5.2, 21)
    wavelength, depth, error = fine[np.argsort(fine[:, 0])].T
    observed, observed_error = observe_spectra(wavelength, depth, pixels, resolving_power=50, flux_err=error)
    other = observe_spectra(*coarse[np.argsort(coarse[:, 0])].T, pixels, resolving_power=50)
    assert (observed_error < 0.7 * np.interp(pixels, wavelength, error)).all()
    peak = pixels[np.argmax(observed)]
    assert 4.2 < peak < 4.6  # carbon dioxide
    assert np.corrcoef(observed, other)[0, 1] > 0.9


def test_pixels_without_a_model_are_refused():
    with pytest.raises(DataError, match="same unit"):
        observe_spectra([1.0, 2.0, 3.0], np.ones(3), [1000.0, 2000.0], resolving_power=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolving_power": 0.0}, "resolving_power has 0.0"),
        ({"flux": np.ones(4)}, "flux has shape"),
        ({"new_wavelength": [2.0, 1.5]}, "new_wavelength goes from 2.0 to 1.5"),
        ({"flux_err": np.ones(2)}, "flux_err has shape"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"flux": np.ones(3), "new_wavelength": [1.5, 2.0], "resolving_power": 100.0, **change}
    with pytest.raises(InputError, match=message):
        observe_spectra([1.0, 2.0, 3.0], **arguments)
