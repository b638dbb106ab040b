"""The extension module: kernels of `astrozoo.accel`, by the names and with the arguments of their references."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

INTERFACE: Final[int]
SOURCES: Final[str]
VERSION: Final[str]

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
