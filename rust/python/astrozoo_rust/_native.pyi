"""The extension module: kernels of `astrozoo.accel`, by the names and with the arguments of their references."""

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "INTERFACE",
    "SOURCES",
    "VERSION",
    "biweight_detrend",
    "box_least_squares",
    "collate_graphs",
    "convolve_lsf",
    "fill_gaps",
    "fold_views",
    "laplacian_pe",
    "median_filter_time",
    "nan_stats",
    "patch_batch",
    "quantiles",
    "radius_graph",
    "random_walk_pe",
    "read_fits_columns",
    "rebin_flux",
    "regrid_conservative",
    "shortest_paths",
    "voigt_cross_section",
]

INTERFACE: Final[int]
SOURCES: Final[str]
VERSION: Final[str]

_Keyword: TypeAlias = bool | int | float | str | None

def biweight_detrend(
    time: NDArray[np.float64],
    flux: NDArray[np.float32] | NDArray[np.float64],
    window: float,
    cval: float,
    break_tolerance: float,
    edge_cutoff: float,
    threads: int,
    /,
) -> NDArray[np.floating]: ...
def box_least_squares(
    time: NDArray[np.float64],
    flux: NDArray[np.float64],
    weight: NDArray[np.float64],
    periods: NDArray[np.float64],
    durations: NDArray[np.float64],
    oversample: int,
    threads: int,
    /,
) -> tuple[NDArray[np.float64], ...]: ...
def collate_graphs(
    x: NDArray[Any],
    node_starts: NDArray[np.int64],
    edges: NDArray[np.int64],
    edge_starts: NDArray[np.int64],
    edge_attr: NDArray[Any] | None,
    positions: NDArray[Any] | None,
    indices: NDArray[np.int64],
    threads: int,
    /,
) -> tuple[
    NDArray[Any], NDArray[np.int64], NDArray[Any] | None, NDArray[Any] | None, NDArray[np.int64], NDArray[np.int64]
]: ...
def convolve_lsf(
    wavelength: NDArray[np.float64],
    flux: NDArray[np.float32] | NDArray[np.float64],
    sigma: NDArray[np.float64],
    truncate: float,
    threads: int,
    /,
) -> NDArray[np.floating]: ...
def fill_gaps(
    values: NDArray[np.float32] | NDArray[np.float64], times: NDArray[np.float64], max_gap: float, threads: int, /
) -> NDArray[np.floating]: ...
def fold_views(
    time: NDArray[np.float64],
    flux: NDArray[np.float32] | NDArray[np.float64],
    period: NDArray[np.float64],
    epoch: NDArray[np.float64],
    half: NDArray[np.float64],
    width: NDArray[np.float64],
    bins: list[int],
    normalise: bool,
    threads: int,
    /,
) -> list[NDArray[np.floating]]: ...
def laplacian_pe(
    edges: NDArray[np.int64], sizes: NDArray[np.int64], count: int, single: bool, threads: int, /
) -> tuple[NDArray[np.floating], NDArray[np.floating]]: ...
def median_filter_time(
    time: NDArray[np.float64],
    flux: NDArray[np.float32] | NDArray[np.float64],
    window: float,
    break_tolerance: float,
    edge_cutoff: float,
    threads: int,
    /,
) -> NDArray[np.floating]: ...
def nan_stats(
    values: NDArray[np.float32] | NDArray[np.float64], threads: int, /
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.floating], NDArray[np.floating]]: ...
def patch_batch(
    cube: NDArray[np.float32] | NDArray[np.float64],
    times: NDArray[np.int64],
    lats: NDArray[np.int64],
    lons: NDArray[np.int64],
    flip_lat: NDArray[np.bool_],
    flip_lon: NDArray[np.bool_],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    fill: float,
    mask: bool,
    batch: NDArray[np.float32] | NDArray[np.uint16],
    threads: int,
    /,
) -> None: ...
def quantiles(
    values: NDArray[np.float32] | NDArray[np.float64], q: NDArray[np.float64], threads: int, /
) -> NDArray[np.float64]: ...
def radius_graph(
    positions: NDArray[np.float32] | NDArray[np.float64],
    sizes: NDArray[np.int64],
    radius: float,
    loop_: bool,
    most: int,
    threads: int,
    /,
) -> tuple[NDArray[np.int64], NDArray[np.floating]]: ...
def random_walk_pe(
    edges: NDArray[np.int64],
    sizes: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    steps: int,
    single: bool,
    threads: int,
    /,
) -> NDArray[np.floating]: ...
def read_fits_columns(
    source: bytes | str, columns: list[str] | None, hdu: int | str | None, threads: int, /
) -> tuple[dict[str, NDArray[Any]], dict[str, str], dict[str, _Keyword], dict[str, _Keyword]]: ...
def rebin_flux(
    wavelength: NDArray[np.float64],
    flux: NDArray[np.float32] | NDArray[np.float64],
    new_wavelength: NDArray[np.float64],
    flux_err: NDArray[np.float32] | NDArray[np.float64] | None,
    fill: float,
    threads: int,
    /,
) -> tuple[NDArray[np.floating], NDArray[np.floating] | None]: ...
def regrid_conservative(
    values: NDArray[np.float32] | NDArray[np.float64],
    lat_first: NDArray[np.int64],
    lat_start: NDArray[np.int64],
    lat_weights: NDArray[np.float64],
    lon_first: NDArray[np.int64],
    lon_start: NDArray[np.int64],
    lon_weights: NDArray[np.float64],
    least: float,
    threads: int,
    /,
) -> NDArray[np.floating]: ...
def shortest_paths(
    edges: NDArray[np.int64],
    sizes: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    limit: float,
    directed: bool,
    single: bool,
    threads: int,
    /,
) -> NDArray[np.int32] | NDArray[np.floating]: ...
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
