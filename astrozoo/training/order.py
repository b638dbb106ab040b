"""The order of the data: which samples each process sees in each step, known without touching the data.

A pure function of (seed, epoch, step), so that training resumes anywhere without replaying what came before, and so
that any number of processes and micro-batches sees the same samples in the same step.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from astrozoo.batch import Batch
from astrozoo.errors import ConfigError, DataError

__all__ = ["Chunk", "DataOrder", "SeededSamples", "hold_signals", "leave_signals_to_trainer"]

_HELD = (signal.SIGINT, signal.SIGTERM)


class Chunk(list[int]):
    """Indices of one micro-batch; `seed` makes random transforms in worker processes repeatable."""

    seed: tuple[int, ...] = ()


class DataOrder:
    """A batch sampler for `torch.utils.data.DataLoader`: micro-batches of one process, from a position on.

    An iteration may go on through several epochs, so that processes that load data never run dry between two.

    Attributes:
        steps: Optimiser steps per epoch.
        epoch, start: Where the next iteration begins: in that epoch, with that step.
        epochs: How many epochs it goes through, the first of them from `start` on.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        accumulate: int = 1,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.parts = accumulate * processes
        if batch_size < self.parts:
            raise ConfigError(
                f"batch_size is {batch_size}; expected at least {self.parts}, one sample for each of {processes} "
                f"processes x {accumulate} micro-batches (batch_size counts all of them together)."
            )
        self.length, self.batch_size, self.accumulate = length, batch_size, accumulate
        self.processes, self.rank, self.seed = processes, rank, seed
        self.steps = length // batch_size if drop_last else -(-length // batch_size)
        if self.steps == 0:
            raise DataError(f"{length} training samples do not fill one batch of {batch_size}; set drop_last=false.")
        self.epoch = self.start = 0
        self.epochs = 1

    def __len__(self) -> int:
        return (self.epochs * self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[Chunk]:
        first, start = self.epoch, self.start
        for epoch in range(first, first + self.epochs):
            yield from self._epoch(epoch, start if epoch == first else 0)

    def _epoch(self, epoch: int, start: int) -> Iterator[Chunk]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        for step in range(start, self.steps):
            samples = order[step * self.batch_size : (step + 1) * self.batch_size]
            bounds = self._bounds(len(samples))
            for micro in range(self.accumulate):
                part = micro * self.processes + self.rank
                # A process without samples still takes part in the collective operations, with weight 0.
                chunk = Chunk(samples[bounds[part] : bounds[part + 1]].tolist() or samples[:1].tolist())
                chunk.seed = (self.seed, epoch, step, part)
                yield chunk

    def weights(self, step: int) -> list[float]:
        """Factors of the micro-batches' mean losses; gradients averaged over processes are then those of the batch."""
        size = min(self.batch_size, self.length - step * self.batch_size)
        bounds = self._bounds(size)
        parts = [micro * self.processes + self.rank for micro in range(self.accumulate)]
        return [self.processes * (bounds[part + 1] - bounds[part]) / size for part in parts]

    def _bounds(self, size: int) -> list[int]:
        return [part * size // self.parts for part in range(self.parts + 1)]


class SeededSamples:
    """A data set whose worker processes draw random numbers that depend only on seed, epoch and step.

    In the main process the global generators are used as they are: their state is part of a checkpoint.
    """

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        return self.samples[index]

    def __getitems__(self, chunk: Sequence[int]) -> list[Batch]:
        seed = getattr(chunk, "seed", None)
        if seed:
            _seed_worker(seed)
            if hasattr(self.samples, "set_epoch"):  # here, because worker processes hold copies of the samples
                self.samples.set_epoch(seed[1])
        together = getattr(self.samples, "__getitems__", None)
        return together(chunk) if together is not None else [self.samples[index] for index in chunk]


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block ends; what is forked in it holds them until it is ready for them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where no group of processes gets them
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_trainer(_worker: int) -> None:
    """Let a worker process outlive the Ctrl-C or SIGTERM that a whole group gets: the trainer still needs its batches.

    A second SIGTERM ends it, which is how a trainer that gives up ends a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def _seed_worker(seed: Sequence[int]) -> None:
    from torch.utils.data import get_worker_info

    if get_worker_info() is None:
        return
    import random

    import torch

    words = np.random.SeedSequence(seed).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002  transforms of other libraries draw from the global generator
    torch.manual_seed(int(words[2]))
