"""Exact softmax attention over a sequence that is split over several processes; keys and values travel round a ring.

Liu et al. 2023 (arXiv:2310.01889). No process ever holds all keys, transfers overlap with computation, and with the
`zigzag` layout all processes work equally under causality. Outputs and gradients equal those of one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astrozoo.attention.cache import Cache
from astrozoo.attention.module import Attention, AttentionConfig, Parts, implement
from astrozoo.attention.sequence_parallel import ring_attend, shard_positions
from astrozoo.attention.terms import Terms
from astrozoo.errors import BackendUnavailableError, InputError, UnsupportedArgument
from astrozoo.nn.checks import one_of
from astrozoo.registry.spec import Paper

__all__ = ["Ring", "RingConfig", "ring"]


@dataclass(frozen=True, kw_only=True)
class RingConfig(AttentionConfig):
    """As `AttentionConfig`, and more.

    Attributes:
        group: The processes that share a sequence: `"world"` for all, a process group, or None for one process, where
            it is attention on the backend chain.
        layout: How the sequence was cut, by `astrozoo.attention.sequence_parallel.shard_sequence`: `zigzag`, in which
            each process has an early and a late piece, or `contiguous`.
    """

    group: Any = None
    layout: str = "zigzag"

    def __post_init__(self) -> None:
        AttentionConfig.__post_init__(self)
        one_of(self, ("zigzag", "contiguous"), "layout")
        if self.dropout > 0 and self.group is not None:
            raise UnsupportedArgument("Attention 'ring' drops no weights across processes; leave dropout at 0.")


class Ring(Attention):
    """Attention from the tokens of this process to those of all processes of the group.

    Every process calls it with its own shard (batch, local token, dim), in the same order, and runs the backward pass
    if one does. `positions` are those in the whole sequence; without them they follow from the layout.
    """

    @property
    def group(self) -> Any:
        """The process group, or None for one process.

        Raises:
            BackendUnavailableError: The group is `"world"` and there are no processes that can talk to each other.
        """
        if self.config.group != "world":
            return self.config.group
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise BackendUnavailableError(
                "group='world' needs torch.distributed: start with torchrun and call init_process_group first."
            )
        return torch.distributed.group.WORLD

    def place(
        self, parts: Parts, terms: Terms, cache: Cache | None, positions: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Parts, Terms]:
        """As `Attention.place`, with positions in the whole sequence."""
        if self.config.rope is not None and positions[0] is None and self.config.group is not None:
            placed = self._positions(parts[0].shape[2], parts[1].shape[2], parts[0].device)
            positions = (placed, placed)
        return super().place(parts, terms, cache, positions)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attention to the keys of all processes."""
        if self.config.group is None:
            return super().attend(query, key, value, terms)
        return ring_attend(
            query, key, value, group=self.group, causal=terms.causal, key_mask=terms.key_mask, segments=terms.segments,
            positions=terms.positions, scale=terms.scale, layout=self.config.layout,
        )[0]  # fmt: skip

    def _positions(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Positions (1, local token) of this process's shard, if all are of one length."""
        group = self.group
        world, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
        lengths = torch.tensor([queries, -queries, keys, -keys], device=device)
        torch.distributed.all_reduce(lengths, torch.distributed.ReduceOp.MAX, group=group)
        most, least = int(lengths[0]), -int(lengths[1])
        if most != least or queries != keys:
            raise InputError(
                f"Shards have {least} to {most} tokens: rotary positions follow from the layout only where all are of "
                "one length and keys come from the same sequence. Pass positions."
            )
        placed = shard_positions(queries * world, rank, world, self.config.layout)
        return placed.to(device)[None]


ring = implement(
    Ring,
    RingConfig,
    name="ring",
    summary="exact attention with the sequence split over ranks, keys and values rotate",
    exactness="exact: equals flash, outputs and gradients, on 1, 2, 4 ranks",
    cost="N^2 d / W",
    causal=True,
    cross=True,
    masks=("key_mask", "segments"),
    grouped_query=True,
    cache=None,
    paper=Paper(
        authors="Liu, Zaharia, Abbeel",
        year=2023,
        title="Ring Attention with Blockwise Transformers for Near-Infinite Context",
        arxiv="2310.01889",
    ),
)
