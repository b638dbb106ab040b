"""The bias of `metric_bias` as its definition says, in float64, by other formulas than the fast path."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from astrozoo.attention.placement import Placement

__all__ = ["reference_bias"]


def reference_bias(here: Placement, slopes: Tensor, reach: float | None, *, past: bool) -> Tensor:
    """log(weight) - slope * distance (batch | 1, head, query, key), float64; -inf where a key is hidden.

    Args:
        here: Points of queries and keys.
        slopes: (head,), by which a unit of distance lowers a logit.
        reach: Distance beyond which keys are hidden, or None.
        past: Whether keys at later times are hidden, under the metric `time`.
    """
    query, key = here.query.double(), here.key.double()
    between = _METRICS[here.metric](query, key, here.period)
    bias = -slopes.double().view(-1, 1, 1) * between[:, None]
    if here.weights is not None:
        weights = here.weights.double()
        bias = bias + weights.masked_fill(weights <= 0, 1).log().masked_fill(weights <= 0, -torch.inf)[:, None, None]
    if reach is not None:
        bias = bias.masked_fill((between > reach)[:, None], -torch.inf)
    if past and here.metric == "time":
        bias = bias.masked_fill(key[:, None, None, :, 0] > query[:, None, :, None, 0], -torch.inf)
    return bias


def _pairs(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    left, right = torch.broadcast_tensors(query[:, :, None], key[:, None])
    return left, right


def _angle(query: Tensor, key: Tensor, period: tuple[float, ...]) -> Tensor:  # noqa: ARG001
    """Of unit vectors, by cross and dot product."""

    def vectors(coords: Tensor) -> Tensor:
        lat, lon = torch.deg2rad(coords).unbind(dim=-1)
        return torch.stack((lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()), dim=-1)

    left, right = _pairs(vectors(query), vectors(key))
    return torch.atan2(torch.linalg.cross(left, right).norm(dim=-1), (left * right).sum(dim=-1))


def _length(query: Tensor, key: Tensor, period: tuple[float, ...]) -> Tensor:  # noqa: ARG001
    return torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")


def _around(query: Tensor, key: Tensor, period: tuple[float, ...]) -> Tensor:
    """Each coordinate as an angle on a circle of that circumference."""
    left, right = _pairs(query, key)
    circumference = torch.tensor(period, dtype=torch.float64, device=query.device)
    angle = (left - right) * 2 * math.pi / circumference
    return (torch.atan2(angle.sin(), angle.cos()) * circumference / (2 * math.pi)).norm(dim=-1)


def _ratio(query: Tensor, key: Tensor, period: tuple[float, ...]) -> Tensor:
    return _length(query.log(), key.log(), period)


_METRICS = {
    "great_circle": _angle,
    "euclidean": _length,
    "periodic": _around,
    "wavelength": _ratio,
    "time": _length,
    "index": _length,
}
