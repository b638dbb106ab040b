"""The extension module: kernels of `astrozoo.accel`, by the names and with the arguments of their references."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

INTERFACE: Final[int]
SOURCES: Final[str]
VERSION: Final[str]

def convolve_lsf(
    wavelength: NDArray[np.float64],
    flux: NDArray[np.float32] | NDArray[np.float64],
    sigma: NDArray[np.float64],
    truncate: float,
    threads: int,
    /,
) -> NDArray[np.floating]: ...
def nan_stats(
    values: NDArray[np.float32] | NDArray[np.float64], threads: int, /
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.floating], NDArray[np.floating]]: ...
def rebin_flux(
    wavelength: NDArray[np.float64],
    flux: NDArray[np.float32] | NDArray[np.float64],
    new_wavelength: NDArray[np.float64],
    flux_err: NDArray[np.float32] | NDArray[np.float64] | None,
    fill: float,
    threads: int,
    /,
) -> tuple[NDArray[np.floating], NDArray[np.floating] | None]: ...
def voigt_cross_section(
    wavenumber: NDArray[np.float64],
    centers: NDArray[np.float64],
    strengths: NDArray[np.float64],
    sigma: NDArray[np.float64],
    gamma: NDArray[np.float64],
    cutoff: float,
    threads: int,
    /,
) -> NDArray[np.float64]: ...
