"""Attention that falls off with distance: on the sphere, in space, around a circle, along a spectrum, or in time.

logits - slope * distance / length_scale + log(weight): a slope for each head as in ALiBi (Press et al. 2021,
arXiv:2108.12409, which is the distance of token numbers), and a quadrature weight for each key, with which a sum over
grid cells becomes an integral over the sphere (Bonev et al. 2025, arXiv:2505.11157). Splitting a key into two of half
its weight changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from astrozoo.attention.cache import Cache
from astrozoo.attention.distance import distance, log_weights
from astrozoo.attention.geometry import METRICS, Points
from astrozoo.attention.metric_flex import attend_flex, flex_serves
from astrozoo.attention.metric_reference import reference_bias
from astrozoo.attention.module import Attention, AttentionConfig, Parts, implement
from astrozoo.attention.placement import JoinedCache, Placement, PointCache, StaticPointCache, place_points
from astrozoo.attention.reference import Dense, dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.errors import ConfigError, InputError
from astrozoo.nn.checks import fail, one_of
from astrozoo.nn.precision import full_precision
from astrozoo.registry.spec import Paper

__all__ = ["MetricBias", "MetricBiasConfig", "metric_bias"]

SLOPES = ("learned", "geometric")
BIAS = 2**24  # numbers of a bias up to which it is made in one piece; beyond, queries are taken in blocks
BLOCK = 64  # fewest queries of a block


@dataclass(frozen=True, kw_only=True)
class MetricBiasConfig(AttentionConfig):
    """What `metric_bias` takes beside the options of all.

    Attributes:
        metric: The metric that `Points` must have; `index` is the distance of token numbers (positions), without any
            geometry. By default that of the geometry, and `index` where a call gives none.
        slopes: `learned`, one for each head, from the geometric ones on; `geometric`, 2^(-8 h / heads) for head h = 1,
            2, ...; or a number of at least 0 for all heads, or one for each.
        length_scale: Distance at which a head of slope 1 lowers its logits by 1, in the unit of the metric: radians of
            a great circle, natural logarithm of a ratio of wavelengths, that of the coordinates otherwise.
        max_distance: Keys that are farther away are hidden; in the unit of the metric. None for no limit.
        speed: For the metric `time` only: `max_distance` is a length, and keys that are farther away in time than a
            signal of this speed takes for it are hidden.
    """

    metric: str | None = None
    slopes: str | float | tuple[float, ...] = "learned"
    length_scale: float = 1.0
    max_distance: float | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric is not None:
            one_of(self, ("index", *METRICS), "metric")
        for name in ("length_scale", "max_distance", "speed"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise fail(self, name, "a finite number above 0")
        if self.speed is not None and (self.max_distance is None or self.metric not in (None, "time")):
            raise ConfigError(
                f"speed={self.speed} is for the metric 'time' with a max_distance, the length that a signal travels."
            )
        if isinstance(self.slopes, str):
            one_of(self, SLOPES, "slopes")
            return
        slopes = tuple(self.slopes) if isinstance(self.slopes, (list, tuple)) else (self.slopes,) * self.num_heads
        if len(slopes) != self.num_heads or not all(
            isinstance(slope, (int, float)) and 0 <= slope < math.inf for slope in slopes
        ):
            raise fail(self, "slopes", f"learned, geometric, a number of at least 0, or {self.num_heads} such numbers")
        self._set("slopes", slopes)

    @property
    def initial_slopes(self) -> tuple[float, ...]:
        """Slope of each head, before any learning."""
        if isinstance(self.slopes, tuple):
            return self.slopes
        return tuple(2.0 ** (-8 * (head + 1) / self.num_heads) for head in range(self.num_heads))


class MetricBias(Attention):
    """softmax(scale q k' - slope distance / length_scale + log weight) v; without geometry, by token numbers."""

    raw_slopes: Tensor  # before softplus, where they are learned

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`, and the slopes."""
        super().make_projections(config, device=device, dtype=dtype)
        if config.slopes == "learned":
            self.raw_slopes = nn.Parameter(torch.empty(config.num_heads, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`, and the slopes as they are configured."""
        super().reset_parameters()
        if self.config.slopes == "learned":
            slopes = torch.tensor(self.config.initial_slopes, dtype=torch.float64)
            with torch.no_grad():
                self.raw_slopes.copy_(slopes.expm1().log())

    def slopes(self) -> Tensor:
        """Slope of each head (head,), at least in float32."""
        device, dtype = self.query.weight.device, torch.promote_types(self.query.weight.dtype, torch.float32)
        if self.config.slopes == "learned":
            return F.softplus(self.raw_slopes.to(dtype))
        return torch.tensor(self.config.initial_slopes, device=device, dtype=dtype)

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """As `Attention.new_cache`: of keys, values, coordinates and weights, in as far as calls have them."""
        device, dtype = self.placement(device, dtype)
        if max_len is None:
            return PointCache(batch, device=device)
        config = self.config
        return StaticPointCache(
            batch, config.kv_heads, max_len, config.key_dim, config.value_dim, device=device, dtype=dtype
        )

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """As `Attention.place`; the geometry becomes a `Placement` of the queries and of all keys, cached ones too."""
        if terms.geometry is None:
            return super().place(parts, terms, cache, positions)
        here = self._placement(parts[0], parts[1], terms)
        if cache is None:
            return super().place(parts, terms.replace(geometry=here), None, positions)
        joined: Any = JoinedCache(cache, here)
        parts, terms = super().place(parts, terms, joined, positions)
        return parts, terms.replace(geometry=joined.placement)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.attend`, on a kernel that computes distances itself, or with a bias, in blocks if large."""
        here = self._placement(query, key, terms)
        terms = terms.replace(geometry=None)
        if here.weights is not None:
            real = here.weights > 0
            terms = terms.replace(key_mask=real if terms.key_mask is None else real & terms.key_mask)
        if flex_serves(query, key, value, terms, here, self.slopes(), self.config.backend):
            scaled = self.slopes() / self.config.length_scale
            out, self.last_choice = attend_flex(query, key, value, terms, here, scaled, self._reach(here))
            return out
        queries = query.shape[2]
        size = here.query.shape[0] * self.config.num_heads * key.shape[2]  # of the bias of one query
        if torch.compiler.is_compiling() or queries * size <= BIAS:
            return self._attend_block(query, key, value, terms, here)
        terms = terms.replace(positions=terms.resolved_positions(queries, key.shape[2], query.device))
        block = max(BIAS // size, BLOCK)
        outs = []
        for start in range(0, queries, block):
            part = slice(start, start + block)
            given = query[:, :, part], key, value, terms.rows(part), here.rows(part)
            if torch.is_grad_enabled():  # the backward pass makes the bias again, so that none is kept
                outs.append(checkpoint(self._attend_block, *given, use_reentrant=False))
            else:
                outs.append(self._attend_block(*given))
        return torch.cat(outs, dim=2)

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.reference`, with distances by other formulas."""
        return self._dense(query, key, value, terms).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """As `Attention.weights`."""
        dense = self._dense(query, key, value, terms)
        return dense.weights, dense.lse

    def _dense(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Dense:
        here = self._placement(query, key, terms)
        slopes = self.slopes().double() / self.config.length_scale
        bias = reference_bias(here, slopes, self._reach(here), past=terms.causal)
        if terms.bias is not None:
            bias = bias + terms.bias.double()
        return dense_attention(query, key, value, terms.replace(geometry=None, bias=bias))

    def _placement(self, query: Tensor, key: Tensor, terms: Terms) -> Placement:
        given, metric = terms.geometry, self.config.metric
        queries, keys = query.shape[2], key.shape[2]
        if isinstance(given, Placement):
            return given
        if given is None:
            if metric not in (None, "index"):
                raise InputError(f"metric_bias was made for the metric {metric!r}; pass geometry=Points(...) of it.")
            dtype = torch.promote_types(query.dtype, torch.float32)
            own, other = terms.resolved_positions(queries, keys, query.device)
            return Placement(own[..., None].to(dtype), other[..., None].to(dtype), None, "index")
        here = place_points(given, batch=query.shape[0], queries=queries, keys=keys, key_mask=terms.key_mask)
        if metric not in (None, here.metric):
            raise InputError(f"metric_bias was made for the metric {metric!r}; it got Points of {here.metric!r}.")
        return here

    def _reach(self, here: Placement) -> float | None:
        """Distance beyond which keys are hidden."""
        if self.config.speed is None:
            return None if self.config.max_distance is None else float(self.config.max_distance)
        if here.metric != "time":
            raise InputError(f"speed is for the metric 'time'; the points have {here.metric!r}.")
        return float(self.config.max_distance / self.config.speed)

    def _attend_block(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms, here: Placement) -> Tensor:
        with full_precision(query):
            terms = terms.replace(bias=self._bias(query, key, terms, here))
        return self.served(query, key, value, terms)

    def _bias(self, query: Tensor, key: Tensor, terms: Terms, here: Placement) -> Tensor | None:
        """All that is added to the logits (batch | 1, head | 1, query, key); None if that is nothing."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        reach, hidden = self._reach(here), None
        flat = isinstance(self.config.slopes, tuple) and not any(self.config.slopes)
        found = [] if terms.bias is None else [terms.bias.to(dtype)]
        if here.weights is not None:
            found.append(log_weights(here.weights).to(dtype)[:, None, None, :])
        if not flat or reach is not None:
            exact = torch.promote_types(here.key.dtype, dtype)
            between = distance(here.query.to(exact), here.key.to(exact), here.metric, here.period)
            if not flat:
                slopes = (self.slopes() / self.config.length_scale).to(dtype)
                found.append(between.to(dtype)[:, None] * -slopes[:, None, None])
            hidden = None if reach is None else between.detach() > reach
        if terms.causal and here.metric == "time":
            future = here.key[:, None, :, 0] > here.query[:, :, None, 0]
            hidden = future if hidden is None else hidden | future
        if not found and hidden is None:
            return None
        bias = query.new_zeros(1, 1, 1, 1, dtype=dtype)
        for part in found:
            bias = bias + part
        if hidden is not None:
            bias = torch.where(hidden[:, None], -torch.inf, bias)
        return bias.expand(-1, -1, query.shape[2], key.shape[2])


def _fibonacci(tokens: int) -> Points:
    """Points spread evenly over the sphere, with weights that differ."""
    number = torch.arange(tokens, dtype=torch.float64) + 0.5
    lat = torch.rad2deg(torch.asin(1 - 2 * number / max(tokens, 1)))
    lon = (number * 137.50776405003785) % 360 - 180  # golden angle
    weights = 1 + 0.5 * torch.sin(number)
    return Points(torch.stack((lat, lon), dim=1)[None], metric="great_circle", weights=weights[None])


metric_bias = implement(
    MetricBias,
    MetricBiasConfig,
    name="metric_bias",
    summary="logits lowered by a physical distance (sphere, space, spectrum, time), keys weighted by quadrature",
    exactness="exact: dense softmax with the bias; slopes 0 and weights 1 equal flash",
    cost="N^2 d",
    causal=True,
    cross=True,
    masks=("mask", "key_mask", "bias", "segments"),
    grouped_query=True,
    cache="kv",
    paper=Paper(
        authors="Press, Smith, Lewis",
        year=2021,
        title="Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation",
        arxiv="2108.12409",
    ),
    geometry="points",
    aliases={"alibi": {"metric": "index", "slopes": "geometric"}},
    example_geometry=_fibonacci,
)
