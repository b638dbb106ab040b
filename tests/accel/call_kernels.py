"""Call kernels of an extension module and print what they give: `python call_kernels.py _native.abi3.so`.

Needs NumPy only, so that it runs under emulation of a processor that other libraries no longer support.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np


def main() -> None:
    spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)

    generator = np.random.default_rng(0)
    cube = generator.normal(size=(2, 3, 5000)).astype(np.float32)
    cube[:, :, ::7] = np.nan
    time, flux = np.arange(3000.0) / 48, 1 + 0.01 * generator.normal(size=(1, 3000))
    wavelength, spectra = np.linspace(1, 2, 500), generator.normal(size=(3, 500))
    edges, sizes = np.array([[0, 1, 2, 3], [1, 2, 0, 4]]), np.array([3, 2])
    calls = {
        "nan_stats": (cube, 2),
        "quantiles": (cube, np.array([0.1, 0.5]), 2),
        "fill_gaps": (cube, np.arange(3.0), np.inf, 1),
        "median_filter_time": (time, flux, 1.0, 0.5, 0.0, 1),
        "biweight_detrend": (time, flux, 1.0, 5.0, 0.5, 0.0, 1),
        "box_least_squares": (time, flux[0], np.ones(3000), np.linspace(2, 5, 20), np.array([0.1, 0.2]), 10, 1),
        "rebin_flux": (wavelength, spectra, np.linspace(1.1, 1.9, 50), None, np.nan, 1),
        "convolve_lsf": (wavelength, spectra, np.full(500, 0.005), 5.0, 1),
        "shortest_paths": (edges, sizes, None, np.inf, False, False, 1),
        "random_walk_pe": (edges, sizes, None, 4, False, 1),
        "laplacian_pe": (edges, sizes, 2, False, 1),
    }
    for kernel, arguments in calls.items():
        print(kernel, *(f"{total:.9g}" for total in totals(getattr(native, kernel)(*arguments))))


def totals(result: Any) -> list[float]:
    """The sum of each array of a result."""
    if isinstance(result, np.ndarray):
        return [float(np.nan_to_num(result.astype(np.float64), nan=-9.0, posinf=9.0, neginf=-8.0).sum())]
    return [total for part in result or () for total in totals(part)]


if __name__ == "__main__":
    main()
