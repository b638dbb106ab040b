"""Attention to the neighbours in the sequence, and to a few global tokens that everyone sees.

Longformer, Beltagy et al. 2020 (arXiv:2004.05150); under `causal` the global tokens are the attention sinks of Xiao et
al. 2023 (arXiv:2309.17453). Other than there, global tokens share the projections of all tokens.

A query sees the keys less than `window` positions away. The first `global_tokens` real tokens see all, and all see
them; under `causal` nobody sees a later token, these neither. On CUDA kernels that know windows run where they can;
elsewhere, and with global tokens or biases, blocks of queries are folded with the keys around them into a batch.
Positions of the caller may be in any order, so with them every query is compared with every key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from astrozoo.attention.blocks import (
    at_places,
    count_blocks,
    fold_queries,
    fold_rows,
    fold_terms,
    key_windows,
    take,
    unfold_queries,
)
from astrozoo.attention.cache import Cache, WindowKVCache
from astrozoo.attention.choice import able, overridden
from astrozoo.attention.core import hide_unseen
from astrozoo.attention.module import Attention, AttentionConfig, Parts, implement
from astrozoo.attention.reference import dense_attention
from astrozoo.attention.request import describe
from astrozoo.attention.terms import Terms
from astrozoo.errors import UnsupportedArgument
from astrozoo.nn.checks import at_least
from astrozoo.registry.spec import Paper

__all__ = ["SlidingWindow", "SlidingWindowConfig", "sliding_window"]

WINDOW_KERNELS = ("flash_attn", "flex")  # backends that skip what lies outside a window


@dataclass(frozen=True, kw_only=True)
class SlidingWindowConfig(AttentionConfig):
    """As `AttentionConfig`, and what is seen.

    Attributes:
        window: A query sees keys less than this many positions away, itself included.
        global_tokens: How many tokens at the start of each row all see, and that see all.
        relative_bias: Whether each head learns a bias for every offset within the window.
    """

    window: int = 512
    global_tokens: int = 0
    relative_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "window")
        at_least(self, 0, "global_tokens")

    @property
    def block(self) -> int:
        """Queries that share one set of keys: fewer waste less on keys outside their window, more copy keys less."""
        return min(256, max(8, 1 << (self.window // 2 - 1).bit_length()))


class _Extras(NamedTuple):
    """Keys that every row has beside those around it: what a cache held, and the global tokens among the new ones.

    Attributes:
        at: int64 (batch | 1, extra), their places among all keys.
        cached: How many come from a cache; no row has them around it.
        shown: bool (batch | 1, extra), whether all queries see it.
    """

    at: Tensor
    cached: int
    shown: Tensor

    def seen(self, offset: Tensor, window: int) -> Tensor:
        """Which a query sees here and not around it, by offsets (batch | 1, row, slot, extra): bool of that shape."""
        near, shown = offset.abs() < window, self.shown[:, None, None]
        from_cache = torch.arange(offset.shape[-1], device=offset.device) < self.cached
        return torch.where(from_cache, near | shown, shown & ~near)


class SlidingWindow(Attention):
    """softmax(q k' / sqrt(dim) + bias(offset)) v over the keys within the window, and the global ones."""

    def make_projections(self, config: Any, *, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """As `Attention.make_projections`, and `relative_bias` (head, 2 window - 1), by key minus query position."""
        super().make_projections(config, device=device, dtype=dtype)
        self.relative_bias: nn.Parameter | None = None
        if config.relative_bias:
            table = torch.empty(config.num_heads, 2 * config.window - 1, device=device, dtype=dtype)
            self.relative_bias = nn.Parameter(table)

    def reset_parameters(self) -> None:
        """As `Attention.reset_parameters`; biases are normal with a standard deviation of 0.02."""
        super().reset_parameters()
        if self.relative_bias is not None:
            nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,  # noqa: ARG002  # it never holds more than the window and the global tokens
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> WindowKVCache:
        """As `Attention.new_cache`."""
        device, _ = self.placement(device, dtype)
        return WindowKVCache(batch, self.config.window, sinks=self.config.global_tokens, device=device)

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """As `Attention.place`; `window` is set where positions of the caller decide, and not the order of tokens.

        Raises:
            UnsupportedArgument: Segments together with global tokens.
        """
        if terms.segments is not None and self.config.global_tokens:
            raise UnsupportedArgument(
                f"sliding_window with global_tokens={self.config.global_tokens} cannot honour segments: each segment "
                "would need global tokens of its own. Use global_tokens=0, or make each segment a row of the batch."
            )
        parts, terms = super().place(parts, terms, cache, positions)
        if positions[0] is not None and terms.positions is not None:
            terms = terms.replace(window=self.config.window)
        return parts, terms

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.attend`, in O(tokens * window)."""
        tokens, keys, window = query.shape[2], key.shape[2], self.config.window
        order = torch.arange(keys, device=query.device)[None]
        if terms.positions is None and keys <= window:
            return self.served(query, key, value, self._biased(terms, order, order))
        if terms.window is not None or tokens <= self.config.block:
            return self.served(query, key, value, self._compared(terms, *(terms.positions or (order, order))))
        if terms.positions is not None:
            return self._continued(query, key, value, terms)
        kernels = self._kernels(query, key, value, terms)
        if kernels:
            return self.served(query, key, value, terms.replace(window=window), backend=kernels)
        return self._blocked(query, key, value, terms, order)

    def reference(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """As `Attention.reference`: dense attention with the mask of the window and the global tokens."""
        return dense_attention(query, key, value, self._dense(query, key, terms)).out

    def weights(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """As `Attention.weights`; 0 outside the window."""
        return super().weights(query, key, value, self._dense(query, key, terms))

    # -- ways to compute it --------------------------------------------------------------------------------------------

    def _kernels(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> tuple[str, ...]:
        """Backends that skip what lies outside the window and can serve the call."""
        biased = terms.bias is not None or self.relative_bias is not None
        if query.device.type != "cuda" or self.config.global_tokens or biased:
            return ()
        request = describe(query, key, value, terms.replace(window=self.config.window), lse=False)
        return able(request, overridden(self.config.backend), WINDOW_KERNELS)

    def _compared(self, terms: Terms, own: Tensor, other: Tensor) -> Terms:
        """The terms of few tokens, or of positions in any order: every query is compared with every key."""
        seen = (other[:, None, :] - own[:, :, None]).abs() < self.config.window
        first = self.config.global_tokens
        if first and terms.positions is None and terms.key_mask is not None:
            shown = terms.key_mask & (terms.key_mask.cumsum(dim=1) <= first)
            seen = seen | shown[:, None, :] | shown[:, :, None]
        elif first:
            seen = seen | (other < first)[:, None, :] | (own < first)[:, :, None]
        return self._biased(terms.replace(window=None, mask=seen[:, None]), own, other)

    def _biased(self, terms: Terms, own: Tensor, other: Tensor) -> Terms:
        """The terms with the learned bias added to that of the caller."""
        if self.relative_bias is None:
            return terms
        learned = self._offset_bias(other[:, None, :] - own[:, :, None])
        return terms.replace(bias=learned if terms.bias is None else terms.bias + learned)

    def _offset_bias(self, offset: Tensor) -> Tensor:
        """(batch, head, query, key) from offsets (batch, query, key), key minus query; 0 outside the window."""
        assert self.relative_bias is not None
        reach = self.config.window - 1
        whole = offset.round().long() if offset.is_floating_point() else offset
        found = self.relative_bias[:, whole.clamp(-reach, reach) + reach].transpose(0, 1)
        return found.masked_fill((offset.abs() > reach)[:, None], 0)

    def _continued(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Many tokens after those of a cache. Padding goes to the front, so that real ones lie in a row by position."""
        assert terms.positions is not None
        assert terms.key_mask is not None  # a window cache gives both
        cached = key.shape[2] - query.shape[2]
        real = terms.key_mask[:, cached:]
        order = real.to(torch.uint8).argsort(dim=1, stable=True)
        own, other = (part.expand(real.shape[0], -1) for part in terms.positions)
        own, real = own.gather(1, order), real.gather(1, order)
        terms = terms.replace(positions=None, key_mask=torch.cat((terms.key_mask[:, :cached], real), dim=1))
        key, value = (
            torch.cat((heads[:, :, :cached], at_places(heads[:, :, cached:], order)), dim=2) for heads in (key, value)
        )
        out = self._blocked(at_places(query, order), key, value, terms, torch.cat((other[:, :cached], own), dim=1))
        return at_places(out, order.argsort(dim=1))

    def _blocked(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms, positions: Tensor) -> Tensor:
        """Blocks of queries with the keys around them. `positions` (batch | 1, key) grow by one from query to query."""
        config, batch, tokens = self.config, query.shape[0], query.shape[2]
        block, reach, cached = config.block, config.window - 1, key.shape[2] - tokens
        after = 0 if terms.causal else reach
        slot = torch.arange(block, device=query.device)
        halo = torch.arange(reach + block + after, device=query.device) - reach
        first = torch.arange(count_blocks(tokens, block), device=query.device)[:, None] * block
        query_at, key_at = first + slot, (first + halo)[None]
        offset = halo - slot[:, None]
        around = (key_at >= 0) & (key_at < tokens)
        near = (offset >= -reach) & (offset <= after) & around[:, :, None]  # (1, row, slot, halo)

        extras = self._extras(terms, positions, tokens)
        own, other = take(positions[:, cached:], query_at[None]), positions.expand(len(extras.at), -1)
        gap = other.gather(1, extras.at)[:, None, None] - own[..., None]  # (batch | 1, row, slot, extra)
        far = extras.seen(gap, config.window)
        if terms.causal:
            far = far & (gap <= 0)

        bias = None
        if self.relative_bias is not None:
            bias = self._offset_bias(offset[None])
            if gap.shape[-1]:
                left = self._offset_bias(gap.expand(batch, -1, -1, -1).flatten(0, 1))
                bias = torch.cat((left, bias.expand(len(left), -1, -1, -1)), dim=-1)
        key, value = hide_unseen(key, value, Terms(key_mask=terms.key_mask))  # once, not in every row it is copied to
        rows = [
            _beside(at_places(heads, extras.at), key_windows(heads[:, :, cached:], block, before=reach, after=after))
            for heads in (key, value)
        ]
        visible = _joined(far, near) & (query_at < tokens)[..., None]
        places = _joined(extras.at[:, None].expand(-1, len(first), -1), key_at + cached)
        folded = fold_terms(terms, query_at, places, visible, batch=batch)
        if bias is not None:
            folded = folded.replace(bias=bias if folded.bias is None else folded.bias + bias)
        out = self.served(fold_queries(query, block), rows[0], rows[1], folded, hidden=terms.bias is None)
        out = unfold_queries(out, batch, tokens)
        if terms.causal or not config.global_tokens:
            return out
        return self._with_global_queries(out, query, key, value, terms, positions, extras)

    def _extras(self, terms: Terms, positions: Tensor, tokens: int) -> _Extras:
        """Keys of a cache, all of them, and the first real tokens of the new ones."""
        first, cached = min(self.config.global_tokens, tokens), positions.shape[1] - tokens
        before = torch.arange(cached, device=positions.device)[None]
        if terms.key_mask is None:
            places = torch.arange(first, device=positions.device)[None]
            exists = torch.ones_like(places, dtype=torch.bool)
        else:  # the first real tokens, and after them others, so that no place comes twice
            real = terms.key_mask[:, cached:]
            places = (~real).to(torch.uint8).argsort(dim=1, stable=True)[:, :first]
            exists = real.gather(1, places)
        at = torch.cat((before.expand(len(places), -1), places + cached), dim=1)
        if not cached:
            return _Extras(at, 0, exists)
        exists = torch.cat((torch.ones_like(at[:, :cached], dtype=torch.bool), exists), dim=1)
        return _Extras(at, cached, exists & (positions.gather(1, at) < self.config.global_tokens))

    def _with_global_queries(
        self,
        out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        terms: Terms,
        positions: Tensor,
        extras: _Extras,
    ) -> Tensor:
        """`out` with the rows of the global tokens, which see every key."""
        batch, cached = query.shape[0], extras.cached
        places = extras.at[:, cached:] - cached
        asked = Terms(key_mask=terms.key_mask, scale=terms.scale, dropout=terms.dropout)
        if terms.bias is not None:
            index = places[:, None, :, None].expand(max(len(places), len(terms.bias)), terms.bias.shape[1], -1, 1)
            bias = terms.bias.expand(len(index), -1, -1, -1)
            asked = asked.replace(bias=bias.gather(2, index.expand(-1, -1, -1, bias.shape[3])))
        other = positions.expand(len(places), -1)
        asked = self._biased(asked, other[:, cached:].gather(1, places), other)
        found = self.served(at_places(query, places), key, value, asked).to(out.dtype)
        index = places.expand(batch, -1)[:, None, :, None].expand(found.shape)
        found = torch.where(extras.shown[:, None, cached:, None], found, out.gather(2, index))
        return out.scatter(2, index, found)

    def _dense(self, query: Tensor, key: Tensor, terms: Terms) -> Terms:
        """The terms with window and global tokens as a mask (batch | 1, 1, query, key), and the learned bias."""
        sizes = query.shape[2], key.shape[2], query.device
        own, other = terms.resolved_positions(*sizes)
        seen = Terms(window=self.config.window, positions=terms.positions).visible(*sizes)
        assert seen is not None  # a window always gives a mask
        first = self.config.global_tokens
        if terms.positions is not None:
            seen = seen | (own < first)[:, None, :, None] | (other < first)[:, None, None, :]
        elif first:
            real = torch.ones_like(other, dtype=torch.bool) if terms.key_mask is None else terms.key_mask
            shown = real & (real.cumsum(dim=1) <= first)
            seen = seen | shown[:, None, :, None] | shown[:, None, None, :]
        terms = terms.replace(window=None, mask=seen)
        if self.relative_bias is None:
            return terms
        bias = torch.zeros((), dtype=torch.float64, device=query.device) if terms.bias is None else terms.bias.double()
        steps = (other[:, None, None, :] - own[:, None, :, None]).round()
        for step, column in zip(range(1 - self.config.window, self.config.window), self.relative_bias.T, strict=True):
            bias = bias + (steps == step) * column.double()[:, None, None]
        return terms.replace(bias=bias)


def _beside(extras: Tensor, windows: Tensor) -> Tensor:
    """(batch * row, head, extra + halo, dim): keys (batch, head, extra, dim) before those of each row's window."""
    each = extras[:, None].expand(-1, windows.shape[1], -1, -1, -1)
    return fold_rows(torch.cat((each, windows), dim=3))


def _joined(far: Tensor, near: Tensor) -> Tensor:
    """Both along the last dimension; of each the first, of batch elements, may be 1."""
    batch = max(len(far), len(near))
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in (far, near)], dim=-1)


sliding_window = implement(
    SlidingWindow,
    SlidingWindowConfig,
    name="sliding_window",
    summary="each query sees the keys within a window, and a few global tokens that all see",
    exactness="exact: equals dense attention with the mask of the window; a window of all tokens equals flash",
    cost="N w d, w the keys of a window",
    causal=True,
    cross=False,
    masks=("key_mask", "bias", "segments"),
    grouped_query=True,
    cache="window",
    cost_exponent=1.0,
    paper=Paper(
        authors="Beltagy, Peters, Cohan", year=2020, title="Longformer: The Long-Document Transformer",
        arxiv="2004.05150",
    ),
    example={"window": 4},
)  # fmt: skip
