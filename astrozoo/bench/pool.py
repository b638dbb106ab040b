"""Independent jobs over several processes that share out the GPUs: results as they come, no failure that stops others.

    for done in run_jobs(train_one, cells, jobs=8, device="cuda", minutes=30):
        print(done.job, done.result if done.error is None else done.error)

A process serves one job after the other, so that what starting costs (imports, a CUDA context) is paid once in each.
"""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Done", "run_jobs"]

_PATIENCE = 1.0  # seconds between looks at whether the processes live


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
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            if time.monotonic() > deadline:
                return
            yield _done(function, job, _device(device, 0))
        return
    yield from _spread(function, jobs, [_device(device, rank) for rank in range(min(processes, len(jobs)))], deadline)


def _spread(
    function: Callable[[Any, str], Any], jobs: Sequence[Any], devices: Sequence[str], deadline: float
) -> Iterator[Done]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    waiting, told = context.Queue(), context.Queue()
    for index in range(len(jobs)):
        waiting.put(index)
    for _ in devices:
        waiting.put(None)  # a queue that seems empty may only be slow
    workers = [
        context.Process(target=_work, args=(function, list(jobs), waiting, told, device, deadline), daemon=True)
        for device in devices
    ]
    for worker in workers:
        worker.start()
    running: dict[int, int] = {}  # process to the index of its job
    try:
        while True:
            try:
                pid, index, done = told.get(timeout=_PATIENCE)
            except queue.Empty:
                lost = [worker for worker in workers if worker.pid in running and not worker.is_alive()]
                for worker in lost:  # what it told before it died has been heard by now
                    assert worker.pid is not None
                    job = jobs[running.pop(worker.pid)]
                    yield Done(job, error=f"its process ended with status {worker.exitcode}")
                if not any(worker.is_alive() for worker in workers) and told.empty() and not running:
                    return
                continue
            if done is None:
                running[pid] = index
            else:
                running.pop(pid, None)
                yield done
    finally:
        for worker in workers:
            if worker.is_alive():  # whoever asked for the results wants no more of them
                worker.terminate()
            worker.join()


def _work(
    function: Callable[[Any, str], Any], jobs: list[Any], waiting: Any, told: Any, device: str, deadline: float
) -> None:
    import torch

    torch.set_num_threads(1)
    pid = multiprocessing.current_process().pid
    while time.monotonic() < deadline and (index := waiting.get()) is not None:
        told.put((pid, index, None))
        told.put((pid, index, _done(function, jobs[index], device)))


def _done(function: Callable[[Any, str], Any], job: Any, device: str) -> Done:
    try:
        return Done(job, function(job, device))
    except Exception as error:  # one job's failure is a result, and no reason to lose the others'
        text = str(error).strip()
        return Done(job, error=f"{type(error).__name__}: {text.splitlines()[0] if text else ''}")


def _device(device: str, rank: int) -> str:
    """Of a process: with `cuda`, the GPUs are shared out."""
    if device != "cuda":
        return device
    import torch

    count = torch.cuda.device_count()  # starts no CUDA context, which would take memory in a process that only waits
    return f"cuda:{rank % count}" if count else device
