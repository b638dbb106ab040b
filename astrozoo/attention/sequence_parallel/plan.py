"""What the ranks agree on before keys go round: sizes, options, and whose tokens lie where in the sequence."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from astrozoo.attention.backends.base import scale_of
from astrozoo.attention.core import check_heads
from astrozoo.attention.sequence_parallel.layout import (
    MOST_PIECES,
    Layout,
    Piece,
    Product,
    pieces_of,
    pieces_of_runs,
    products,
    shard_runs,
)
from astrozoo.attention.sequence_parallel.transport import Ring, all_gather_numbers
from astrozoo.attention.terms import Terms, make_terms
from astrozoo.errors import InputError

__all__ = ["Plan", "agree"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_AGREED = (
    "batch", "head", "key head", "dim", "value dim", "dtype", "causal", "layout", "scale", "key_mask", "segments",
    "positions", "need of gradients",
)  # fmt: skip
_SIZES = 2  # queries, keys
_PIECE = len(Piece._fields)


@dataclass(frozen=True)
class Plan:
    """The work of one rank.

    Attributes:
        ring: The ranks.
        scale: Factor of the logits.
        queries: Pieces of this rank's queries.
        keys: Pieces of the keys of every rank.
        tokens: Number of keys of every rank.
        terms: Masks, segments and positions of this rank's tokens, each for the whole batch.
    """

    ring: Ring
    scale: float
    queries: tuple[Piece, ...]
    keys: tuple[tuple[Piece, ...], ...]
    tokens: tuple[int, ...]
    terms: Terms

    def products(self, step: int) -> list[Product]:
        """What to compute with the keys that are here after `step` exchanges."""
        return products(self.queries, self.keys[self.ring.origin(step)])


def agree(
    ring: Ring,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None,
    segments: Tensor | tuple[Tensor, Tensor] | None,
    positions: Tensor | tuple[Tensor, Tensor] | None,
    scale: float | None,
    layout: Layout,
) -> Plan:
    """Check this rank's arguments, tell them to the others, and plan; every rank fails if one does.

    Raises:
        InputError: Arguments do not fit together, on this rank or between ranks.
    """
    problem: InputError | None = None
    own = [0] * (1 + len(_AGREED) + _SIZES + 1 + MOST_PIECES * _PIECE)
    query_pieces: tuple[Piece, ...] = ()
    terms = Terms()
    try:
        terms = _own_terms(query, key, value, causal, key_mask, segments, positions, scale, layout)
        key_pieces: tuple[Piece, ...] = ()
        if terms.positions is not None:
            query_pieces, key_pieces = (pieces_of(item) for item in terms.positions)
        own = [1, *_agreed(query, key, value, terms, layout), query.shape[2], key.shape[2], *_packed(key_pieces)]
    except InputError as error:  # the others wait to hear from this rank
        problem = error
    rows = all_gather_numbers(ring, own, query.device)
    if problem is not None:
        raise problem
    _compare(rows)
    start = 1 + len(_AGREED)
    queries, tokens = ([row[start + index] for row in rows] for index in range(_SIZES))
    if not causal:  # all positions alike: everything sees everything
        keys = [_alike(count) for count in tokens]
        query_pieces = _alike(queries[ring.rank])
    elif terms.positions is not None:
        keys = [_unpacked(row[start + _SIZES :]) for row in rows]
    else:
        keys = [pieces_of_runs(runs) for runs in _runs(tokens, "keys", layout)]
        last_aligned = sum(tokens) - sum(queries)
        query_pieces = pieces_of_runs(_runs(queries, "queries", layout)[ring.rank], last_aligned)
    terms = _for_the_batch(terms, query.shape[0])
    return Plan(ring, scale_of(query, terms), query_pieces, tuple(keys), tuple(tokens), terms)


def _own_terms(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, key_mask: Tensor | None,
    segments: Tensor | tuple[Tensor, Tensor] | None, positions: Tensor | tuple[Tensor, Tensor] | None,
    scale: float | None, layout: Layout,
) -> Terms:  # fmt: skip
    check_heads(query, key, value)
    if query.dtype not in _DTYPES:
        raise InputError(f"query has dtype {query.dtype}; expected one of {', '.join(map(str, _DTYPES))}.")
    if layout not in get_args(Layout):
        shard_runs(0, 0, 1, layout)  # says which there are
    if isinstance(positions, Tensor):
        positions = (positions, positions)
    return make_terms(
        batch=query.shape[0], heads=query.shape[1], queries=query.shape[2], keys=key.shape[2], causal=causal,
        key_mask=key_mask, segments=segments, positions=positions if causal else None, scale=scale,
    )  # fmt: skip


def _agreed(query: Tensor, key: Tensor, value: Tensor, terms: Terms, layout: Layout) -> list[int]:
    """Numbers that must be the same on every rank, in the order of `_AGREED`."""
    grad = torch.is_grad_enabled() and any(item.requires_grad for item in (query, key, value))
    scale = struct.unpack("<q", struct.pack("<d", scale_of(query, terms)))[0]
    return [
        query.shape[0], query.shape[1], key.shape[1], query.shape[3], value.shape[3], _DTYPES.index(query.dtype),
        int(terms.causal), get_args(Layout).index(layout), scale, int(terms.key_mask is not None),
        int(terms.segments is not None), int(terms.positions is not None), int(grad),
    ]  # fmt: skip


def _compare(rows: list[list[int]]) -> None:
    for rank, row in enumerate(rows):
        if not row[0]:
            raise InputError(f"Rank {rank} refused its arguments; its own error says why.")
    first = rows[0]
    for rank, row in enumerate(rows):
        differing = [name for name, mine, other in zip(_AGREED, row[1:], first[1:], strict=False) if mine != other]
        if differing:
            raise InputError(
                f"Rank {rank} differs from rank 0 in {', '.join(differing)}; "
                "ranks may differ in the number of their tokens only."
            )


def _runs(counts: list[int], name: str, layout: Layout) -> list[tuple[range, ...]]:
    """The positions of every rank's tokens."""
    world = len(counts)
    if layout == "contiguous":  # any lengths have an order
        starts = [sum(counts[:rank]) for rank in range(world)]
        return [(range(start, start + count),) if count else () for start, count in zip(starts, counts, strict=True)]
    runs = [shard_runs(sum(counts), rank, world, layout) for rank in range(world)]
    expected = [sum(map(len, own)) for own in runs]
    if counts != expected:
        raise InputError(
            f"Shards have {counts} {name}; layout 'zigzag' gives {expected}. "
            "Cut the sequence with shard_sequence, or pass `positions`."
        )
    return runs


