"""Cut a sequence into the shards of the ranks, and put it together again."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed

from astrozoo.attention.sequence_parallel.layout import Layout, shard_runs
from astrozoo.attention.sequence_parallel.transport import all_gather_numbers, ring_of
from astrozoo.errors import InputError

__all__ = ["gather_sequence", "shard_sequence"]


def shard_sequence(
    x: Tensor,
    dim: int,
    *,
    group: Any = None,
    rank: int | None = None,
    world: int | None = None,
    layout: Layout = "zigzag",
) -> Tensor:
    """The part of a whole sequence that lies on one rank; differentiable.

    Args:
        x: Any tensor with the whole sequence along `dim`, of any length; costs balance exactly under `zigzag` where
            twice the number of ranks divides it.
        dim: The dimension of tokens.
        group: Process group whose member this process is; None for this process alone.
        rank: Instead of a group: which shard.
        world: Instead of a group: of how many.
        layout: `zigzag` or `contiguous`.

    Raises:
        InputError: There is no such layout or rank, or only one of `rank` and `world` is given.
        BackendUnavailableError: A group is given where there is none.
    """
    if (rank is None) != (world is None) or (rank is not None and group is not None):
        raise InputError(f"Got group {group}, rank {rank}, world {world}; expected a group, or both rank and world.")
    if rank is None or world is None:
        ring = ring_of(group)
        rank, world = ring.rank, ring.world
    runs = shard_runs(x.shape[dim], rank, world, layout)
    return torch.cat([x.narrow(dim, run.start, len(run)) for run in runs or (range(0),)], dim=dim)


@torch.no_grad()
def gather_sequence(x: Tensor, dim: int, *, group: Any = None, layout: Layout = "zigzag") -> Tensor:
    """The whole sequence, on every rank, from shards as `shard_sequence` cuts them; without gradient.

    Args:
        x: The shard of this rank; ranks differ in nothing but the tokens along `dim`.
        dim: The dimension of tokens.
        group: Process group; None for this process alone.
        layout: What the sequence was cut with.

    Raises:
        InputError: The lengths of the shards are not those that the layout gives.
        BackendUnavailableError: A group is given where there is none.
    """
    ring = ring_of(group)
    lengths = [row[0] for row in all_gather_numbers(ring, [x.shape[dim]], x.device)]
    runs = [shard_runs(sum(lengths), rank, ring.world, layout) for rank in range(ring.world)]
    expected = [sum(map(len, own)) for own in runs]
    if lengths != expected:
        raise InputError(f"Shards have {lengths} tokens along dimension {dim}; layout {layout!r} gives {expected}.")
    if ring.world == 1:
        return x.detach().clone()
    shards = _all_gather(x.detach().movedim(dim, 0), lengths, group)
    whole = x.new_empty((sum(lengths), *shards[0].shape[1:]))
    for shard, own in zip(shards, runs, strict=True):
        start = 0
        for run in own:
            whole[run.start : run.stop] = shard[start : start + len(run)]
            start += len(run)
    return whole.movedim(0, dim).contiguous()


def _all_gather(shard: Tensor, lengths: list[int], group: Any) -> list[Tensor]:
    """The shards (token, ...) of all ranks; collectives want one size and few dtypes, so padded bytes travel."""
    row = math.prod(shard.shape[1:]) * shard.element_size()  # bytes of a token
    own = torch.zeros(max(lengths) * row, dtype=torch.uint8, device=shard.device)
    own[: len(shard) * row] = shard.contiguous().view(-1).view(torch.uint8)
    buffers = [torch.empty_like(own) for _ in lengths]
    distributed.all_gather(buffers, own, group=group)
    return [
        buffer[: length * row].view(shard.dtype).view(length, *shard.shape[1:])
        for buffer, length in zip(buffers, lengths, strict=True)
    ]
