"""Where the queries and keys of a call lie, and caches that remember it for the keys of earlier calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from astrozoo.attention.cache import Cache, CachedTokens, KVCache, StaticKVCache, TokenCache
from astrozoo.attention.geometry import Points
from astrozoo.errors import InputError

__all__ = ["JoinedCache", "Placement", "PointCache", "StaticPointCache", "place_points"]


class Placement(NamedTuple):
    """Points of the queries and keys of one call.

    Attributes:
        query: float (batch | 1, query, coordinate).
        key: float (batch | 1, key, coordinate).
        weights: float (batch | 1, key), quadrature weights; None for equal ones.
        metric: One of `METRICS` or `index`.
        period: Of each coordinate, under the metric `periodic`.
    """

    query: Tensor
    key: Tensor
    weights: Tensor | None
    metric: str
    period: tuple[float, ...] = ()

    def rows(self, part: slice) -> Placement:
        """That of some of the queries."""
        return self._replace(query=self.query[:, part])

    def without_padding(self, key_mask: Tensor | None, *, same: bool = False) -> Placement:
        """The same with coordinates that are numbers where a key is padding, also of queries if they are the `same`."""
        if key_mask is None or key_mask.shape[0] not in (1, self.key.shape[0]):
            return self  # points that all rows share are real in some row
        real = key_mask[..., None]
        query = torch.where(real | self.query.isfinite(), self.query, 1) if same else self.query
        return self._replace(query=query, key=torch.where(real, self.key, 1))


def place_points(geometry: Any, *, batch: int, queries: int, keys: int, key_mask: Tensor | None) -> Placement:
    """The placement of `Points`, or of a pair of those of queries and of keys.

    Raises:
        InputError: There are more or fewer points than tokens, or the two are of another kind.
    """
    own, other = geometry if isinstance(geometry, tuple) else (geometry, geometry)
    _check_count(own, "queries", batch, queries)
    _check_count(other, "keys", batch, keys)
    if own.metric != other.metric or own.period != other.period or own.coords.shape[2] != other.coords.shape[2]:
        raise InputError(
            f"Points of queries have metric {own.metric!r} with {own.coords.shape[2]} coordinates and period "
            f"{own.period}, those of keys {other.metric!r}, {other.coords.shape[2]} and {other.period}; expected equal."
        )
    found = Placement(own.coords, other.coords, other.weights, own.metric, tuple(own.period))
    return found.without_padding(key_mask, same=own is other)


def _check_count(points: Points, name: str, batch: int, count: int) -> None:
    for what, tensor in (("coords", points.coords), ("weights", points.weights)):
        if tensor is not None and (tensor.shape[1] != count or tensor.shape[0] not in (1, batch)):
            raise InputError(
                f"Points.{what} of the {name} has shape {tuple(tensor.shape)}; expected (batch={batch} | 1, "
                f"token={count}, ...). For a context give a pair, Points of the queries and Points of the keys."
            )


class PointCache(KVCache):
    """Keys and values as `KVCache`, and coordinates (batch, token, axis) and weights (batch, token, 1) of the keys."""

    def __init__(self, batch: int, *, device: torch.device | str | None = None) -> None:
        TokenCache.__init__(self, batch, ("key", "value", "coords", "weights"), device=device)


class StaticPointCache(StaticKVCache):
    """As `StaticKVCache`, and coordinates and weights of the keys, whose memory is made with the first of them."""

    _points: tuple[Tensor, ...] = ()

    def append(self, *new: Tensor, key_mask: Tensor | None = None, positions: Tensor | None = None) -> CachedTokens:
        """As `StaticKVCache.append`, for key, value and any further tensors (batch, token, feature)."""
        slots = self.next_positions(new[0].shape[2], key_mask)
        if key_mask is not None:
            slots = torch.where(key_mask, slots, self.max_len)
        held = super().append(*new[:2], key_mask=key_mask, positions=positions)
        rows = slots.shape[0]
        before = self._points or tuple(tensor.new_zeros(rows, self.max_len + 1, tensor.shape[2]) for tensor in new[2:])
        self._points = tuple(
            old.scatter(1, slots[..., None].expand(tensor.shape), tensor.to(old.dtype))
            for old, tensor in zip(before, new[2:], strict=True)
        )
        return held._replace(tensors=(*held.tensors, *(tensor[:, :-1] for tensor in self._points)))

    def tensors(self) -> Mapping[str, Tensor]:
        """As `Cache.tensors`."""
        return {**super().tensors(), **dict(zip(("coords", "weights"), self._points, strict=False))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Cache.load_state_dict`."""
        super().load_state_dict(state)
        self._points = tuple(state[name] for name in ("coords", "weights") if name in state)

    def reset(self) -> None:
        """As `Cache.reset`."""
        super().reset()
        self._points = ()

    def reorder(self, rows: Tensor) -> None:
        """As `Cache.reorder`."""
        super().reorder(rows)
        self._points = tuple(tensor[rows] for tensor in self._points)


class JoinedCache:
    """A cache as `Attention.place` sees it, which takes the points of new tokens along with their keys and values.

    Args:
        cache: A `PointCache` or `StaticPointCache`.
        placement: Of the new tokens.

    Attributes:
        placement: After `append`, that of the new queries and of all keys.
    """

    def __init__(self, cache: Cache, placement: Placement) -> None:
        self.cache, self.placement = cache, placement

    @property
    def positions(self) -> Tensor:
        """As those of the cache."""
        return self.cache.positions  # type: ignore[attr-defined]

    def next_positions(self, count: int, key_mask: Tensor | None) -> Tensor:
        """As `Cache.next_positions`."""
        return self.cache.next_positions(count, key_mask)

    def append(self, *new: Tensor, key_mask: Tensor | None = None, positions: Tensor | None = None) -> CachedTokens:
        """As `TokenCache.append`."""
        here = self.placement
        coords = here.key.expand(new[0].shape[0], -1, -1)
        weights = torch.ones_like(coords[..., :1])
        if here.weights is not None:
            weights = here.weights[..., None].to(coords.dtype).expand(weights.shape)
        held = self.cache.append(*new, coords, weights, key_mask=key_mask, positions=positions)  # type: ignore[attr-defined]
        coords, weights = held.tensors[2:]
        self.placement = here._replace(key=coords, weights=weights[..., 0]).without_padding(held.key_mask)
        return CachedTokens(held.tensors[:2], held.key_mask, held.positions)
