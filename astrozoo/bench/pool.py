"""Independent jobs over several processes that share out the GPUs: results as they come, no failure that stops others.

    for done in run_jobs(train_one, cells, jobs=8, device="cuda", minutes=30):
        print(done.job, done.result if done.error is None else done.error)

A process serves one job after the other, so that what starting costs (imports, a CUDA context) is paid once in each.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from astrozoo.bench.side_by_side import devices, first_line

__all__ = ["Done", "run_jobs"]


@dataclass(frozen=True)
class Done:
    """A job that has ended.

    Attributes:
        job: Which.
        result: What it returned; None if it failed.
        error: Type and first line of what it raised, or how its process ended; None if it did not fail.
    """

    job: Any
    result: Any = None
    error: str | None = None


def run_jobs(
    function: Callable[[Any, str], Any], jobs: Sequence[Any], *, processes: int, device: str, minutes: float | None
) -> Iterator[Done]:
    """Call `function(job, device)` for every job, and yield each as it ends. Jobs that were not begun are not yielded.

    Args:
        function: Defined at the top of a module, or a `functools.partial` of one: it is sent to other processes.
        jobs: Begun in this order. They and their results can be pickled.
        processes: How many jobs run side by side, each in a process with one thread of PyTorch's; with 1 they run in
            this process, with its threads.
        device: Of the jobs; `cuda` shares out all GPUs among the processes.
        minutes: No job is begun after this time; those that run then are waited for. None: no limit.
    """
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    places = devices(device, max(1, min(processes, len(jobs))))
    if len(places) == 1:
        for job in jobs:
            if time.monotonic() >= deadline:
                return
            yield _done(function, job, places[0])
        return
    yield from _spread(function, jobs, places, deadline)


def _spread(
    function: Callable[[Any, str], Any], jobs: Sequence[Any], places: Sequence[str], deadline: float
) -> Iterator[Done]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    waiting = list(reversed(jobs))
    working: dict[Any, tuple[Any, str, Any]] = {}  # connection to process, its device, and its job

    def begin(device: str) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(function, theirs, device), daemon=True)
        process.start()
        theirs.close()  # else its end would not be seen here
        give(ours, process, device)

    def give(pipe: Any, process: Any, device: str) -> None:
        if waiting and time.monotonic() < deadline:
            working[pipe] = process, device, waiting.pop()
            with contextlib.suppress(OSError):  # it has died, as its end of the pipe tells next
                pipe.send(working[pipe][2])
        else:
            working.pop(pipe, None)
            pipe.close()  # which ends it
            process.join()

    try:
        for device in places:
            if waiting and time.monotonic() < deadline:
                begin(device)
        while working:
            ready: list[Any] = wait(list(working))
            for pipe in ready:
                process, device, job = working[pipe]
                try:
                    done = pipe.recv()
                except (EOFError, OSError):
                    del working[pipe]
                    process.join()
                    done = Done(job, error=f"its process ended with status {process.exitcode}")
                    if waiting and time.monotonic() < deadline:
                        begin(device)
                else:
                    give(pipe, process, device)
                yield done
    finally:
        for process, _, _ in working.values():  # whoever asked for the results wants no more of them
            process.terminate()
            process.join()


def _work(function: Callable[[Any, str], Any], pipe: Any, device: str) -> None:
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(EOFError):  # there are no more jobs
        while True:
            pipe.send(_done(function, pipe.recv(), device))


def _done(function: Callable[[Any, str], Any], job: Any, device: str) -> Done:
    try:
        return Done(job, function(job, device))
    except Exception as error:  # one job's failure is a result, and no reason to lose the others'
        return Done(job, error=first_line(error))