def _alike(count: int) -> tuple[Piece, ...]:
    return (Piece(0, count, 0, 0, False),) if count else ()


def _packed(pieces: tuple[Piece, ...]) -> list[int]:
    numbers = [int(number) for piece in pieces for number in piece]
    return [len(pieces), *numbers, *[0] * (MOST_PIECES * _PIECE - len(numbers))]


def _unpacked(numbers: list[int]) -> tuple[Piece, ...]:
    count, values = numbers[0], numbers[1:]
    rows = [values[index * _PIECE : (index + 1) * _PIECE] for index in range(count)]
    return tuple(Piece(start, stop, first, last, bool(rising)) for start, stop, first, last, rising in rows)


def _for_the_batch(terms: Terms, batch: int) -> Terms:
    """Terms as tensors of one form on every rank, so that neighbours know what to receive: (batch, token) int64."""

    def whole(item: Tensor) -> Tensor:
        return item.expand(batch, -1).to(torch.int64).contiguous()

    return terms.replace(
        key_mask=None if terms.key_mask is None else terms.key_mask.expand(batch, -1).contiguous(),
        segments=None if terms.segments is None else (whole(terms.segments[0]), whole(terms.segments[1])),
        positions=None if terms.positions is None else (whole(terms.positions[0]), whole(terms.positions[1])),
    )
