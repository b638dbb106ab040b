"""Differential attention: what two softmax maps have in common, such as the weight every map leaks to noise, cancels.

Ye et al. 2024 (arXiv:2410.05258). Each head has two queries and two keys, and its output is (A1 - lambda A2) v, then
divided by its root mean square and times 1 - lambda_init. lambda is learned, one number for all heads:

    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init
    lambda_init = 0.8 - 0.6 exp(-0.3 depth)

Where lambda is 0 (`lambda_init=0` and the four vectors 0) the heads are those of `flash` with the first queries and
keys; the output is theirs but for the norm.

As in the paper, `head_dim` is the width of one of the two queries, by default half of dim / num_heads, and values are
twice as wide, so that there are as many parameters as in `flash`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.attention.cache import KVCache, StaticKVCache
from astrozoo.attention.module import Attention, AttentionConfig, Parts, implement
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.attention.widths import attend_widths
from astrozoo.errors import ConfigError
from astrozoo.nn.checks import at_least, between
from astrozoo.nn.norm import RMSNorm
from astrozoo.nn.precision import full_precision
from astrozoo.registry.spec import Paper

__all__ = ["Differential", "DifferentialConfig", "differential"]


@dataclass(frozen=True, kw_only=True)
class DifferentialConfig(AttentionConfig):
    """Options of differential attention.

    Attributes:
        head_dim: Width of each of the two queries and keys of a head; dim / (2 num_heads) by default.
        v_head_dim: Width of a head of values; by default dim / num_heads where head_dim is not given either, else
            head_dim.
        depth: Number of layers before this one; lambda starts higher in deep layers.
        lambda_init: What lambda starts from; by default 0.8 - 0.6 exp(-0.3 depth).
    """

    depth: int = 0
    lambda_init: float | None = None

    def __post_init__(self) -> None:
        if self.head_dim is None:
            at_least(self, 1, "dim", "num_heads")
            if self.dim % (2 * self.num_heads):
                raise ConfigError(
                    f"dim {self.dim} is not divisible by twice num_heads {self.num_heads}; give head_dim, the width of "
                    "each of the two queries of a head, or another number."
                )
            self._set("head_dim", self.dim // (2 * self.num_heads))
            if self.v_head_dim is None:
                self._set("v_head_dim", self.dim // self.num_heads)
        super().__post_init__()
        at_least(self, 0, "depth")
        if self.lambda_init is not None:
            between(self, 0, 1, "lambda_init")

    @property
    def start(self) -> float:
        """lambda_init, given or by depth."""
        return 0.8 - 0.6 * math.exp(-0.3 * self.depth) if self.lambda_init is None else self.lambda_init


class Differential(Attention):
    """(softmax(q1 k1') - lambda softmax(q2 k2')) v for each head.

    The two maps of head h are heads 2 h and 2 h + 1 of its queries (batch, 2 head, query, head_dim) and of its keys;
    values have one head for both.
    """

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`, with two queries and keys for a head, and what makes lambda."""
        super().make_projections(config, device=device, dtype=dtype)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Linear(config.dim, 2 * config.num_heads * config.key_dim, bias=config.bias, **made)
        self.key = nn.Linear(config.context_dim, 2 * config.kv_heads * config.key_dim, bias=config.bias, **made)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.empty(config.key_dim, **made)) for _ in range(4)
        )
        self.head_norm = RMSNorm(config.value_dim, eps=1e-5, **made)

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; the vectors of lambda are small, so that it starts near `lambda_init`."""
        super().reset_parameters()
        for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            nn.init.normal_(vector, std=0.1)

    def subtracted(self) -> Tensor:
        """lambda, the share of the second map that is subtracted from the first: a scalar in at least float32."""
        inner = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        with full_precision(self.lambda_q1):
            first = (self.lambda_q1.to(inner) * self.lambda_k1.to(inner)).sum().exp()
            second = (self.lambda_q2.to(inner) * self.lambda_k2.to(inner)).sum().exp()
            return first - second + self.config.start

    def project(self, x: Tensor, context: Tensor | None = None) -> Parts:
        """As `Attention.project`, with both maps of a head next to each other."""
        source = x if context is None else context
        config = self.config
        query = self.query_norm(self.split(self.query(x), 2 * config.num_heads))
        key = self.key_norm(self.split(self.key(source), 2 * config.kv_heads))
        return query, key, self.split(self.value(source), config.kv_heads)

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KVCache | StaticKVCache:
        """As `Attention.new_cache`; two keys and one value for a key head."""
        device, dtype = self.placement(device, dtype)
        if max_len is None:
            return KVCache(batch, device=device)
        config = self.config
        return StaticKVCache(
            batch, 2 * config.kv_heads, max_len, config.key_dim, config.value_dim, v_heads=config.kv_heads,
            device=device, dtype=dtype,
        )  # fmt: skip

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """The fast path: (batch, head, query, v_head_dim), before the norm of `merge`."""
        first, second = (
            attend_widths(query[:, which::2], key[:, which::2], value, terms, backend=self.config.backend)
            for which in (0, 1)
        )
        self.last_choice = second.choice
        return first.out - self.subtracted().to(first.out.dtype) * second.out

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """What `attend` must equal: the difference of two dense maps, in float64."""
        weights, _ = self.weights(query, key, value, terms)
        groups = query.shape[1] // key.shape[1]
        return weights @ value.double().repeat_interleave(groups, dim=1)

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """A1 - lambda A2, which may be negative, and the log-sum-exp of the logits of the first map."""
        maps = []
        for which in (0, 1):
            own_query, own_key = (heads.unflatten(1, (-1, 2)).select(2, which) for heads in (query, key))
            maps.append(dense_attention(own_query, own_key, value, terms))
        return maps[0].weights - self.subtracted().double() * maps[1].weights, maps[0].lse

    def merge(self, heads: Tensor) -> Tensor:
        """(batch, query, dim) from the heads (batch, head, query, v_head_dim), each normalised."""
        return super().merge(self.head_norm(heads) * (1 - self.config.start))


differential = implement(
    Differential,
    DifferentialConfig,
    name="differential",
    summary="difference of two softmax maps with learned lambda and per-head norm",
    exactness="exact: dense (A1 - lambda A2) V; lambda 0 equals flash but for the norm of each head",
    cost="2 N^2 d",
    causal=True,
    cross=True,
    masks=("mask", "key_mask", "bias", "segments"),
    grouped_query=True,
    cache="kv",
    paper=Paper(
        authors="Ye, Dong, Xia, Sun, Zhu, Huang, Wei",
        year=2024,
        title="Differential Transformer",
        arxiv="2410.05258",
    ),
)
