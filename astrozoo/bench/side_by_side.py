"""Tasks in processes of their own: they get ready at the same time, and are measured one after the other.

Getting ready is what takes long and disturbs nobody who does the same: `torch.compile`, mostly Python and a C++
compiler. A measurement wants its device for itself. So each process prepares, says so, and rests until it is its turn:
one at a time on each device, and only once no other still prepares.

    outcomes = side_by_side(tasks, prepare, measure, jobs=16, minutes=5)
    for task in tasks:
        print(task.name, outcomes[task.name].failure or outcomes[task.name].value)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from typing import Any, Protocol, TypeVar

__all__ = ["Outcome", "Task", "devices", "first_line", "side_by_side"]

COMPILERS = "2"  # processes that Inductor starts for each of ours; its default is one for every core
READY = 2 / 3  # of the time at most, for getting ready
_NO_END = float("inf")
_LEAVES = 10.0  # seconds that a process gets to end by itself, so that it takes its own helpers and semaphores along


class Task(Protocol):
    """What a process works on; it is pickled."""

    @property
    def name(self) -> str:
        """Of which there is one only."""

    @property
    def device(self) -> str:
        """Tasks of one device are measured one after the other."""


AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        value: What it measured.
        failure: Why there is none: what it raised, that it was late, or how its process ended. Empty if it succeeded.
    """

    value: Any = None
    failure: str = ""


def side_by_side(
    tasks: Sequence[AnyTask],
    prepare: Callable[[AnyTask], Any],
    measure: Callable[[AnyTask, Any], Any],
    *,
    jobs: int,
    minutes: float | None = None,
) -> dict[str, Outcome]:
    """Prepare all tasks, then measure those of a device one after the other, each in a process of its own.

    A task that fails, whose process dies or that is late loses its own result, and no other's. With one job a task is
    measured as soon as it is ready, and the next begins when it has ended.

    Args:
        tasks: Each with its own name.
        prepare: A function of a module, called in the task's process; what it returns stays there.
        measure: A function of a module, called with the task and what `prepare` returned; its result is pickled.
        jobs: Tasks that get ready at a time. All that are ready keep their memory until they have been measured.
        minutes: For everything. Whoever is not ready after two thirds of it is left out; whoever is not measured at
            the end, too.

    Raises:
        ValueError: There is no job, or two tasks have one name.
    """
    names = [task.name for task in tasks]
    if jobs < 1 or len(set(names)) < len(names):
        raise ValueError(f"expected at least one job and tasks of different names, got {jobs} jobs and {names}.")
    start = time.monotonic()
    deadline = start + 60 * minutes if minutes is not None else _NO_END
    if jobs > 1:
        ready_by = start + 60 * minutes * READY if minutes is not None else _NO_END
        return _Group(tasks, prepare, measure).run(jobs, ready_by, deadline)
    outcomes: dict[str, Outcome] = {}
    for task in tasks:
        outcomes |= _Group([task], prepare, measure).run(1, deadline, deadline)
    return outcomes


def devices(device: str, count: int) -> list[str]:
    """The device of each of `count` tasks: `cuda` shares them out among all GPUs, any other name is all tasks'."""
    if device == "cuda":
        import torch

        gpus = max(torch.cuda.device_count(), 1)
        return [f"cuda:{index % gpus}" for index in range(count)]
    return [device] * count


