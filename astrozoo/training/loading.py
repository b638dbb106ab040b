"""Batches, from worker processes where asked: errors arrive as they were raised, and no worker outlives the run.

PyTorch's loader turns an error in a worker into one whose message is a traceback. It reports a killed worker from a
signal handler, so that the error is raised wherever the trainer happens to be: amid a save, or where Python can only
print it, such as in a lock of `logging`. And it leaves workers running while somebody holds a traceback.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from astrozoo.batch import Batch
from astrozoo.errors import AstrozooError
from astrozoo.training.order import SeededSamples, hold_signals, leave_signals_to_trainer
from astrozoo.training.protocol import Samples

__all__ = ["Batches", "explain_dead_worker"]

_DEAD = "DataLoader worker"  # what torch's own messages about a dead one begin with


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
        self._start()
        while (batch := self._next()) is not None:
            yield batch

    def _start(self) -> None:
        with hold_signals():  # a worker is born with them held, and is ready for them when it lets them come
            self._iterator = iter(self._loader)
        if self._loader.num_workers:
            _open.add(self)
            _keep_deaths()

    def _next(self) -> Batch | None:
        if _deaths and (dead := self._dead_worker()):
            raise RuntimeError(dead)
        try:
            batch = next(self._iterator, None)
        except (OSError, EOFError, RuntimeError) as error:
            # A batch comes through shared memory, whose handle is fetched from the worker: if that is still there.
            dead = "" if "in DataLoader worker process" in str(error) else self._dead_worker()
            if not dead:
                raise
            raise RuntimeError(dead) from error
        if isinstance(batch, _Failure):
            raise batch.error
        return batch

    def _dead_worker(self) -> str:
        """A worker of ours that has died, in torch's words; empty if all are alive."""
        for worker in getattr(self._iterator, "_workers", ()):
            if text := next((text for text in _deaths if f"(pid {worker.pid})" in text), ""):
                return text
            worker.join(0.2)  # a connection may be gone a moment before its process
            if worker.exitcode:
                return f"{_DEAD} (pid {worker.pid}) exited with status {worker.exitcode}"
        return ""

    def close(self) -> None:
        """End the worker processes. They do not end by themselves while an error's traceback holds the loader."""
        shutdown = getattr(self._iterator, "_shutdown_workers", None)  # torch has no public name for it
        self._iterator = self._loader._iterator = None
        _open.discard(self)
        if shutdown is not None:
            shutdown()
        if not _open:
            _deaths.clear()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_open: set[Batches] = set()  # those that may have workers
_deaths: list[str] = []  # of workers while some are open, in torch's words


def _keep_deaths() -> None:
    """While batches are open, let the handler by which torch reports a dead worker note it, for them to raise."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    report = signal.getsignal(signal.SIGCHLD)
    if not callable(report) or hasattr(report, "notes"):
        return

    def note(number: int, frame: Any) -> None:
        try:
            report(number, frame)
        except RuntimeError as error:
            if not _open or not str(error).startswith(_DEAD):
                raise
            _deaths.append(str(error))

    note.notes = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGCHLD, note)


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
    if not isinstance(error, RuntimeError) or not text or not text[0].startswith(f"{_DEAD} (pid"):
        return None
    died = text[0].removeprefix(_DEAD).rstrip(". ").replace(" is killed", " was killed")
    return (
        f"a worker process that loads data{died}. Often that is the system, short of memory (or of /dev/shm, in "
        f"containers): lower num_workers or batch_size. A crash of a library in it shows with num_workers=0."
    )
