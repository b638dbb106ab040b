"""Multi-head latent attention: keys and values of all heads are read from one narrow latent, all that a cache holds.

DeepSeek-AI 2024 (arXiv:2405.04434, section 2.1). A token becomes a latent of `rank` features, normalised; each head
projects keys and values up from it. Rotary positions do not commute with that projection, so they get a key of their
own, shared by the heads, and queries to match (the decoupled rotary key); `rope` switches it on.

The projections up can be applied to the latents (expanded: attention of the usual widths) or, since they are linear, to
queries and outputs (absorbed: every head reads the latents themselves, as one key head). Both give the same.

The scale is (head_dim + rope_dim) ** -0.5 by default. There is no `qk_norm`: normalised keys would not be linear in the
latent; `latent_norm` takes its place. As in the authors' code, `bias` adds to the projections down, to full queries and
to the output, never to the projections up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.attention.backends.base import scale_of
from astrozoo.attention.cache import LatentCache, StaticKVCache
from astrozoo.attention.module import Attention, AttentionConfig, Parts, implement
from astrozoo.attention.reference import Dense, dense_attention
from astrozoo.attention.terms import Terms
from astrozoo.attention.widths import attend_widths
from astrozoo.errors import ConfigError
from astrozoo.nn.checks import at_least, fail, one_of
from astrozoo.nn.norm import RMSNorm
from astrozoo.registry.spec import Paper

__all__ = ["Latent", "LatentConfig", "latent"]


@dataclass(frozen=True, kw_only=True)
class LatentConfig(AttentionConfig):
    """Options of latent attention.

    Attributes:
        rank: Width of the latent of keys and values; by default 4 head_dim, as in DeepSeek-V2, but at most half the
            width of all heads.
        query_rank: Width of a latent of queries, normalised too; None projects queries from the tokens directly.
        rope_dim: Width of the decoupled rotary key; half of head_dim by default where `rope` is given, else 0.
        latent_norm: Whether latents are normalised by their root mean square.
        form: `expanded`, `absorbed`, or `auto`: whichever takes fewer operations, which is the absorbed one for a few
            queries on many keys, as in decoding.
    """

    rank: int | None = None
    query_rank: int | None = None
    rope_dim: int | None = None
    latent_norm: bool = True
    form: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, ("auto", "expanded", "absorbed"), "form")
        if self.qk_norm:
            raise fail(self, "qk_norm", "False; keys are linear in the latent, which latent_norm normalises")
        if self.rank is None:
            self._set("rank", max(1, min(4 * self.key_dim, self.num_heads * self.key_dim // 2)))
        at_least(self, 1, "rank")
        if self.query_rank is not None:
            at_least(self, 1, "query_rank")
        if self.rope is None:
            if self.rope_dim:
                raise ConfigError(f"rope_dim is {self.rope_dim} without rope; give rope, such as rope=True, too.")
            self._set("rope_dim", 0)
        else:
            step = 2 * self.rope.axes
            if self.rope_dim is None:
                self._set("rope_dim", max(step, self.key_dim // 2 // step * step))
            at_least(self, 1, "rope_dim")
            self.rope.pairs(self.rope_dim)

    @property
    def latent_dim(self) -> int:
        """`rank`, which is never None once the configuration exists."""
        assert self.rank is not None
        return self.rank

    @property
    def turned_dim(self) -> int:
        """`rope_dim`, which is never None once the configuration exists."""
        assert self.rope_dim is not None
        return self.rope_dim


class Latent(Attention):
    """softmax(scale (q k' + r s') + bias) v, with k and v of each head projected up from one latent of the token.

    Its parts are rotary queries r (batch, head, query, rope_dim), the rotary key s (batch, 1, key, rope_dim), latents
    (batch, 1, key, rank), and queries q (batch, head, query, head_dim); r and s have no width without `rope`.
    """

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`."""
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        query_width = config.num_heads * (config.key_dim + config.turned_dim)
        if config.query_rank is None:
            self.query = nn.Linear(config.dim, query_width, bias=config.bias, **made)
        else:
            self.query_down = nn.Linear(config.dim, config.query_rank, bias=config.bias, **made)
            self.query_norm = self._norm(config, config.query_rank, made)
            self.query = nn.Linear(config.query_rank, query_width, bias=False, **made)
        self.down = nn.Linear(config.context_dim, config.latent_dim + config.turned_dim, bias=config.bias, **made)
        self.latent_norm = self._norm(config, config.latent_dim, made)
        self.key_up = nn.Linear(config.latent_dim, config.num_heads * config.key_dim, bias=False, **made)
        self.value_up = nn.Linear(config.latent_dim, config.num_heads * config.value_dim, bias=False, **made)
        self.output = nn.Linear(config.num_heads * config.value_dim, config.dim, bias=config.bias, **made)

    @staticmethod
    def _norm(config: Any, width: int, made: dict[str, Any]) -> nn.Module:
        return RMSNorm(width, eps=1e-6, **made) if config.latent_norm else nn.Identity()

    def project(self, x: Tensor, context: Tensor | None = None) -> Parts:
        """The parts, before positions; see the class."""
        config = self.config
        narrow = x if config.query_rank is None else self.query_norm(self.query_down(x))
        query, rope_query = self.split(self.query(narrow), config.num_heads).split(
            (config.key_dim, config.turned_dim), dim=-1
        )
        latent, rope_key = self.down(x if context is None else context).split(
            (config.latent_dim, config.turned_dim), dim=-1
        )
        return rope_query, rope_key[:, None], self.latent_norm(latent)[:, None], query

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LatentCache | StaticKVCache:
        """As `Attention.new_cache`: rank + rope_dim numbers for a token, whatever the number of heads."""
        device, dtype = self.placement(device, dtype)
        if max_len is None:
            return LatentCache(batch, device=device)
        config = self.config  # the rotary key takes the place of the keys, the latent that of the values
        return StaticKVCache(batch, 1, max_len, config.turned_dim, config.latent_dim, device=device, dtype=dtype)

    def attend(  # type: ignore[override]  # its parts are not query, key, value
        self, rope_query: Tensor, rope_key: Tensor, latent: Tensor, query: Tensor, terms: Terms
    ) -> Tensor:
        """The fast path: (batch, head, query, v_head_dim) in the form that the lengths make cheaper."""
        absorbed = self._absorbs(query.shape[2], latent.shape[2])
        form = self._absorbed if absorbed else self._expanded
        return form(rope_query, rope_key, latent, query, terms)

    def _absorbs(self, queries: int, keys: int) -> bool:
        """Whether the absorbed form takes fewer operations; products that both forms need do not count."""
        config = self.config
        if config.form != "auto" or queries >= keys:
            return bool(config.form == "absorbed")
        widths = config.key_dim + config.value_dim
        expansion = (keys - queries) * config.latent_dim * widths
        return expansion > queries * keys * (2 * config.latent_dim + config.turned_dim - widths)

    def _expanded(self, rope_query: Tensor, rope_key: Tensor, latent: Tensor, query: Tensor, terms: Terms) -> Tensor:
        heads = self.config.num_heads
        key = self.split(self.key_up(latent[:, 0]), heads)
        value = self.split(self.value_up(latent[:, 0]), heads)
        key = torch.cat((key, rope_key.expand(-1, heads, -1, -1)), dim=-1)
        query = torch.cat((query, rope_query), dim=-1)
        result = attend_widths(query, key, value, terms, backend=self.config.backend)
        self.last_choice = result.choice
        return result.out

    def _absorbed(self, rope_query: Tensor, rope_key: Tensor, latent: Tensor, query: Tensor, terms: Terms) -> Tensor:
        """One key head for all. Queries of all heads stand in a row, so that no kernel repeats the latents."""
        heads, queries = self.config.num_heads, query.shape[2]
        inward = torch.einsum("bhqd,hdr->bhqr", query, self.key_up.weight.unflatten(0, (heads, -1)))
        row = torch.cat((inward, rope_query), dim=-1).flatten(1, 2)[:, None]
        joint = torch.cat((latent, rope_key), dim=-1)  # as values too: the rotary part of the output is dropped
        terms = terms.replace(scale=scale_of(torch.cat((query, rope_query), dim=-1), terms))
        terms = _heads_in_a_row(terms, heads, queries, joint)
        mixed = self.served(row, joint, joint, terms)[:, 0, :, : self.config.latent_dim].unflatten(1, (heads, queries))
        return torch.einsum("bhqr,hvr->bhqv", mixed, self.value_up.weight.unflatten(0, (heads, -1)))

    def reference(  # type: ignore[override]  # its parts are not query, key, value
        self, rope_query: Tensor, rope_key: Tensor, latent: Tensor, query: Tensor, terms: Terms
    ) -> Tensor:
        """What `attend` must equal: keys and values of every head written out, in float64."""
        return self._dense(rope_query, rope_key, latent, query, terms).out

    def weights(  # type: ignore[override]  # its parts are not query, key, value
        self, rope_query: Tensor, rope_key: Tensor, latent: Tensor, query: Tensor, terms: Terms
    ) -> tuple[Tensor, Tensor]:
        """As `Attention.weights`."""
        dense = self._dense(rope_query, rope_key, latent, query, terms)
        return dense.weights, dense.lse

    def _dense(self, rope_query: Tensor, rope_key: Tensor, latent: Tensor, query: Tensor, terms: Terms) -> Dense:
        tokens = latent[:, 0].double()
        keys, values = [], []
        for key_up, value_up in zip(
            self.key_up.weight.double().chunk(self.config.num_heads),
            self.value_up.weight.double().chunk(self.config.num_heads),
            strict=True,
        ):
            keys.append(torch.cat((tokens @ key_up.T, rope_key[:, 0].double()), dim=-1))
            values.append(tokens @ value_up.T)
        queries = torch.cat((query.double(), rope_query.double()), dim=-1)
        return dense_attention(queries, torch.stack(keys, dim=1), torch.stack(values, dim=1), terms)


