"""What a spectrograph makes of a model spectrum: its line spread, then its pixels."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel import convolve_lsf, lsf_sigma, rebin_flux
from astrozoo.accel.arrays import floating
from astrozoo.accel.grids import increasing
from astrozoo.errors import DataError

__all__ = ["observe_spectra"]


@overload
def observe_spectra(
    wavelength: ArrayLike,
    flux: ArrayLike,
    new_wavelength: ArrayLike,
    *,
    resolving_power: ArrayLike,
    flux_err: None = None,
) -> np.ndarray: ...


@overload
def observe_spectra(
    wavelength: ArrayLike,
    flux: ArrayLike,
    new_wavelength: ArrayLike,
    *,
    resolving_power: ArrayLike,
    flux_err: ArrayLike,
) -> tuple[np.ndarray, np.ndarray]: ...


def observe_spectra(
    wavelength: ArrayLike,
    flux: ArrayLike,
    new_wavelength: ArrayLike,
    *,
    resolving_power: ArrayLike,
    flux_err: ArrayLike | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Spectra at the resolution and on the pixels of an instrument: a Gaussian line spread, then flux-conserving bins.

        depth = observe_spectra(model.wavelength, model.depth, instrument.wavelength, resolving_power=100)

    The model's grid has to be finer than the line spread; where it is not, the line spread has no effect.

    Args:
        wavelength: `[wavelength]` of the model, increasing; any unit.
        flux: `[..., wavelength]`: flux density, transit depth, or what else is averaged over a pixel. NaN is unknown:
            the line spread bridges gaps shorter than its reach.
        new_wavelength: `[new_wavelength]`, the centres of the pixels, increasing, within the range of the model.
        resolving_power: `R = wavelength / FWHM` of the instrument: one number, or `[wavelength]` at the model's grid.
        flux_err: Independent errors of `flux`, of the same shape. They are carried into the pixels and not through the
            line spread, which happens before light is counted.

    Returns:
        `[..., new_wavelength]`; where errors are given, a pair of them: flux and error. NaN in pixels that are not
        entirely within the model's range.

    Raises:
        DataError: No pixel lies within the range of the model.
        InputError: A grid is not increasing, shapes do not fit, or a resolving power is not positive.
    """
    grid = increasing("wavelength", wavelength, least=2)
    pixels = increasing("new_wavelength", new_wavelength, least=2)
    if pixels[-1] < grid[0] or pixels[0] > grid[-1]:
        raise DataError(
            f"the pixels reach from {pixels[0]:g} to {pixels[-1]:g}, the model from {grid[0]:g} to {grid[-1]:g}: none "
            "is covered; are both wavelengths in the same unit?"
        )
    spread = convolve_lsf(grid, floating("flux", flux), lsf_sigma(grid, resolving_power))
    if flux_err is None:
        return rebin_flux(grid, spread, pixels)
    return rebin_flux(grid, spread, pixels, flux_err)
