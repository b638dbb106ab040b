"""One-dimensional grids that kernels work on."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from astrozoo.accel.arrays import floating
from astrozoo.errors import InputError

__all__ = ["increasing"]


def increasing(name: str, values: ArrayLike, *, least: int = 0) -> np.ndarray:
    """`values` as contiguous float64.

    Args:
        name: Of the argument, for the message.
        values: One dimension, finite, strictly increasing.
        least: How many values there must be.

    Raises:
        InputError: They are not.
    """
    grid = np.ascontiguousarray(floating(name, values, dims=name), dtype=np.float64)
    if len(grid) < least:
        raise InputError(f"{name} has {len(grid)} values; expected at least {least}.")
    if not np.isfinite(grid).all():
        raise InputError(f"{name} has {grid[~np.isfinite(grid)][0]}; expected finite values.")
    steps = np.diff(grid)
    if (steps <= 0).any():
        at = int(np.argmax(steps <= 0))
        raise InputError(f"{name} goes from {grid[at]} to {grid[at + 1]} at {at + 1}; expected increasing values.")
    return grid
