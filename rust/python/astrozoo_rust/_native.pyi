"""The extension module: kernels of `astrozoo.accel`, by the names and with the arguments of their references."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

INTERFACE: Final[int]
SOURCES: Final[str]
VERSION: Final[str]

def nan_stats(
    values: NDArray[np.float32] | NDArray[np.float64], threads: int, /
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.floating], NDArray[np.floating]]: ...
def radius_graph(
    positions: NDArray[np.float32] | NDArray[np.float64],
    sizes: NDArray[np.int64],
    radius: float,
    loop_: bool,
    most: int,
    threads: int,
    /,
) -> tuple[NDArray[np.int64], NDArray[np.floating]]: ...
def collate_graphs(
    x: list[NDArray[Any]],
    edges: list[NDArray[np.int64]],
    edge_attr: list[NDArray[Any]] | None,
    positions: list[NDArray[Any]] | None,
    y: list[NDArray[Any]] | None,
    threads: int,
    /,
) -> (
    tuple[
        NDArray[Any],
        NDArray[np.int64],
        NDArray[Any] | None,
        NDArray[Any] | None,
        NDArray[Any] | None,
        NDArray[np.int64],
        NDArray[np.int64],
    ]
    | None
): ...
