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
def median_filter_time(
    time: NDArray[np.float64],
    flux: NDArray[np.float32] | NDArray[np.float64],
    window: float,
    break_tolerance: float,
    edge_cutoff: float,
    threads: int,
    /,
) -> NDArray[np.floating]: ...
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
