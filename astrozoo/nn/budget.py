"""Budgets that hold by construction: global means that fields must have, and quantities that are never negative.

Beucler, Pritchard, Rasp, Ott, Baldi, Gentine (2021), "Enforcing Analytic Constraints in Neural Networks Emulating
Physical Systems", arXiv:1909.00912: a last layer without parameters projects what the network says onto what physics
allows, in training as in use. Their constraints act within a column; these act on the area- and mass-weighted mean of a
variable over the whole grid, and are linear in the same way.

For a variable with physical value `p = mean + std * y` at level `k` and weights `w[k, lat]` (share of the mass of the
level times share of the area of the row; the sum over all cells is 1), `z` being what the network says for `y`:

    conserved             y = z + std[k] (T - <mean + std z>) / <std^2>       so that <mean + std y> = T
    positive              y = e - mean[k] / std[k],  e = softplus(z) > 0      so that p = std[k] e >= 0
    conserved, positive   y = e T / <std e> - mean[k] / std[k]                both

`<.>` is the weighted mean and `T` the mean that is told. The first is the smallest change of the normalised field that
meets `T`; where `std` is the same at all levels, it adds one number to all cells. The third keeps ratios between cells.
The softplus is bent and shifted so that `z = 0` stays the mean and large values stay what they are.

Limits. Means are taken in double precision and hold to the rounding of the result, which is in float32 at least:
half-precision features are converted first, a model kept in half precision rounds afterwards. A positive variable
whose told mean is negative cannot have both: it is zero everywhere, and so is its mean. A told NaN gives NaN. On Apple
GPUs, which have no double precision, means are taken in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from astrozoo.nn.constants import constant, fixed
from astrozoo.nn.latitudes import GLOBE, area_shares
from astrozoo.nn.precision import full_precision

__all__ = ["Budget"]

_RESERVE = 1e-12  # added to positive fields: one that vanishes everywhere takes up a budget evenly, without 0 / 0

Statistics = tuple[tuple[float, ...], ...]


class Budget(nn.Module):
    """The layer: fields as the network says them -> fields with the budgets that physics says.

    Args:
        mean: Normalising mean of each variable, per level: `((287.0, 250.0), (1e-3,))`; one number holds at all levels.
        std: Normalising standard deviation, likewise, above 0.
        conserved: Places of the variables whose mean is told.
        positive: Places of the variables that are never negative.
        level_mass: Relative mass of each level (thickness `dp / g`, any unit); empty for equal ones.
        rows: Rule that places the latitudes, see `astrozoo.nn.latitudes`.
        edges: Southern and northern edge of the grid in degrees north.
    """

    def __init__(
        self,
        mean: Statistics,
        std: Statistics,
        *,
        conserved: Sequence[int] = (),
        positive: Sequence[int] = (),
        level_mass: tuple[float, ...] = (),
        rows: str = "centres",
        edges: tuple[float, float] = GLOBE,
    ) -> None:
        super().__init__()
        variables = range(len(mean))
        self.mean = mean
        self.std = std
        self.conserved = tuple(conserved)
        self.positive = tuple(variable in positive for variable in variables)
        self.rescaled = tuple(variable in conserved and variable in positive for variable in variables)
        self.shifted = tuple(variable in conserved and variable not in positive for variable in variables)
        self.level_mass = level_mass
        self.rows = rows
        self.edges = edges

    def means(self, fields: Tensor, variables: Sequence[int]) -> Tensor:
        """Area- and mass-weighted physical means of normalised fields, in double precision.

        Args:
            fields: `[batch, len(variables), level, lat, lon]`.
            variables: Which of the layer's variables each of them is, and so how it was normalised.

        Returns:
            `[batch, len(variables)]`.
        """
        with full_precision(fields):
            levels = fixed(fields.shape[2])
            mean = self._double(_statistics, tuple(self.mean[variable] for variable in variables), levels, like=fields)
            std = self._double(_statistics, tuple(self.std[variable] for variable in variables), levels, like=fields)
            return (mean + std * self._mean_by_level(fields)) @ self._double(
                _shares, self.level_mass, levels, like=fields
            )

    def forward(self, fields: Tensor, told: Tensor | None = None) -> Tensor:
        """Fields with the budgets told.

        Args:
            fields: `[batch, var, level, lat, lon]`, normalised, anything a network may say.
            told: `[batch, conserved]`, physical means; None where no variable is conserved.

        Returns:
            Like `fields`, in at least float32.
        """
        with full_precision(fields):
            fields = fields.to(torch.promote_types(fields.dtype, torch.float32))
            if any(self.positive):
                table = constant(_bend, self.mean, self.std, self.positive, fixed(fields.shape[2]), like=fields)
                positive, lowest, knee, start = table.unbind(0)  # each [var, level, 1, 1]
                amounts = knee * F.softplus(fields / knee + start) + _RESERVE
                if told is None:
                    return torch.where(positive > 0, amounts + lowest, fields)
                fields = torch.where(positive > 0, amounts, fields)
            if told is None:
                return fields
            # In double precision: where a field hardly varies, the rounding of amounts would add up.
            scale, shift = self._scale_and_shift(fields, told)
            return (fields * scale + shift).to(fields.dtype)

    def _scale_and_shift(self, fields: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """What fields (of positive variables: amounts above the lowest) are multiplied with, and what is added.

        Returns:
            `[batch, var, 1, 1, 1]` and `[batch, var, level, 1, 1]`, in double precision.
        """
        levels = fixed(fields.shape[2])
        mean = self._double(_statistics, self.mean, levels, like=fields)
        std = self._double(_statistics, self.std, levels, like=fields)
        mass = self._double(_shares, self.level_mass, levels, like=fields)
        lowest = self._double(_lowest, self.mean, self.std, self.positive, levels, like=fields)
        rescaled, shifted = self._double(_flags, self.rescaled, self.shifted, like=fields).unbind(0)
        amounts = (std * self._mean_by_level(fields)) @ mass  # [batch, var]
        columns = [
            told[:, self.conserved.index(variable)].to(mass.dtype)
            if variable in self.conserved
            else amounts[:, variable]
            for variable in range(len(self.mean))
        ]
        wanted = torch.stack(columns, 1) - (mean + std * lowest) @ mass
        scale = torch.where(rescaled > 0, wanted.clamp_min(0) / torch.where(rescaled > 0, amounts, 1.0), 1.0)
        missing = torch.where(shifted > 0, wanted - amounts, 0.0)
        shift = missing[..., None] * (std / (std.square() @ mass)[:, None])  # [batch, var, level]
        return scale[..., None, None, None], (shift + lowest)[..., None, None]

    def _mean_by_level(self, fields: Tensor) -> Tensor:
        """`[batch, var, level, lat, lon]` -> area-weighted means `[batch, var, level]`, in double precision."""
        areas = self._double(area_shares, self.rows, fixed(fields.shape[3]), self.edges, like=fields)
        return fields.mean(-1, dtype=areas.dtype) @ areas

    def _double(self, make: Callable[..., NDArray[np.float64]], *arguments: Any, like: Tensor) -> Tensor:
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        return constant(make, *arguments, like=like, dtype=dtype)

    def extra_repr(self) -> str:
        """What is constrained."""
        positive = [variable for variable, flag in enumerate(self.positive) if flag]
        return f"conserved={list(self.conserved)}, positive={positive}, rows={self.rows!r}"


# -- tables, in double precision ---------------------------------------------------------------------------------------


def _statistics(values: Statistics, levels: int) -> NDArray[np.float64]:
    """`[var, level]`."""
    return np.stack([np.broadcast_to(np.asarray(value, np.float64), (levels,)) for value in values])


def _shares(level_mass: tuple[float, ...], levels: int) -> NDArray[np.float64]:
    """`[level]`, the share of the mass that each level holds; the sum is 1."""
    masses = np.asarray(level_mass or (1.0,) * levels, np.float64)
    return np.asarray(masses / masses.sum())


def _flags(*flags: tuple[bool, ...]) -> NDArray[np.float64]:
    """`[which, var]`, 1 where true."""
    return np.asarray(flags, np.float64)


def _lowest(mean: Statistics, std: Statistics, positive: tuple[bool, ...], levels: int) -> NDArray[np.float64]:
    """`[var, level]`: what zero is where normalised, for positive variables; 0 for others.

    Rounded up in float32, so that no value becomes negative as it returns to physical units.
    """
    mean_of, std_of = _statistics(mean, levels), _statistics(std, levels)
    lowest = (-mean_of / std_of).astype(np.float32)
    for _ in range(2):  # rounded to the nearest, it may be one step too low
        below = lowest.astype(np.float64) * std_of + mean_of < 0
        lowest = np.where(below, np.nextafter(lowest, np.float32(np.inf)), lowest)
    return np.where(np.asarray(positive)[:, None], lowest.astype(np.float64), 0.0)


def _bend(mean: Statistics, std: Statistics, positive: tuple[bool, ...], levels: int) -> NDArray[np.float64]:
    """Whether positive, lowest value, width of the bend, shift of the argument: `[4, var, level, 1, 1]`.

    The bend is as wide as the mean lies above zero, within 0.1 to 1 standard deviations.
    """
    mean_of, std_of = _statistics(mean, levels), _statistics(std, levels)
    height = np.where(mean_of > 0, mean_of / std_of, 1.0)
    knee = np.clip(height, 0.1, 1.0)
    start = height / knee + np.log(-np.expm1(-height / knee))  # softplus(start) = height / knee
    flags = np.broadcast_to(np.asarray(positive)[:, None], knee.shape)
    lowest = _lowest(mean, std, positive, levels)
    return np.stack([flags, lowest, np.where(flags, knee, 1.0), np.where(flags, start, 0.0)])[..., None, None]
