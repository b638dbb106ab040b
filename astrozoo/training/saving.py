"""Files written beside training: the state is copied to the host between two steps, and a thread writes the copy.

A checkpoint is sixteen bytes per weight, and to write, digest and flush them takes seconds in which a GPU would wait.
Files are written one after the other, so at most one copy exists; a copy that would take more than a quarter of the
free memory is not made, and training waits for the file instead. What goes wrong in the thread is raised in the
trainer, at its next step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from astrozoo.training.device import available_memory

__all__ = ["Saver", "copied"]

log = logging.getLogger("astrozoo.training")
T = TypeVar("T")
_SHARE = 4  # of the free memory, one part may hold the copy


class Saver:
    """Runs what writes files, one at a time.

    Args:
        background: Whether in a thread; else at once.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._result: Any = None
        self._done: Callable[[Any], None] = _nothing

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.finish() if kind is None else self.close()

    def fits(self, *groups: Mapping[str, Tensor]) -> bool:
        """Whether these tensors may be copied and written in the background."""
        if not self.background:
            return False
        self.finish()
        needed = sum(item.numel() * item.element_size() for group in groups for item in group.values())
        free = available_memory(torch.device("cpu"))
        return free is None or needed * _SHARE < free

    def save(self, write: Callable[[], T], done: Callable[[T], None] | None = None, *, beside: bool) -> None:
        """Write after what is being written; `done` gets the result, in the trainer's thread, once it has succeeded.

        Raises:
            Exception: What an earlier write, or without `beside` this one, has raised.
        """
        self.finish()
        done = done or _nothing
        if not beside:
            done(write())
            return
        self._done = done
        self._thread = threading.Thread(target=self._run, args=(write,), name="astrozoo-saving")
        self._thread.start()

    def poll(self) -> None:
        """Note a write that has ended; raises what it raised."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written; raises what that raised."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._done(self._result)

    def close(self) -> None:
        """Wait, after another error that is to be reported: one of the write is only logged."""
        try:
            self.finish()
        except Exception as error:
            log.warning("What was being saved could not be written: %s", error)

    def _run(self, write: Callable[[], Any]) -> None:
        try:
            self._result = write()
        except BaseException as error:  # on its way to the trainer
            self._error = error


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host, in the same layout; names of one memory have one copy. Those of a GPU are page-locked."""
    made: dict[tuple[Any, ...], Tensor] = {}
    result = {}
    on_gpu = False
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in made or not tensor.numel():
            cuda = tensor.device.type == "cuda"
            on_gpu = on_gpu or cuda
            made[key] = torch.empty_like(tensor, device="cpu", pin_memory=cuda).copy_(tensor, non_blocking=cuda)
        result[name] = made[key]
    if on_gpu:
        torch.cuda.synchronize()
    return result


def _nothing(_result: Any) -> None:
    pass
