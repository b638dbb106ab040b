"""The extension module: kernels of `astrozoo.accel`, by the names and with the arguments of their references."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__: list[str]

INTERFACE: Final[int]
SOURCES: Final[str]
VERSION: Final[str]

def nan_stats(
    values: NDArray[np.float32] | NDArray[np.float64], threads: int, /
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.floating], NDArray[np.floating]]: ...
