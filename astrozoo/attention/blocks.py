"""Queries in blocks, each with the few keys that it may see: a batch of small attentions, so cost is linear in tokens.

A row is a block of queries with its keys. Masks and biases of the caller are gathered at the pairs of each row only, so
nothing of the size of queries times keys is made beside what the caller gave.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from astrozoo.attention.terms import Terms

__all__ = [
    "at_places",
    "count_blocks",
    "fold_queries",
    "fold_rows",
    "fold_terms",
    "key_blocks",
    "key_windows",
    "take",
    "unfold_queries",
]


def count_blocks(tokens: int, block: int) -> int:
    """Blocks that hold `tokens` tokens; the last may be partly empty."""
    return (tokens + block - 1) // block


def fold_rows(rows: Tensor) -> Tensor:
    """(batch * row, head, slot, dim) from (batch, row, head, slot, dim)."""
    return rows.flatten(0, 1)


def fold_queries(heads: Tensor, block: int, *, lead: int = 0) -> Tensor:
    """(batch * row, head, block, dim) from (batch, head, token, dim); empty slots, `lead` of them in front, are 0."""
    tokens = lead + heads.shape[2]
    rows = count_blocks(tokens, block)
    padded = F.pad(heads, (0, 0, lead, rows * block - tokens))
    return fold_rows(padded.unflatten(2, (rows, block)).transpose(1, 2))


def unfold_queries(folded: Tensor, batch: int, tokens: int, *, lead: int = 0) -> Tensor:
    """The inverse of `fold_queries`: (batch, head, token, dim)."""
    rows = count_blocks(lead + tokens, folded.shape[2])
    heads = folded.unflatten(0, (batch, rows)).transpose(1, 2).flatten(2, 3)
    return heads[:, :, lead : lead + tokens]


def key_windows(heads: Tensor, block: int, *, before: int, after: int) -> Tensor:
    """The tokens of each block, and those before and after it: a view (batch, row, head, before + block + after, dim).

    Args:
        heads: (batch, head, token, dim).
        block: Tokens of a block; the last is filled up with 0, as are windows that reach beyond the ends.
        before: Tokens before the block.
        after: Tokens after it.
    """
    tokens = heads.shape[2]
    rows = count_blocks(tokens, block)
    padded = F.pad(heads, (0, 0, before, rows * block - tokens + after))
    windows = padded.unfold(2, before + block + after, block)  # (batch, head, row, dim, slot)
    return windows.permute(0, 2, 1, 4, 3)


def key_blocks(heads: Tensor, index: Tensor, block: int) -> Tensor:
    """The blocks of tokens that each row names: (batch * row, head, number * block, dim).

    Args:
        heads: (batch, head, token, dim).
        index: int64 (row, number), numbers of blocks; one out of range gives some block, which the caller must hide.
        block: Tokens of a block; the last is filled up with 0.
    """
    tokens = heads.shape[2]
    blocks = count_blocks(tokens, block)
    padded = F.pad(heads, (0, 0, 0, blocks * block - tokens)).unflatten(2, (blocks, block))
    chosen = padded.index_select(2, index.clamp(0, blocks - 1).flatten())
    rows = chosen.unflatten(2, index.shape).transpose(1, 2)  # (batch, row, head, number, block, dim)
    return fold_rows(rows.flatten(3, 4))


def at_places(heads: Tensor, places: Tensor) -> Tensor:
    """(batch, head, place, dim) from (batch, head, token, dim), of the tokens int64 (batch | 1, place)."""
    index = places.expand(heads.shape[0], -1)[:, None, :, None]
    return heads.gather(2, index.expand(-1, heads.shape[1], -1, heads.shape[3]))


def take(values: Tensor, index: Tensor) -> Tensor:
    """Entries of `values` (batch | 1, token) at tokens `index` (batch | 1, ...); beyond an end, those at the end."""
    at = index.clamp(0, values.shape[1] - 1)
    at = at.expand(max(values.shape[0], index.shape[0]), *index.shape[1:])
    return values.expand(at.shape[0], -1).gather(1, at.flatten(1)).view(at.shape)


def fold_terms(terms: Terms, query_at: Tensor, key_at: Tensor, visible: Tensor, *, batch: int) -> Terms:
    """The terms of all rows as a batch: `visible`, and the masks and the bias of the caller at the same pairs.

    Args:
        terms: Of the whole. Its `causal`, `window` and `positions` are not used: they belong into `visible`.
        query_at: int64 (row, slot), the token of each query.
        key_at: int64 (batch | 1, row, key slot), the token of each key. Any token may stand for what is hidden.
        visible: bool (batch | 1, row, slot, key slot), where a query may see a key if only the pattern is asked.
        batch: Rows of the whole.
    """
    if terms.key_mask is not None:
        visible = visible & take(terms.key_mask, key_at)[:, :, None]
    if terms.segments is not None:
        own, other = terms.segments
        visible = visible & (take(own, query_at[None])[..., None] == take(other, key_at)[:, :, None])
    mask = visible[:, None]
    if terms.mask is not None:
        mask = mask & _at_pairs(terms.mask, query_at, key_at)
    bias = None if terms.bias is None else _as_rows(_at_pairs(terms.bias, query_at, key_at), batch)
    return Terms(mask=_as_rows(mask, batch), bias=bias, scale=terms.scale, dropout=terms.dropout)


def _at_pairs(dense: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
    """(batch | 1, head | 1, row, slot, key slot) from (batch | 1, head | 1, query, key)."""
    batch, heads, queries, keys = dense.shape
    at = torch.arange(max(batch, heads), device=dense.device)
    return dense[
        at[:batch, None, None, None, None],
        at[:heads, None, None, None],
        query_at.clamp(0, queries - 1)[:, :, None],
        key_at.clamp(0, keys - 1)[:, None, :, None],
    ]


def _as_rows(pairs: Tensor, batch: int) -> Tensor:
    """(batch * row, head | 1, slot, key slot) from (batch | 1, head | 1, row, slot, key slot)."""
    return fold_rows(pairs.expand(batch, -1, -1, -1, -1).transpose(1, 2))