def first_line(error: BaseException) -> str:
    """Kind of the error, and the first line of what it says; with the next, where that ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((count for count, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return ": ".join([type(error).__name__, " ".join(lines[:told])[:300]]) if lines else type(error).__name__


class _Group:
    """Tasks that get ready together."""

    def __init__(self, tasks: Iterable[Any], prepare: Callable[..., Any], measure: Callable[..., Any]) -> None:
        self.tasks, self.steps = list(tasks), (prepare, measure)
        self.outcomes: dict[str, Outcome] = {}
        self.workers: dict[str, _Worker] = {}

    def run(self, jobs: int, ready_by: float, deadline: float) -> dict[str, Outcome]:
        try:
            ready = self._ready(jobs, ready_by)
            self._measure(ready, deadline)
        finally:
            for name in list(self.workers):
                self._end(name, Outcome(failure="was not measured in time"))
        return {task.name: self.outcomes[task.name] for task in self.tasks}

    def _ready(self, jobs: int, ready_by: float) -> list[Any]:
        """Start processes, never more than `jobs` that are not ready; the tasks that are ready in time."""
        context = multiprocessing.get_context("spawn")
        waiting, preparing, ready = list(self.tasks), set[str](), []
        while (waiting or preparing) and time.monotonic() < ready_by:
            while waiting and len(preparing) < jobs:
                task = waiting.pop(0)
                self.workers[task.name] = _Worker(context, task, *self.steps)
                preparing.add(task.name)
            for name, outcome in self._answers(preparing, ready_by).items():
                preparing.remove(name)
                if outcome.failure:
                    self._end(name, outcome)
                else:
                    ready.append(name)
        for name in [*preparing, *(task.name for task in waiting)]:
            self._end(name, Outcome(failure="was not ready in time"))
        return [task for task in self.tasks if task.name in ready]

    def _measure(self, tasks: list[Any], deadline: float) -> None:
        """Give the tasks of each device their turn."""
        queues: dict[str, list[str]] = {}
        for task in tasks:
            queues.setdefault(task.device, []).append(task.name)
        turns: dict[str, str] = {}  # whose turn it is, by device
        while any(queues.values()) and time.monotonic() < deadline:
            for device, queue in queues.items():
                if queue and device not in turns:
                    turns[device] = queue[0]
                    self.workers[queue[0]].go()
            for name, outcome in self._answers(set(turns.values()), deadline).items():
                self._end(name, outcome)
                device = next(device for device, at_turn in turns.items() if at_turn == name)
                queues[device].remove(turns.pop(device))

    def _answers(self, names: set[str], deadline: float) -> dict[str, Outcome]:
        """What the next of these to answer say; nothing if none does before the deadline."""
        pipes = {self.workers[name].pipe: name for name in names}
        left = deadline - time.monotonic()
        found = wait(list(pipes), timeout=None if left == _NO_END else max(left, 0))
        return {name: self.workers[name].answer() for pipe, name in pipes.items() if pipe in found}

    def _end(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        if name in self.workers:
            self.workers.pop(name).end()


class _Worker:
    """The process of a task, and the pipe to it."""

    def __init__(self, context: SpawnContext, task: Task, *steps: Callable[..., Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(task, *steps, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.turn = self.done = False

    def go(self) -> None:
        """Tell it to measure."""
        with contextlib.suppress(OSError):  # it died while it rested, which its answer will tell
            self.pipe.send("go")
        self.turn = True

    def answer(self) -> Outcome:
        """What it sent, or how it ended."""
        try:
            outcome: Outcome = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(10)
            return Outcome(failure=f"its process ended with exit status {self.process.exitcode}")
        self.done = self.turn or bool(outcome.failure)
        return outcome

    def end(self) -> None:
        """By itself if it has nothing left to do; a late one at once, as it would disturb those that are measured."""
        if self.done:
            self.process.join(_LEAVES)
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _work(task: Task, prepare: Callable[..., Any], measure: Callable[..., Any], pipe: Connection) -> None:
    """Get ready, say so, wait for the turn, measure."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", COMPILERS)
    cuda = task.device.startswith("cuda")
    state: list[Any] = []

    def first() -> None:
        if cuda:
            import torch

            # Kernels run on the GPU, and threads of many processes would only be in each other's way. On the CPU the
            # kernels are what is measured: they get the threads that the environment gives them.
            torch.set_num_threads(1)
            torch.cuda.set_device(task.device)
        state.append(prepare(task))
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what the others need while this one rests

    ready = _told(first)
    pipe.send(ready)
    if ready.failure:
        return
    pipe.recv()
    outcome = _told(lambda: measure(task, *state))
    try:
        pipe.send(outcome)
    except Exception as error:  # pickled before anything is written, so that the pipe is still in order
        pipe.send(Outcome(failure=f"its result cannot be sent: {first_line(error)}"))


def _told(work: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(work())
    except Exception as error:  # of whatever kind: it is a finding about this task alone
        return Outcome(failure=first_line(error))
