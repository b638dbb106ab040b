"""Which positions of a sequence lie on which rank, and which parts of two shards have to meet under causality.

`contiguous` gives each rank one stretch. Under causality the last rank then computes W times what the first does.
`zigzag` cuts the sequence into 2 W chunks and gives rank r the chunks r and 2 W - 1 - r, as in the context parallelism
of Llama 3 (Grattafiori et al. 2024, arXiv:2407.21783): of any two ranks' shards half the chunks meet, on every rank.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from astrozoo.errors import InputError

__all__ = ["Layout", "Piece", "Product", "pieces_of", "pieces_of_runs", "products", "shard_positions", "shard_runs"]

Layout = Literal["zigzag", "contiguous"]
MOST_PIECES = 2  # what a shard of either layout has


def shard_runs(length: int, rank: int, world: int, layout: Layout = "zigzag") -> tuple[range, ...]:
    """The stretches of positions of a rank, in order; where `length` does not divide, early chunks are longer by one.

    Raises:
        InputError: There is no such layout or rank.
    """
    if layout not in get_args(Layout):
        raise InputError(f"layout is {layout!r}; expected one of {', '.join(map(repr, get_args(Layout)))}.")
    if not 0 <= rank < world:
        raise InputError(f"rank is {rank}; expected 0 to {world - 1} in a world of {world}.")
    count = 2 * world if layout == "zigzag" else world
    size, longer = divmod(length, count)
    starts = [chunk * size + min(chunk, longer) for chunk in range(count + 1)]
    own = (rank, count - 1 - rank) if layout == "zigzag" else (rank,)
    chunks = [range(starts[chunk], starts[chunk + 1]) for chunk in own]
    if len(chunks) == 2 and chunks[0].stop == chunks[1].start:
        chunks = [range(chunks[0].start, chunks[1].stop)]
    return tuple(chunk for chunk in chunks if chunk)


def shard_positions(
    length: int, rank: int, world: int, layout: Layout = "zigzag", *, device: torch.device | str | None = None
) -> Tensor:
    """Positions int64 (local token,) in the whole sequence of the tokens that lie on a rank.

    Args:
        length: Tokens of the whole sequence.
        rank: Rank within the group.
        world: Ranks of the group.
        layout: `zigzag`, where causal attention costs every rank the same, or `contiguous`.
        device: Where to put the result.

    Raises:
        InputError: There is no such layout or rank.
    """
    runs = shard_runs(length, rank, world, layout)
    aranges = [torch.arange(run.start, run.stop, device=device) for run in runs]
    return torch.cat(aranges) if aranges else torch.empty(0, dtype=torch.int64, device=device)


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a shard; their positions lie between `first` and `last`.

    `rising` says that the positions rise by one from token to token.
    """

    start: int
    stop: int
    first: int
    last: int
    rising: bool


class Product(NamedTuple):
    """Queries and keys, by their place in their shards, that have to meet.

    Attributes:
        queries: Tokens of the shard of queries.
        keys: Tokens of the shard of keys.
        kind: `full` where every query sees every key, `causal` where the i-th sees the first i + 1, `partial` where
            positions have to be compared.
    """

    queries: range
    keys: range
    kind: Literal["full", "causal", "partial"]


def pieces_of_runs(runs: tuple[range, ...], shift: int = 0) -> tuple[Piece, ...]:
    """Pieces of a shard whose tokens have the positions `runs`, each plus `shift`."""
    pieces, start = [], 0
    for run in runs:
        pieces.append(Piece(start, start + len(run), run.start + shift, run.stop - 1 + shift, True))
        start += len(run)
    return tuple(pieces)


def pieces_of(positions: Tensor) -> tuple[Piece, ...]:
    """Pieces of a shard with any positions (batch, token); reads their values, which waits for an accelerator.

    Positions that do not fall into few stretches common to the batch make one piece.
    """
    length = positions.shape[1]
    if positions.numel() == 0:
        return ()
    row = positions[0]
    if bool((positions == row).all()):
        breaks = (torch.nonzero(row.diff() != 1)[:MOST_PIECES, 0] + 1).tolist()
        if len(breaks) < MOST_PIECES:
            bounds = [0, *breaks, length]
            firsts = row[bounds[:-1]].tolist()
            starts = zip(bounds[:-1], bounds[1:], firsts, strict=True)
            return tuple(Piece(start, stop, first, first + stop - start - 1, True) for start, stop, first in starts)
    lowest, highest = torch.stack(torch.aminmax(positions)).tolist()
    return (Piece(0, length, lowest, highest, False),)


def products(queries: tuple[Piece, ...], keys: tuple[Piece, ...]) -> list[Product]:
    """What has to be computed between two shards, in as few products as possible; nothing wholly in the future."""
    if queries == keys and _ascend(queries):  # a triangle in local order too
        whole = range(queries[-1].stop)
        return [Product(whole, whole, "causal")]
    found = []
    for query in queries:
        for key in keys:
            if key.first <= query.last:
                kind: Literal["full", "partial"] = "full" if key.last <= query.first else "partial"
                found.append(Product(range(query.start, query.stop), range(key.start, key.stop), kind))
    return _join(_join(found, "keys"), "queries")


def _ascend(pieces: tuple[Piece, ...]) -> bool:
    ordered = all(before.last < after.first for before, after in itertools.pairwise(pieces))
    return bool(pieces) and ordered and all(piece.rising for piece in pieces)


def _join(found: list[Product], along: Literal["queries", "keys"]) -> list[Product]:
    """Join full products that differ only in adjacent stretches of `along`."""
    joined: list[Product] = []
    for item in found:
        before = joined[-1] if joined else None
        if before is not None and before.kind == item.kind == "full":
            if along == "keys" and before.queries == item.queries and before.keys.stop == item.keys.start:
                joined[-1] = before._replace(keys=range(before.keys.start, item.keys.stop))
                continue
            if along == "queries" and before.keys == item.keys and before.queries.stop == item.queries.start:
                joined[-1] = before._replace(queries=range(before.queries.start, item.queries.stop))
                continue
        joined.append(item)
    return joined
