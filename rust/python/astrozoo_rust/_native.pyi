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
def random_walk_pe(
    edges: NDArray[np.int64],
    sizes: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    steps: int,
    single: bool,
    threads: int,
    /,
) -> NDArray[np.floating]: ...
def laplacian_pe(
    edges: NDArray[np.int64], sizes: NDArray[np.int64], count: int, single: bool, threads: int, /
) -> tuple[NDArray[np.floating], NDArray[np.floating]]: ...
