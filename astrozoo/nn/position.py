"""Where the tokens of a latitude-longitude grid lie, for grids of any size and patches that do not divide them.

Latitude and level are absolute: the poles are unlike the equator, the ground unlike the stratosphere. Longitude is
relative wherever the attention can take it so: it turns queries and keys by harmonics of the angle (Su et al. 2021,
arXiv:2104.09864, with whole numbers as frequencies), so that logits depend on differences of longitude only, the circle
has no seam, and turning the globe turns the output. To other attentions the harmonics are added as numbers.
A region's own coordinates, from edge to edge, take the place of the globe's; both of its coordinates are absolute too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.nn.precision import full_precision
from astrozoo.registry.spec import AttentionSpec

__all__ = ["LONGITUDE_ROTARY", "GridPosition", "turns_longitude"]

# Option `rope` of an attention that turns by longitude; the other half of a head compares contents only.
LONGITUDE_ROTARY: Mapping[str, Any] = {"spacing": "harmonic", "fraction": 0.5}


def turns_longitude(spec: AttentionSpec) -> bool:
    """Whether an attention with `LONGITUDE_ROTARY` sees differences of longitude only.

    It has logits to turn, and its keys are all tokens, or a neighbourhood on a grid that wraps around: not windows or
    samples of the sequence, which begins at one meridian.
    """
    everywhere = spec.geometry in (None, "points") and spec.cost_exponent >= 2
    return spec.softmax and spec.exact and not spec.causal_only and (everywhere or spec.geometry == "grid")


class GridPosition(nn.Module):
    """Adds to each token a learned linear map of sines and cosines of its latitude and level.

    Sizes are given twice, in tokens and in the cells they cover: 33 rows in patches of 4 are 9 tokens, the last of one
    row. The tokens of a single level are those of its middle.

    Args:
        dim: Width of the tokens.
        patch: Cells of a token (level, lat, lon).
        longitude: `periodic` for a full circle, `regional` where there is a western and an eastern edge.
        relative: Whether the attention turns by longitude (`turns_longitude`), so that a circle's is not added.
        harmonics: Sines and cosines of latitude, and of longitude where it is added; a quarter of them of level.
    """

    def __init__(
        self, dim: int, patch: tuple[int, int, int] = (1, 1, 1), *, longitude: str, relative: bool, harmonics: int = 16
    ) -> None:
        super().__init__()
        self.patch = patch
        self.periodic = longitude == "periodic"
        self.relative = relative
        self.harmonics = harmonics
        self.level = nn.Linear(max(harmonics // 4, 1), dim, bias=False)
        self.lat = nn.Linear(2 * harmonics, dim)
        self.lon = None if relative and self.periodic else nn.Linear(2 * harmonics, dim, bias=False)

    def reset_parameters(self) -> None:
        """An encoding of about a third of a token's size, the same from row to row but for what differs."""
        for layer in (self.level, self.lat, self.lon):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.5 * (2 * layer.in_features) ** -0.5)
        nn.init.zeros_(self.lat.bias)

    def coordinates(self, cells: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the centres of the tokens that cover `cells` (level, lat, lon), as fractions of the extent of each axis.

        Returns:
            `[level]`, `[lat]` and `[lon]` tokens, from 0 to 1, in at least float32.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        fractions = []
        for axis, (size, patch) in enumerate(zip(cells, self.patch, strict=True)):
            west = torch.arange(-(-size // patch), device=like.device, dtype=dtype) * patch
            # A last patch that sticks out covers fewer cells, except where it goes on around the circle.
            east = west + patch if axis == 2 and self.periodic else (west + patch).clamp(max=size)
            fractions.append((west + east) / (2 * size))
        level, lat, lon = fractions
        return level, lat, lon

    def encoding(self, cells: Sequence[int], like: Tensor) -> Tensor:
        """What is added to the tokens that cover `cells`: `[level, lat, lon, dim]`, or 1 for lon if all are the same.

        Args:
            cells: Sizes (level, lat, lon) of the fields.
            like: Features, for their device and dtype.
        """
        with full_precision(like):
            level, lat, lon = self.coordinates(cells, like)
            order = torch.arange(1, self.harmonics + 1, device=like.device, dtype=level.dtype)
            levels = torch.cos(math.pi * level[:, None] * order[: self.level.in_features])
            lats = _waves(math.pi * lat, order)
            lons = _waves((2 * math.pi if self.periodic else math.pi) * lon, order)
            weights = [layer.weight.to(level.dtype) for layer in (self.level, self.lat) if layer is not None]
            encoded = (levels @ weights[0].T)[:, None, None] + (lats @ weights[1].T + self.lat.bias)[:, None]
            if self.lon is not None:
                encoded = encoded + lons @ self.lon.weight.to(level.dtype).T
        return encoded.to(like.dtype)

    def angles(self, cells: Sequence[int], like: Tensor) -> Tensor | None:
        """Longitudes `[1, token, 1]` in radians, the `positions` of an attention that turns by them; or None.

        A circle turns once around; a region half, so that its edges are farthest apart.
        """
        if not self.relative:
            return None
        level, lat, lon = self.coordinates(cells, like)
        angle = (2 * math.pi if self.periodic else math.pi) * lon
        return angle.expand(len(level), len(lat), -1).reshape(1, -1, 1)

    def sizes(self, cells: Sequence[int]) -> tuple[int, int, int]:
        """Numbers of tokens (level, lat, lon) that cover `cells`."""
        level, lat, lon = (-(-size // patch) for size, patch in zip(cells, self.patch, strict=True))
        return level, lat, lon

    def points(self, cells: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens as points, for attentions with distances; levels of a column are at one point.

        Returns:
            `[1, token, 2]`: of a circle latitude and longitude in degrees; of a region places in the plane, its longer
            side of length 1. And `[1, token]`, relative areas of the patches on the sphere, or None for a region.
        """
        level, lat, lon = self.coordinates(cells, like)
        sizes = len(level), len(lat), len(lon)
        if self.periodic:
            rows, columns = 180 * lat - 90, 360 * lon
        else:
            rows, columns = (
                places * (size / max(cells[1:])) for places, size in zip((lat, lon), cells[1:], strict=True)
            )
        coords = torch.stack([rows[:, None].expand(sizes), columns.expand(sizes)], -1).reshape(1, -1, 2)
        area = torch.cos(math.pi * (lat - 0.5))
        return coords, area[:, None].expand(sizes).reshape(1, -1) if self.periodic else None

    def forward(self, tokens: Tensor, cells: Sequence[int]) -> Tensor:
        """`tokens[batch, level, lat, lon, dim]` that cover `cells` (level, lat, lon) -> like `tokens`."""
        return tokens + self.encoding(cells, tokens)


def _waves(angle: Tensor, order: Tensor) -> Tensor:
    """`angle[place]`, radians, `order[harmonic]` -> `[place, 2 * harmonic]`."""
    turned = angle[:, None] * order
    return torch.cat([turned.cos(), turned.sin()], -1)
