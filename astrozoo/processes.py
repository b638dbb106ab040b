"""Leave a group of processes without an abort at the end of the interpreter."""

from __future__ import annotations

import time
from pathlib import Path

import torch

__all__ = ["leave_process_group"]


def leave_process_group(patience: float = 2.0) -> None:
    """Close the process group while the interpreter is whole, and wait up to `patience` s until gloo's threads rest.

    Such a thread drops the tensors of a collective a moment after the collective has returned, and takes the
    interpreter for that. Python before 3.14 kills a thread that asks for an interpreter in its finalisation, which
    aborts the process (pytorch issue 190489). `destroy_process_group` would join the threads, but DDP keeps its group.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    deadline, quiet = time.monotonic() + patience, 0
    while quiet < 5 and time.monotonic() < deadline:
        time.sleep(0.01)  # gives the interpreter to a thread that waits for it
        quiet = 0 if _gloo_runs() else quiet + 1


def _gloo_runs() -> bool:
    """Whether a thread that runs gloo's collectives is not asleep; False where threads cannot be looked at."""
    for thread in Path("/proc/self/task").glob("*/stat"):
        try:
            name, state = thread.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # the thread ended
            continue
        if name.startswith("pt_gloo") and state.split()[0] != "S":
            return True
    return False
