"""Distances between points under the metrics of `Points`, exact for close points also in float32.

great_circle  radians along the sphere, from latitude and longitude in degrees
euclidean     length of the difference
periodic      the same around the shorter way of each coordinate
wavelength    absolute difference of logarithms
time          absolute difference; `index`, the number of a token, is measured alike

What belongs to one point is computed once (`point_features`), what belongs to a pair after it (`separation`), on
tensors of any shape that broadcast: a table of all pairs, or single pairs within a kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["distance", "log_weights", "point_features", "separation"]

Features = tuple[Tensor, ...]


def distance(query: Tensor, key: Tensor, metric: str, period: tuple[float, ...] = ()) -> Tensor:
    """Distances (batch | 1, query, key), at least in float32; differentiable, with gradient 0 where points coincide.

    Args:
        query: (batch | 1, query, coordinate).
        key: (batch | 1, key, coordinate).
        metric: One of `METRICS` or `index`.
        period: Of each coordinate, under `periodic`.
    """
    own = tuple(feature[:, :, None] for feature in point_features(query, metric))
    other = tuple(feature[:, None, :] for feature in point_features(key, metric))
    return separation(own, other, metric, period)


def point_features(coords: Tensor, metric: str) -> Features:
    """What `separation` needs of each point: tensors of shape (...) from coordinates (..., coordinate)."""
    coords = coords.to(torch.promote_types(coords.dtype, torch.float32))
    if metric != "great_circle":
        return coords.unbind(dim=-1)
    lat, lon = coords.unbind(dim=-1)
    # The cosine from the distance to the pole: near a pole that of the latitude itself would keep few digits.
    return lat, lon, torch.deg2rad(lat).sin(), torch.deg2rad(90 - lat.abs()).sin()


def separation(query: Features, key: Features, metric: str, period: tuple[float, ...] = ()) -> Tensor:
    """Distance of points from their features, of any shapes that broadcast."""
    if metric == "great_circle":
        return _great_circle(query, key)
    if metric == "wavelength":
        return torch.log1p((query[0] - key[0]) / key[0]).abs()  # a difference of logarithms would lose close lines
    if metric in ("time", "index"):
        return (query[0] - key[0]).abs()
    squared = None
    for axis, (own, other) in enumerate(zip(query, key, strict=True)):
        step = own - other
        if metric == "periodic":
            step = step - period[axis] * torch.round(step / period[axis])
        squared = step * step if squared is None else squared + step * step
    assert squared is not None
    return _root(squared)


def log_weights(weights: Tensor) -> Tensor:
    """Logarithm of the weights of keys, at least in float32; 0 for those not above 0, which are to be hidden."""
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    return torch.where(weights > 0, weights, 1).log()


def _great_circle(query: Features, key: Features) -> Tensor:
    """Angle between two points by its tangent, from differences of the coordinates, so that no digits cancel."""
    lat, lon, sine, cosine = query
    other_lat, other_lon, _, other_cosine = key
    degrees = other_lon - lon
    half = (degrees - 360 * torch.round(degrees / 360)) * (math.pi / 360)
    rise = (other_lat - lat) * (math.pi / 180)
    turn = half.sin()
    east = 2 * other_cosine * turn * half.cos()
    north = rise.sin() + 2 * sine * other_cosine * turn * turn
    along = rise.cos() - 2 * cosine * other_cosine * turn * turn
    return torch.atan2(_root(east * east + north * north), along)


def _root(squared: Tensor) -> Tensor:
    """Square root with gradient 0 at 0, where that of the root is infinite."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)
