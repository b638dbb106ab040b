"""The extension module: kernels of `astrozoo.accel`, by the names and with the arguments of their references."""

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__: list[str]

INTERFACE: Final[int]
SOURCES: Final[str]
VERSION: Final[str]

_Keyword: TypeAlias = bool | int | float | str | None

def nan_stats(
    values: NDArray[np.float32] | NDArray[np.float64], threads: int, /
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.floating], NDArray[np.floating]]: ...
def read_fits_columns(
    source: bytes | str, columns: list[str] | None, hdu: int | str | None, threads: int, /
) -> tuple[dict[str, NDArray[Any]], dict[str, str], dict[str, _Keyword], dict[str, _Keyword]]: ...
def quantiles(
    values: NDArray[np.float32] | NDArray[np.float64], q: NDArray[np.float64], threads: int, /
) -> NDArray[np.float64]: ...
def fill_gaps(
    values: NDArray[np.float32] | NDArray[np.float64], times: NDArray[np.float64], max_gap: float, threads: int, /
) -> NDArray[np.floating]: ...
