"""The faults: what is done, when, how the run may end because of it, and what a user mends afterwards.

Each kind is a function that draws one fault for a run, or returns None where it cannot strike this run as it is.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from astrozoo.bench.faults import weather
from astrozoo.bench.faults.commands import Command
from astrozoo.bench.faults.disk import Disk

__all__ = ["KINDS", "Fault", "Moment", "Run", "Setting"]


@dataclass(frozen=True)
class Setting:
    """How a training is set up.

    Attributes:
        storage: Format of the fields.
        in_memory: Whether they are held in memory, or read for every batch.
        workers: Processes that load data.
    """

    storage: str
    in_memory: bool
    workers: int

    def __str__(self) -> str:
        return f"{self.storage}, {'in memory' if self.in_memory else 'read as needed'}, {self.workers} workers"


@dataclass
class Run:
    """A training that faults strike.

    Attributes:
        setting: How it is set up.
        out: Its folder.
        data: Its fields.
        disk: What it writes to.
        steps: Of the whole training.
        train_steps: Time steps of the training part.
        start: Options of the next start, until it has got going.
    """

    setting: Setting
    out: Path
    data: Path
    disk: Disk
    steps: int
    train_steps: int
    start: list[str] = field(default_factory=list)

    @property
    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.out / "checkpoints").glob("step-*"))

    def saved_bytes(self) -> int:
        """Size of the newest checkpoint."""
        return sum(file.stat().st_size for file in self.checkpoints[-1].iterdir())


@dataclass
class Moment:
    """When to strike.

    Attributes:
        step: After this step is in the log.
        seconds: And so much later.
        amid_save: And as soon as a half-written folder is there.
    """

    step: int = 0
    seconds: float = 0.0
    amid_save: bool = False


@dataclass
class Fault:
    """One fault, drawn.

    Attributes:
        kind: Its name.
        what: In words.
        says: Pattern of the message with which the run stops, where it stops by an error.
        warns: Pattern of a warning that must be there; empty for none.
        statuses: Exit statuses of a run that was ended from outside.
        before: Done before the run starts.
        moment: When `strike` is due.
        strike: Done to the running command.
        mend: What a user does before starting again.
        struck: Whether `strike` found something to strike.
    """

    kind: str
    what: str
    says: str = ""
    warns: str = ""
    statuses: tuple[int, ...] = ()
    before: Callable[[], None] | None = None
    moment: Moment | None = None
    strike: Callable[[Command], None] | None = None
    mend: Callable[[], None] | None = None
    struck: bool = True


def _moment(run: Run, reached: int, draw: random.Random) -> Moment:
    """Some steps ahead, or amid the next save, or early: while the command still imports or reads."""
    kind = draw.choices(("step", "save", "start"), (5, 4, 1))[0]
    if kind == "start":
        return Moment(0, draw.uniform(0.0, 0.5))
    step = min(reached + draw.randint(1, 14), run.steps)
    return Moment(step, draw.uniform(0.0, 0.05), amid_save=kind == "save")


def _kill(run: Run, reached: int, draw: random.Random) -> Fault:
    group = draw.random() < 0.7
    return Fault(
        "kill -9",
        f"SIGKILL to the {'group' if group else 'process'}",
        statuses=(-signal.SIGKILL,),
        moment=_moment(run, reached, draw),
        strike=lambda command: command.send(signal.SIGKILL, group=group),
    )


def _signal(name: str, statuses: tuple[int, ...]) -> Callable[[Run, int, random.Random], Fault]:
    def draw_signal(run: Run, reached: int, draw: random.Random) -> Fault:
        group = draw.random() < 0.7
        return Fault(
            name,
            f"{name} to the {'group' if group else 'process'}",
            statuses=statuses,
            moment=_moment(run, reached, draw),
            strike=lambda command: command.send(signal.Signals[name], group=group),
        )

    return draw_signal


def _full_disk(run: Run, reached: int, draw: random.Random) -> Fault | None:
    # The next checkpoint must not fit; before the first one is written, its size is not known.
    size = run.saved_bytes() if run.checkpoints else 1 << 16
    free = draw.randrange(size) if draw.random() < 0.8 else 0
    early = run.disk.kind == "tmpfs" and draw.random() < 0.2
    fault = Fault(
        "full disk",
        f"{free:,} bytes {'free' if run.disk.kind == 'tmpfs' else 'in a file at most'}",
        says=r"(?s)(ritten|rite|made).*(No space left on device|File too large)|"
        r"(No space left on device|File too large).*",
        mend=run.disk.free,
    )
    if early:
        fault.before = lambda: run.disk.fill(None, free)
    else:
        fault.moment = _moment(run, reached, draw)
        fault.strike = lambda command: run.disk.fill(command.pid, free)
    return fault


def _damaged_checkpoint(run: Run, _reached: int, draw: random.Random) -> Fault | None:
    if not run.checkpoints or run.start:
        return None
    newest = run.checkpoints[-1]
    file = draw.choice(sorted(newest.iterdir()))
    how = draw.choice(("truncated", "altered", "removed"))
    alone = len(run.checkpoints) == 1

    def harm() -> None:
        weather.damage(file, how, draw)

    def restart() -> None:
        run.start = ["--resume", "no"]  # as the message advises

    return Fault(
        "damaged checkpoint",
        f"{how} {newest.name}/{file.name}{', the only one' if alone else ''}",
        says=rf"all 1 checkpoints in {re.escape(str(newest.parent))} are damaged" if alone else "",
        warns=rf"{newest.name} is damaged",
        before=harm,
        mend=restart if alone else None,
    )


def _restored(run: Run) -> Callable[[], None]:
    return lambda: weather.write(weather.fields(), run.data, run.setting.storage)


def _damaged_data(run: Run, reached: int, draw: random.Random) -> Fault | None:
    storage, names = run.setting.storage, "|".join(map(repr, weather.VARIABLES))
    how = draw.choice(("truncated", "altered", "removed"))
    fault = Fault(
        "damaged data file",
        f"{how}, {storage}",
        says=rf"{re.escape(run.data.name)}|variable ({names})|the run has changed: data|inputs hold missing"
        rf"|input ({names}) has \d+ missing values",  # a chunk that is not there is one of fill values
        mend=_restored(run),
    )

    def harm(_command: Command | None = None) -> None:
        fault.what = weather.damage(run.data, how, draw)

    if draw.random() < 0.5:
        if storage == "netcdf" and how == "altered" and not run.checkpoints:
            return None  # nobody could know: no checksums, and nothing that remembers what the values were
        fault.before = harm
    else:
        fault.moment, fault.strike = _moment(run, reached, draw), harm
        fault.what += ", while training"
    return fault


def _bad_values(run: Run, reached: int, draw: random.Random) -> Fault | None:
    storage = run.setting.storage
    step = draw.randrange(run.train_steps)
    value = draw.choice((float("nan"), float("nan"), float("inf"), 3e30))
    in_place = draw.random() < 0.7
    names = "|".join(map(repr, weather.VARIABLES))
    fault = Fault(
        "NaN batch",
        f"{value:g}, {storage}",
        says=rf"({names}) has \d+ missing values|variable ({names}) reaches|Non-finite \w+ .* in step \d+.*"
        rf"(input '|target ')|{re.escape(run.data.name)}|the run has changed: data",
        mend=_restored(run),
    )

    def spoil(_command: Command | None = None) -> None:
        fault.what = weather.set_value(run.data, storage, step, value, draw, in_place=in_place)

    if draw.random() < 0.5:
        fault.before = spoil
    else:
        fault.moment, fault.strike = _moment(run, reached, draw), spoil
    return fault


def _dead_worker(run: Run, reached: int, draw: random.Random) -> Fault | None:
    if not run.setting.workers or reached > run.steps - 3:
        return None
    number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS))

    def shoot(command: Command) -> None:
        workers = command.workers()
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), number)
        fault.struck = bool(workers)

    moment = Moment(reached + draw.randint(1, min(14, run.steps - 1 - reached)), draw.uniform(0.0, 0.02))
    says = r"worker process that loads data"
    fault = Fault("dead worker", f"{number.name} to a worker", says=says, moment=moment, strike=shoot)
    return fault


KINDS: dict[str, Callable[[Run, int, random.Random], Fault | None]] = {
    "kill -9": _kill,
    "SIGTERM": _signal("SIGTERM", (143, -signal.SIGTERM)),
    "SIGINT": _signal("SIGINT", (130,)),
    "full disk": _full_disk,
    "damaged checkpoint": _damaged_checkpoint,
    "damaged data file": _damaged_data,
    "NaN batch": _bad_values,
    "dead worker": _dead_worker,
}
