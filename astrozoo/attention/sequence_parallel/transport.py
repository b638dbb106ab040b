"""The ring of ranks: what they have to agree on before they start, and the exchange with both neighbours.

Works over any backend of `torch.distributed` with point-to-point messages: gloo on CPU, NCCL on CUDA. A rank that died
or never comes lets the others fail after the timeout of the group, with the error of the backend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from astrozoo.errors import BackendUnavailableError, InputError

__all__ = ["Ring", "RingRecord", "Transfer", "all_gather_numbers", "record_ring", "recording", "ring_of"]


@dataclass
class RingRecord:
    """What this rank did within `record_ring`.

    Attributes:
        forward_products: Products of a block of queries with a block of keys.
        forward_scores: Logits in them, for each head and sequence.
        backward_products: The same for gradients.
        backward_scores: The same for gradients.
        sent_bytes: Keys, values, what masks them, and gradients given to the next rank.
    """

    forward_products: int = 0
    forward_scores: int = 0
    backward_products: int = 0
    backward_scores: int = 0
    sent_bytes: int = 0


_records: list[RingRecord] = []  # not a context variable: CUDA's backward runs in another thread


@contextlib.contextmanager
def record_ring() -> Iterator[RingRecord]:
    """Count the work and the messages of every `ring_attend` within the block, on this rank."""
    record = RingRecord()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


def recording() -> Sequence[RingRecord]:
    """Every record that is open."""
    return _records


@dataclass(frozen=True)
class Ring:
    """Place of this process among the ranks of a group; `group` is None where it is alone."""

    group: Any
    rank: int
    world: int

    def origin(self, step: int) -> int:
        """The rank whose keys are here after `step` exchanges."""
        return (self.rank - step) % self.world

    def exchange(self, tensors: Sequence[Tensor], tokens: int, tag: int = 0) -> Transfer:
        """Start to send `tensors` to the next rank, and to receive their like from the one before.

        Args:
            tensors: Each (batch, token) or (batch, head, token, dim); not to be changed until the transfer is over.
            tokens: Number of tokens of what comes in.
            tag: Of the first message; messages that are under way at one time need different tags.
        """
        if self.world == 1:
            return Transfer(list(tensors), [], [])
        sent = [item.contiguous() for item in tensors]
        received = [item.new_empty(_with_tokens(item, tokens)) for item in sent]
        operations = []
        for index, (out, into) in enumerate(zip(sent, received, strict=True)):
            for operation, item, step in ((distributed.isend, out, 1), (distributed.irecv, into, -1)):
                if item.numel():  # both ends know the lengths
                    peer = distributed.get_global_rank(self.group, (self.rank + step) % self.world)
                    operations.append(distributed.P2POp(operation, item, peer, self.group, tag + index))
        for record in _records:
            record.sent_bytes += sum(item.numel() * item.element_size() for item in sent)
        works = distributed.batch_isend_irecv(operations) if operations else []
        return Transfer(received, works, sent)


@dataclass
class Transfer:
    """Messages under way."""

    _received: list[Tensor]
    _works: list[Any]
    _sent: list[Tensor]  # kept alive until they are away

    def wait(self) -> list[Tensor]:
        """What came in, once both directions are done; a dead neighbour raises after the timeout of the group."""
        for work in self._works:
            work.wait()
        self._works, self._sent = [], []
        return self._received


def _with_tokens(item: Tensor, tokens: int) -> tuple[int, ...]:
    return (item.shape[0], tokens) if item.dim() == 2 else (*item.shape[:2], tokens, item.shape[3])


def ring_of(group: Any) -> Ring:
    """The ring over the ranks of a group, or of this process alone for None.

    Raises:
        BackendUnavailableError: Processes cannot talk to each other here.
        InputError: This process is not in the group.
    """
    if group is None:
        return Ring(None, 0, 1)
    if not distributed.is_available():
        raise BackendUnavailableError("A group was given, but this PyTorch is built without torch.distributed.")
    if not distributed.is_initialized():
        raise BackendUnavailableError(
            "A group was given, but no process group is initialised. Call torch.distributed.init_process_group first."
        )
    rank = distributed.get_rank(group)
    if rank < 0:
        raise InputError("This process is not in the group that was given. Call with it on its members only.")
    return Ring(group, rank, distributed.get_world_size(group))


def all_gather_numbers(ring: Ring, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
    """The numbers of every rank, in their order; each rank gives as many. They travel by way of `device`."""
    if ring.world == 1:
        return [list(numbers)]
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    tables = [torch.empty_like(own) for _ in range(ring.world)]
    distributed.all_gather(tables, own, group=ring.group)
    return [table.tolist() for table in tables]
