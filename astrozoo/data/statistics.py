"""Normalisation statistics in one pass, chunk by chunk, over the training part only.

Means and variances are kept per grid point in float64 and merged as Chan, Golub and LeVeque (1979) do, so that a long
record loses no digits; statistics per variable follow from those by area, counting only known values.
"""

from __future__ import annotations

import numpy as np
import torch

from astrozoo.accel import nan_stats
from astrozoo.data.schema import Normalisation
from astrozoo.errors import DataError
from astrozoo.objectives.area import area_weights

__all__ = ["RunningMoments"]

_ROUNDING = 1e-12  # of a value: deviations below this are those of its own float64 arithmetic
_ABSURD = 1e15  # no quantity of a planet's climate; declared fill values are NaN by the time we see them


class RunningMoments:
    """Count, mean and variance of fields `[level, lat, lon]` along time, NaN aware.

    Attributes:
        count, mean, m2: `[level, lat, lon]`, float64: known values, their mean, sum of squared deviations.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = self.mean = self.m2 = np.zeros(0)

    def update(self, values: np.ndarray) -> None:
        """Add `values[time, level, lat, lon]`.

        Raises:
            DataError: A value is infinite, or so large that it must be an undeclared fill value.
        """
        found = nan_stats(values, axis=0)
        extreme = max(np.nanmax(found.max, initial=0.0), -np.nanmin(found.min, initial=0.0))
        if extreme > _ABSURD:
            raise DataError(
                f"variable {self.name!r} reaches {extreme:g}, which looks like a fill value its file does not declare; "
                "replace it with NaN (fields.where(...)), or set _FillValue in the file."
            )
        count = found.count.astype(np.float64)
        mean, std = (np.where(count > 0, part, 0.0) for part in (found.mean, found.std))
        m2 = np.square(std) * count
        if not self.count.size:
            self.count, self.mean, self.m2 = count, mean, m2
            return
        total = self.count + count
        delta = mean - self.mean
        share = count / np.maximum(total, 1.0)
        self.mean = self.mean + delta * share
        self.m2 = self.m2 + m2 + np.square(delta) * self.count * share
        self.count = total

    def climatology(self) -> np.ndarray:
        """`[level, lat, lon]`: the mean of each grid point, NaN where nothing is known."""
        return np.where(self.count > 0, self.mean, np.nan)

    def normalisation(self, mode: str, lat: np.ndarray) -> Normalisation:
        """Statistics per variable and level (`variable`), per grid point (`gridpoint`), or the identity (`none`).

        A grid point that hardly varies (or is never known) takes the standard deviation of its level, so that noise is
        not blown up to unit variance; a constant variable has standard deviation 1.
        """
        levels = self.count.shape[0]
        if mode == "none":
            return Normalisation(np.zeros((levels, 1, 1)), np.ones((levels, 1, 1)))
        weight = self.count * area_weights(torch.from_numpy(lat)).numpy()[:, None]
        total = weight.sum(axis=(1, 2), keepdims=True)
        if not np.all(total > 0):
            raise DataError(f"variable {self.name!r} has no known value in the training part.")
        mean = (weight * self.mean).sum(axis=(1, 2), keepdims=True) / total
        within = self.m2 / np.maximum(self.count, 1.0)
        variance = (weight * (within + np.square(self.mean - mean))).sum(axis=(1, 2), keepdims=True) / total
        std = np.sqrt(variance)
        rounding = _ROUNDING * np.where(self.count > 0, np.abs(self.mean), 0.0).max(axis=(1, 2), keepdims=True)
        if mode == "variable":
            return Normalisation(mean, np.where(std > rounding, std, 1.0))
        typical = np.sqrt((weight * within).sum(axis=(1, 2), keepdims=True) / total)
        typical = np.where(typical > rounding, typical, 1.0)
        local = np.sqrt(within)
        # Rounded here, once, to what the schema stores: training and prediction then use the same numbers.
        return Normalisation(
            np.where(self.count > 0, self.mean, mean).astype(np.float32).astype(np.float64),
            np.where(local > 1e-2 * typical, local, typical).astype(np.float32).astype(np.float64),
        )
