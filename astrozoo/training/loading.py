"""Batches, from worker processes where asked: errors arrive as they were raised, and no worker outlives the run.

PyTorch's loader turns an error in a worker into one whose message is a traceback, reports a killed worker as a
RuntimeError wherever the trainer happens to be, and leaves workers running while somebody holds the traceback of either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from astrozoo.batch import Batch
from astrozoo.errors import AstrozooError
from astrozoo.training.order import SeededSamples, leave_signals_to_trainer
from astrozoo.training.protocol import Samples

__all__ = ["Batches", "explain_dead_worker"]


class Batches:
    """Batches of samples, again from the start of the sampler with every iteration.

    Args:
        samples: A split of the data.
        collate: Makes a batch of samples.
        sampler: Gives the indices of each batch.
        workers: Processes that load; 0 loads in this one.
        pin: Put batches into memory that a GPU reads directly.
    """

    def __init__(
        self,
        samples: Samples,
        collate: Callable[[Sequence[Batch]], Batch],
        sampler: Any,
        *,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            _Guarded(samples) if workers else SeededSamples(samples),  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=_Collate(collate) if workers else collate,
            num_workers=workers,
            worker_init_fn=leave_signals_to_trainer,
            persistent_workers=workers > 0,
            pin_memory=pin,
            generator=torch.Generator(),
        )
        self._iterator: Any = None

    def __iter__(self) -> Iterator[Batch]:
        self._iterator = iter(self._loader)
        for batch in self._iterator:
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch

    def close(self) -> None:
        """End the worker processes. They do not end by themselves while an error's traceback holds the loader."""
        shutdown = getattr(self._iterator, "_shutdown_workers", None)  # torch has no public name for it
        self._iterator = self._loader._iterator = None
        if shutdown is not None:
            with contextlib.suppress(RuntimeError):  # a worker that dies now is one that is no longer needed
                shutdown()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Failure:
    """An error of ours on its way from a worker to the trainer."""

    def __init__(self, error: AstrozooError) -> None:
        self.error = error


class _Guarded(SeededSamples):
    """In workers, our own errors as values; others are somebody's bug, whose traceback PyTorch passes on."""

    def __getitems__(self, chunk: Sequence[int]) -> Any:
        try:
            return super().__getitems__(chunk)
        except AstrozooError as error:
            if get_worker_info() is None:
                raise
            return _Failure(error)


class _Collate:
    def __init__(self, collate: Callable[[Sequence[Batch]], Batch]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        if isinstance(samples, _Failure):
            return samples
        try:
            return self.collate(samples)
        except AstrozooError as error:
            return _Failure(error)


def explain_dead_worker(error: BaseException) -> str | None:
    """What to do about `error` if it is about a worker process that has died; None for any other."""
    text = str(error).strip().splitlines()
    if not isinstance(error, RuntimeError) or not text or not text[0].startswith("DataLoader worker (pid"):
        return None
    died = text[0].removeprefix("DataLoader worker ").rstrip(". ")
    return (
        f"a worker process that loads data died {died}. Often that is the system, short of memory (or of /dev/shm, in "
        f"containers): lower num_workers or batch_size. A crash of a library in it shows with num_workers=0."
    )
