"""What kernels do with their arguments before any provider sees them: one set of checks, one layout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.errors import InputError

__all__ = ["floating", "numbers", "runs", "whole"]


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


def numbers(name: str, values: Any, dims: str) -> np.ndarray:
    """`values` as C-contiguous float32, float64 or int64: whole numbers and truth values stay whole.

    Args:
        name: Of the argument, for the message.
        values: Real numbers.
        dims: Names of the dimensions, such as `"node feature"`.

    Raises:
        InputError: Not real numbers, or another number of dimensions.
    """
    array = np.asarray(values)
    array = array.astype(np.int64, copy=False) if array.dtype.kind in "iub" else floating(name, array)
    if array.ndim != len(dims.split()):
        raise InputError(f"{name} has shape {array.shape}; expected ({', '.join(dims.split())}).")
    return np.ascontiguousarray(array)


def whole(name: str, values: ArrayLike, dim: str) -> np.ndarray:
    """`values` as contiguous int64 of one dimension; an empty list counts as whole numbers.

    Args:
        name: Of the argument, for the message.
        values: Whole numbers.
        dim: Name of the dimension.

    Raises:
        InputError: Other numbers, or another number of dimensions.
    """
    array = np.asarray(values)
    if (array.size and array.dtype.kind not in "iu") or array.ndim != 1:
        raise InputError(f"{name} is {array.dtype} {array.shape}; expected whole numbers ({dim},).")
    return np.ascontiguousarray(array, dtype=np.int64)


def runs(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers `first[i], first[i] + 1, ...`, `counts[i]` of them, one run behind the other."""
    behind = np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(first - behind + counts, counts)