def _heads_in_a_row(terms: Terms, heads: int, queries: int, key: Tensor) -> Terms:
    """The terms of queries (batch, 1, head * query, ...): as `key_mask` alone where that is all there is."""
    keys = key.shape[2]
    alone = terms.causal and terms.positions is None and queries == 1  # the last query sees every key
    others = terms.replace(key_mask=None, causal=terms.causal and not alone)
    visible = others.visible(queries, keys, key.device)

    def in_a_row(term: Tensor | None) -> Tensor | None:
        return None if term is None else term.expand(-1, heads, -1, -1).flatten(1, 2)[:, None]

    return Terms(
        mask=in_a_row(visible), key_mask=terms.key_mask, bias=in_a_row(terms.bias), scale=terms.scale,
        dropout=terms.dropout,
    )  # fmt: skip


latent = implement(
    Latent,
    LatentConfig,
    name="latent",
    summary="multi-head latent attention: low-rank joint key/value, decoupled rotary key",
    exactness="exact: absorbed form equals expanded form; full rank with identity equals flash",
    cost="N^2 d, cache rank + rope_dim per token",
    causal=True,
    cross=True,
    masks=("mask", "key_mask", "bias", "segments"),
    grouped_query=False,
    cache="latent",
    paper=Paper(
        authors="DeepSeek-AI",
        year=2024,
        title="DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
        arxiv="2405.04434",
    ),
    example={"rank": 12, "query_rank": 20},
)
