"""What kernels do with their arguments before any provider sees them: one set of checks, one layout."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.errors import InputError

__all__ = ["floating"]


def floating(name: str, values: ArrayLike, *, dims: str | None = None) -> np.ndarray:
    """`values` as float32 or float64, in the byte order of the machine; other real numbers become float64.

    float16 becomes float32. Nothing is copied that is right already; the layout in memory stays as it is.

    Args:
        name: Of the argument, for the message.
        values: Real numbers.
        dims: Names of the dimensions, such as `"time lat lon"`, where their number is fixed.

    Raises:
        InputError: Not numbers, complex numbers, or another number of dimensions.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} has dtype {array.dtype}; expected real numbers, best float32 or float64.")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    elif array.dtype.itemsize == 2:
        array = array.astype(np.float32)
    elif array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if dims is not None and array.ndim != len(dims.split()):
        raise InputError(
            f"{name} has shape {array.shape}; expected {len(dims.split())} dimensions: ({', '.join(dims.split())})."
        )
    return array
