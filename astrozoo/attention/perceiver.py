"""Cross-attention: tokens, or learned latents, read from another sequence of any length at a cost linear in it.

Jaegle et al. 2021 (arXiv:2103.03206 and, for queries of the task, arXiv:2107.14795). A few hundred learned latents that
attend to all pixels or observations are the bottleneck of a Perceiver; queries that attend to the latents read it out.
Both are this module: `attention(x, context)`. With `num_latents` it owns learned latents to pass as `x`:

    attention(attention.latents(batch), context)

Where one context serves many calls, as in decoding, a cache keeps its keys and values, and its `key_mask`: the call
that gets `context` fills it, later ones leave `context` out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from astrozoo.attention.cache import Cache, ContextCache
from astrozoo.attention.module import Attention, AttentionConfig, Parts, implement
from astrozoo.attention.terms import Terms
from astrozoo.errors import InputError
from astrozoo.nn.checks import at_least
from astrozoo.registry.spec import Paper

__all__ = ["Perceiver", "PerceiverConfig", "perceiver"]


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig(AttentionConfig):
    """Options of cross-attention.

    Attributes:
        num_latents: Number of learned latents that `latents` gives; 0 for none.
    """

    num_latents: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "num_latents")


class Perceiver(Attention):
    """softmax(q k' / sqrt(dim) + bias) v for each head, with k and v from another sequence."""

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`, and the learned latents."""
        super().make_projections(config, device=device, dtype=dtype)
        self.learned: nn.Parameter | None = None
        if config.num_latents:
            self.learned = nn.Parameter(torch.empty(config.num_latents, config.dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; latents are normal, of standard deviation 0.02, as in the paper."""
        super().reset_parameters()
        if self.learned is not None:
            nn.init.trunc_normal_(self.learned, std=0.02)

    def latents(self, batch: int) -> Tensor:
        """The learned latents (batch, latent, dim), to be passed as `x`.

        Args:
            batch: Number of rows, which all start from the same latents.

        Raises:
            InputError: It was made without latents.
        """
        if self.learned is None:
            raise InputError("This perceiver has no learned latents; make it with num_latents above 0.")
        return self.learned.expand(batch, -1, -1)

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,  # noqa: ARG002  # a context does not grow, so there is nothing to reserve
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,  # noqa: ARG002  # nothing is allocated before the context is there
    ) -> ContextCache:
        """An empty cache for the context of `batch` rows, which the first call fills; its shapes never change."""
        return ContextCache(batch, device=self.placement(device)[0])

    def project(self, x: Tensor, context: Tensor | None = None) -> Parts:
        """As `Attention.project`; queries alone where the context is in the cache."""
        if context is not None:
            return super().project(x, context)
        return (self.query_norm(self.split(self.query(x), self.config.num_heads)),)

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """Turn queries and keys by their positions; put a new context into the cache, or take the one that is there."""
        query, fresh = parts[0], parts[1:]
        if cache is not None and (not isinstance(cache, ContextCache) or cache.batch != query.shape[0]):
            raise InputError(f"x has {query.shape[0]} rows; expected a cache from new_cache({query.shape[0]}).")
        if fresh:
            key, value = fresh
        else:
            assert cache is not None  # the base class asks for a context where there is none
            if terms.key_mask is not None:
                raise InputError("The cache keeps the key_mask of its context; pass key_mask along with context only.")
            (key, value), key_mask, _ = cache.context()
            terms = terms.replace(key_mask=key_mask)
        terms = terms.replace(positions=None)  # of no use but for rotary positions
        if self.config.rope is not None:
            default = terms.resolved_positions(query.shape[2], key.shape[2], query.device)
            own, other = (some if given is None else given for given, some in zip(positions, default, strict=True))
            query = self.config.rope.turn(query, own)
            key = self.config.rope.turn(key, other) if fresh else key
        if fresh and cache is not None:
            cache.append(key, value, key_mask=terms.key_mask)
        return (query, key.to(query.dtype), value.to(query.dtype)), terms


perceiver = implement(
    Perceiver,
    PerceiverConfig,
    name="perceiver",
    summary="cross-attention to a context, optionally from learned latents",
    exactness="exact: equals dense cross-attention; the order of the context does not matter",
    cost="N M d",
    causal=False,
    cross=True,
    masks=("mask", "key_mask", "bias", "segments"),
    grouped_query=True,
    cache="context",
    needs_context=True,
    paper=Paper(
        authors="Jaegle, Gimeno, Brock, Zisserman, Vinyals, Carreira",
        year=2021,
        title="Perceiver: General Perception with Iterative Attention",
        arxiv="2103.03206",
    ),
    aliases={"cross": {}},
)
