"""What one attention call may see: masks, biases, segments, causality and positions, checked and in one form.

One meaning everywhere: a boolean mask is True where a query may attend; additive terms are `bias`; what is hidden from
every query is never read, so that NaN in a gap does not leak. All terms combine by "and" (masks) and "+" (biases).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from astrozoo.errors import InputError

__all__ = ["BlockLayout", "Terms", "make_terms"]


class BlockLayout(NamedTuple):
    """Which blocks of keys each block of queries may see; both count from the first token.

    Attributes:
        size: Tokens of a block.
        seen: bool (query block, key block).
    """

    size: int
    seen: Tensor

    def visible(self, queries: int, keys: int) -> Tensor:
        """The same for single tokens: bool (query, key)."""
        rows = self.seen.repeat_interleave(self.size, dim=0)[:queries]
        return rows.repeat_interleave(self.size, dim=1)[:, :keys]

    def fits(self, size: int) -> bool:
        """Whether blocks of `size` tokens hold a whole number of these, or the other way round."""
        return self.size % size == 0 or size % self.size == 0

    def in_blocks_of(self, size: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Whether any of these, and whether all are seen in each block of `size` tokens that fits: (row, column)."""
        parts = max(size // self.size, 1)  # of these along one of those
        seen = BlockLayout(max(self.size // size, 1), self.seen).visible(rows * parts, columns * parts)
        seen = F.pad(seen, (0, columns * parts - seen.shape[1], 0, rows * parts - seen.shape[0]))
        seen = seen.unflatten(1, (columns, parts)).unflatten(0, (rows, parts)).transpose(1, 2).flatten(2)
        return seen.any(dim=2), seen.all(dim=2)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of one call, validated.

    Attributes:
        causal: Key j is visible to query i where its position is not later; by default the last query is aligned with
            the last key.
        mask: bool (batch | 1, head | 1, query, key).
        key_mask: bool (batch | 1, key), True for a real token.
        bias: float (batch | 1, head | 1, query, key), added to the scaled logits; -inf hides.
        segments: int (batch | 1, query) and (batch | 1, key); a query sees its own segment only.
        window: A query sees keys less than this many positions away, itself included.
        positions: (batch | 1, query) and (batch | 1, key), where they are not the default.
        blocks: Blocks that a query may see; for kernels that skip the others.
        geometry: `Grid`, `Graph` or `Points` of the tokens.
        scale: Factor of the logits; None for head_dim ** -0.5.
        dropout: Probability that an attention weight is dropped, 0 outside training.
        cache: For recurrences: the `StateCache` that they continue and leave behind.
    """

    causal: bool = False
    mask: Tensor | None = None
    key_mask: Tensor | None = None
    bias: Tensor | None = None
    segments: tuple[Tensor, Tensor] | None = None
    window: int | None = None
    positions: tuple[Tensor, Tensor] | None = None
    blocks: BlockLayout | None = None
    geometry: Any = None
    scale: float | None = None
    dropout: float = 0.0
    cache: Any = None

    def replace(self, **changes: Any) -> Terms:
        """A copy with some terms changed."""
        return dataclasses.replace(self, **changes)

    def rows(self, part: slice) -> Terms:
        """The terms of some of the queries. Default positions must have been resolved before."""
        return self.replace(
            mask=None if self.mask is None else self.mask[:, :, part],
            bias=None if self.bias is None else self.bias[:, :, part],
            segments=None if self.segments is None else (self.segments[0][:, part], self.segments[1]),
            positions=None if self.positions is None else (self.positions[0][:, part], self.positions[1]),
        )

    def kind(self) -> str:
        """The most demanding term beside causality and window, as in `AttentionRequest.mask`."""
        if self.bias is not None:
            return "bias"
        if self.mask is not None:
            return "dense"
        if self.positions is not None:
            return "positions"
        if self.blocks is not None:
            return "blocks"
        if self.segments is not None:
            return "segments"
        return "none" if self.key_mask is None else "key"

    def resolved_positions(self, queries: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions (batch | 1, query) and (batch | 1, key); by default the last query is aligned with the last key."""
        if self.positions is not None:
            return self.positions
        key = torch.arange(keys, device=device)
        query = torch.arange(queries, device=device) + (keys - queries)
        return query[None], key[None]

    def visible(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Where a query may attend, without the -inf of a bias: bool (batch | 1, head | 1, query, key), or None."""
        parts: list[Tensor] = []
        if self.mask is not None:
            parts.append(self.mask)
        if self.key_mask is not None:
            parts.append(self.key_mask[:, None, None, :])
        if self.segments is not None:
            query_segment, key_segment = self.segments
            parts.append((query_segment[:, :, None] == key_segment[:, None, :])[:, None])
        if self.blocks is not None:
            parts.append(self.blocks.visible(queries, keys)[None, None])
        if self.causal or self.window is not None:
            query, key = self.resolved_positions(queries, keys, device)
            distance = (query[:, :, None] - key[:, None, :])[:, None]
            if self.causal:
                parts.append(distance >= 0)
            if self.window is not None:
                parts.append(distance.abs() < self.window)
        result = None
        for part in parts:
            result = part if result is None else result & part
        return None if result is None else result.expand(-1, -1, queries, keys)

    def seen_keys(self) -> Tensor | None:
        """Keys that some query may see by `mask`, `key_mask` and `bias`: bool (batch | 1, key), or None for all."""
        seen = self.key_mask
        dense: Tensor | None = self.mask
        if self.bias is not None:
            finite = self.bias.detach() != -torch.inf
            dense = finite if dense is None else finite & dense
        if dense is not None:
            some = dense.any(dim=1).any(dim=1)
            seen = some if seen is None else seen & some
        return seen


def make_terms(
    *,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    causal: bool = False,
    mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    segments: Tensor | tuple[Tensor, Tensor] | None = None,
    window: int | None = None,
    positions: tuple[Tensor, Tensor] | None = None,
    geometry: Any = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Terms:
    """Check shapes and dtypes of what a caller gave and bring them into the form of `Terms`; inputs are not modified.

    Raises:
        InputError: A shape or dtype is not what the contract names; a floating `mask`, which would be ambiguous.
    """
    if mask is not None:
        mask = _as_bool(mask, "mask")
        mask = _four_dims(mask, "mask", batch, heads, queries, keys)
    if key_mask is not None:
        key_mask = _as_bool(key_mask, "key_mask")
        if key_mask.dim() != 2 or key_mask.shape[1] != keys or key_mask.shape[0] not in (1, batch):
            raise InputError(f"key_mask has shape {tuple(key_mask.shape)}; expected (batch={batch}, key={keys}).")
    if bias is not None:
        if not bias.is_floating_point():
            raise InputError(f"bias has dtype {bias.dtype}; expected a floating dtype. Pass boolean masks as `mask`.")
        bias = _four_dims(bias, "bias", batch, heads, queries, keys)
    pair = None if segments is None else _segments(segments, batch, queries, keys)
    if window is not None and window < 1:
        raise InputError(f"window is {window}; expected at least 1: a query always counts itself.")
    if positions is not None:
        positions = (
            _positions(positions[0], "positions", batch, queries),
            _positions(positions[1], "context_positions", batch, keys),
        )
    return Terms(
        causal=causal, mask=mask, key_mask=key_mask, bias=bias, segments=pair, window=window, positions=positions,
        geometry=geometry, scale=scale, dropout=dropout,
    )  # fmt: skip


def _as_bool(mask: Tensor, name: str) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() or mask.is_complex():
        raise InputError(f"{name} has dtype {mask.dtype}; expected bool or integers. Pass additive masks as `bias`.")
    return mask != 0


def _four_dims(term: Tensor, name: str, batch: int, heads: int, queries: int, keys: int) -> Tensor:
    if term.dim() == 2:
        term = term[None, None]
    elif term.dim() != 4:
        raise InputError(
            f"{name} has shape {tuple(term.shape)}; expected (query, key) or (batch | 1, head | 1, query, key). "
            "Three dimensions are ambiguous."
        )
    fits = (
        term.shape[2] == queries
        and term.shape[3] == keys
        and term.shape[0] in (1, batch)
        and term.shape[1] in (1, heads)
    )
    if not fits:
        raise InputError(
            f"{name} has shape {tuple(term.shape)}; expected "
            f"(batch={batch} | 1, head={heads} | 1, query={queries}, key={keys})."
        )
    return term


def _segments(segments: Tensor | tuple[Tensor, Tensor], batch: int, queries: int, keys: int) -> tuple[Tensor, Tensor]:
    pair = segments if isinstance(segments, tuple) else (segments, segments)
    for part, name, length in zip(pair, ("query", "key"), (queries, keys), strict=True):
        if part.is_floating_point() or part.dtype == torch.bool:
            raise InputError(f"segments have dtype {part.dtype}; expected integer ids.")
        if part.dim() != 2 or part.shape[0] not in (1, batch) or part.shape[1] != length:
            hint = "" if isinstance(segments, tuple) else " For another sequence of keys give a pair."
            shape = tuple(part.shape)
            raise InputError(
                f"segments of the {name} have shape {shape}; expected (batch={batch}, {name}={length}).{hint}"
            )
    return pair[0], pair[1]


def _positions(positions: Tensor, name: str, batch: int, length: int) -> Tensor:
    if positions.dim() == 1:
        positions = positions[None]
    if positions.dim() != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != length:
        raise InputError(
            f"{name} have shape {tuple(positions.shape)}; expected ({length},) or (batch={batch} | 1, {length})."
        )
    return positions
