"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): queries and keys turn with their position.

The logits then depend on differences of positions only. Positions may be any real numbers, and have several axes
(level, latitude, longitude): each axis turns its own share of the pairs. On a circle, harmonics of the angle turn them:
a full turn then changes nothing, and neither does turning all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.errors import ConfigError, InputError
from astrozoo.nn.precision import full_precision

__all__ = ["Rotary", "as_rotary"]

SPACINGS = ("geometric", "harmonic")


@dataclass(frozen=True)
class Rotary:
    """How positions turn a head.

    Attributes:
        base: Wavelengths grow geometrically from 2 pi to 2 pi times `base` positions.
        spacing: `geometric`, or `harmonic`: pair k = 1, 2, ... turns by k times its position, in radians.
        fraction: Share of the head that turns; the rest carries no position.
        axes: Number of position axes.
    """

    base: float = 10000.0
    fraction: float = 1.0
    axes: int = 1
    spacing: str = "geometric"

    def __post_init__(self) -> None:
        if not self.base > 1 or not 0 < self.fraction <= 1 or self.axes < 1:
            raise ConfigError(f"{self} cannot be: base is above 1, fraction in (0, 1], axes at least 1.")
        if self.spacing not in SPACINGS:
            raise ConfigError(f"Rotary.spacing is {self.spacing!r}; allowed: {', '.join(map(repr, SPACINGS))}.")

    def pairs(self, head_dim: int) -> int:
        """Pairs of features that turn, per axis.

        Raises:
            ConfigError: The head is too narrow to turn one pair for each axis.
        """
        pairs = int(head_dim * self.fraction) // (2 * self.axes)
        if pairs < 1:
            raise ConfigError(f"head_dim {head_dim} is too narrow for rotary positions with {self.axes} axes.")
        return pairs

    def turn(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Turn `heads` by their positions; angles are computed in at least float32.

        Args:
            heads: (batch, head, token, dim).
            positions: (batch | 1, token), or (batch | 1, token, axis).

        Raises:
            InputError: The positions have another number of axes.
        """
        if positions.dim() == 2:
            positions = positions[..., None]
        if positions.shape[-1] != self.axes:
            raise InputError(f"positions have {positions.shape[-1]} axes; rotary positions were made for {self.axes}.")
        pairs = self.pairs(heads.shape[-1])
        inner = torch.promote_types(heads.dtype, torch.float32)
        with full_precision(heads):
            steps = torch.arange(pairs, device=heads.device, dtype=inner)
            rates = 1 + steps if self.spacing == "harmonic" else self.base ** -(steps / pairs)
            angles = positions.to(inner)[..., None] * rates  # (batch, token, axis, pair)
            angles = angles.flatten(-2)[:, None]  # (batch, 1, token, axis * pair)
            cos, sin = angles.cos(), angles.sin()
            turning = 2 * pairs * self.axes
            first, second = heads[..., : turning // 2].to(inner), heads[..., turning // 2 : turning].to(inner)
            turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)
        return turned if turning == heads.shape[-1] else torch.cat((turned, heads[..., turning:]), dim=-1)


def as_rotary(rope: Any) -> Rotary | None:
    """The `rope` argument of an attention: None or False, True for the defaults, a base, a mapping, or a `Rotary`."""
    if rope is None or rope is False:
        return None
    if rope is True:
        return Rotary()
    if isinstance(rope, Rotary):
        return rope
    if isinstance(rope, (int, float)):
        return Rotary(base=float(rope))
    if isinstance(rope, Mapping) and set(rope) <= {"base", "fraction", "axes", "spacing"}:
        return Rotary(**rope)
    raise ConfigError(
        f"rope is {rope!r}; expected None, True, a base, or a mapping with base, fraction, axes, spacing."
    )
