"""Area weights of a latitude-longitude grid."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["area_weights"]


def area_weights(lat: Tensor) -> Tensor:
    """Relative cell areas of the rows of a latitude-longitude grid, mean 1.

    A row's weight is `sin(upper edge) - sin(lower edge)` with edges halfway between neighbouring latitudes and clipped
    at the poles: the area of the cells of a regular grid, and, unlike `cos(lat)`, never zero for a row on a pole.

    Args:
        lat: `[lat]`, degrees north, ascending or descending, of any regular or irregular spacing.

    Returns:
        `[lat]` in the dtype of `lat`, non-negative, mean 1. A single row has weight 1.
    """
    if lat.numel() < 2:
        return torch.ones_like(lat)
    middle = (lat[1:] + lat[:-1]) / 2
    first = lat[:1] - (middle[:1] - lat[:1])
    last = lat[-1:] + (lat[-1:] - middle[-1:])
    edges = torch.cat([first, middle, last]).clamp(-90.0, 90.0)
    area = torch.diff(torch.sin(torch.deg2rad(edges))).abs()
    return area / area.mean()
