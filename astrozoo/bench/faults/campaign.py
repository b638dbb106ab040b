"""Train under faults: start, strike, see how the run ends, mend, start again; until it has finished; then compare."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from astrozoo import errors
from astrozoo.bench.faults import weather
from astrozoo.bench.faults.commands import Command, Starter
from astrozoo.bench.faults.disk import Disk
from astrozoo.bench.faults.kinds import KINDS, Fault, Run, Setting
from astrozoo.bench.faults.reference import Reference, events
from astrozoo.bench.faults.watch import Watch

__all__ = ["EVERY", "SETTINGS", "Campaign", "Outcome"]

EVERY = 5  # steps between checkpoints
_PATIENCE = 90.0  # seconds after which a run counts as hung
_COMMAND = re.compile(r'cli/app\.py", line \d+, in \w')  # in a traceback: from here on, errors become messages
_MODEL = {"widths": [16, 32], "depths": [0, 1], "decoder_depths": [1], "strides": [2], "level_strides": [1]}

SETTINGS = tuple(itertools.starmap(Setting, itertools.product(weather.STORAGES, (True, False), (0, 2))))


@dataclass
class Outcome:
    """What became of one fault.

    Attributes:
        kind, what: The fault.
        setting: Of the training that it struck.
        end: The run finished as if nothing had been; stopped, was resumed and went on right; or went wrong.
        message: What a stopped run said, or why it is wrong.
        lost: Steps that had to be done again; None where none had to.
    """

    kind: str
    what: str
    setting: str
    end: Literal["finished", "stopped", "wrong"]
    message: str = ""
    lost: int | None = None


@dataclass
class Campaign:
    """Trainings under faults.

    Attributes:
        starter, disk, folder: What starts commands, what runs write to, and where the rest is.
        steps: Of each training.
        device: As for training.
        fresh: Every so many starts take a fresh interpreter; 0 for none, 1 for all.
        draw: Decides everything.
        settings: How trainings may be set up.
        verbose: A line per fault on the error output.
        outcomes: One per fault.
        trainings, starts: How many there were.
    """

    starter: Starter
    disk: Disk
    folder: Path
    steps: int
    device: str
    fresh: int
    draw: random.Random
    settings: tuple[Setting, ...] = SETTINGS
    verbose: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    trainings: int = 0
    starts: int = 0
    _references: dict[Setting, Reference] = field(default_factory=dict)

    def run(self, faults: int, kinds: list[str]) -> None:
        """Inject so many faults, equally many of each kind as far as runs allow."""
        deck = [kinds[index % len(kinds)] for index in range(faults)]
        self.draw.shuffle(deck)
        idle = 0
        while deck:
            size = len(deck)
            self._train(deck)
            idle = idle + 1 if len(deck) == size else 0
            if idle == 50:
                raise RuntimeError(f"none of {sorted(set(deck))} has struck in 50 trainings in a row.")

    # -- one training --------------------------------------------------------------------------------------------------

    def _train(self, deck: list[str]) -> None:
        suited = [setting for setting in self.settings if setting.workers or deck[0] != "dead worker"]
        setting = self.draw.choice(suited)
        reference = self._reference(setting)
        self.trainings += 1
        run = self._prepare(setting)
        pending: list[Outcome] = []  # stopped, and not yet known whether the run goes on from its last checkpoint
        reached, kept = 0, 0  # the last step, and that of the last checkpoint, when the run stopped
        groups: list[Command] = []
        while True:
            fault, card = self._next(run, reached, deck)
            command, struck = self._attempt(run, fault)
            groups.append(command)
            if struck and card is not None:
                deck.pop(card)
            lost, before = None, reached
            for begun in (row["step"] for row in events(run.out, "start") if row["time"] >= self._started):
                if kept > begun:  # a checkpoint could not be used
                    damaged = [item for item in pending if item.kind == "damaged checkpoint"]
                    if fault is not None and fault.kind == "damaged checkpoint":
                        lost = kept - begun
                    elif pending:
                        (damaged or pending)[-1].lost = ((damaged or pending)[-1].lost or 0) + kept - begun
                pending.clear()
                before, run.start = begun, []
            reached = max([row["step"] for row in events(run.out, "train")], default=before)
            end, message = self._judge(run, reference, fault if struck else None, command, groups)
            if struck and fault is not None and card is not None:
                self._note(Outcome(fault.kind, fault.what, str(setting), end, message, lost))
                if end == "stopped":
                    pending.append(self.outcomes[-1])
            elif end == "wrong" or (end == "stopped" and not struck):
                # What came before has left something that shows only now.
                end = "wrong"
                self._blame_last(message)
            if fault is not None and struck and fault.mend is not None:
                fault.mend()
            if end == "wrong":
                self._keep(run)
            if end != "stopped":
                return
            kept = int(run.checkpoints[-1].name.removeprefix("step-")) if run.checkpoints else 0
            if pending and pending[-1].lost is None:
                pending[-1].lost = max(reached - max(kept, before), 0)

    def _next(self, run: Run, reached: int, deck: list[str]) -> tuple[Fault | None, int | None]:
        tried: set[str] = set()
        for index, kind in enumerate(deck):
            if kind not in tried:
                tried.add(kind)
                fault = KINDS[kind](run, reached, self.draw)
                if fault is not None:
                    return fault, index
        if "damaged checkpoint" in deck and not run.checkpoints:
            return KINDS["kill -9"](run, EVERY, self.draw), None  # not one of the faults: makes one of them possible
        return None, None

    def _attempt(self, run: Run, fault: Fault | None) -> tuple[Command, bool]:
        struck = False
        if fault is not None and fault.before is not None:
            fault.before()
            struck = True
        self.starts += 1
        self._started = time.time()
        command = self.starter.start(
            [*self._argv(run.setting, run.data, run.out), *run.start],
            fresh=bool(self.fresh) and self.starts % self.fresh == 0,
        )
        watch, end = Watch(run.out, fault.moment if fault else None), time.monotonic() + _PATIENCE
        while command.poll() is None and time.monotonic() < end:
            if not struck and fault is not None and fault.strike is not None and watch.due():
                fault.strike(command)
                struck = fault.struck
            time.sleep(0.0005 if watch.moment and not struck else 0.01)
        if command.poll() is None:
            command.send(signal.SIGKILL, group=True)
            command.wait(10)
            command.status = None
        return command, struck

    def _judge(
        self, run: Run, reference: Reference, fault: Fault | None, command: Command, groups: list[Command]
    ) -> tuple[Literal["finished", "stopped", "wrong"], str]:
        """How the attempt ended, and what it said or what is wrong."""
        text = command.errors
        if command.status is None:
            return "wrong", f"hung: {text[-300:]}"
        early = command.status == -signal.SIGINT or text.startswith("Fatal Python error: init_")
        if fault is not None and fault.kind == "SIGINT" and early and not _COMMAND.search(text):
            return "stopped", "before Python had come to the command"  # which it says with a traceback of its own
        killed = fault is not None and fault.kind == "kill -9" and command.status == -signal.SIGKILL
        if "Traceback" in text and not killed:  # workers whose trainer is gone complain to nobody
            return "wrong", f"exit status {command.status} with a traceback: {text.strip().splitlines()[-1][:300]}"
        if fault is not None and fault.warns and not re.search(fault.warns, text):
            return "wrong", f"nothing was said about the damage: {text[-300:]}"
        end: Literal["finished", "stopped"]
        message = ""
        if command.status == 0:
            end = "finished"
        elif fault is not None and command.status in fault.statuses:
            end = "stopped"
        elif fault is not None and command.status == 1 and fault.says:
            try:
                error = json.loads(command.output)["error"]
            except ValueError:
                return "wrong", f"exit status 1 without a result: {text[-300:]}"
            end, message = "stopped", error["message"]
            kind = getattr(errors, error["type"], None)
            if kind is None or not issubclass(kind, errors.AstrozooError):
                return "wrong", f"{error['type']} is none of ours: {message}"
            if "\n" in message:
                return "wrong", f"a message of several lines: {message}"
            if not re.search(fault.says, message):
                return "wrong", f"the message does not name it: {message}"
        else:
            return "wrong", f"exit status {command.status}: {text[-300:]}"
        if difference := self._differences(run, reference, fault, command, groups, end):
            return "wrong", difference
        return end, message

    def _differences(
        self, run: Run, reference: Reference, fault: Fault | None, command: Command, groups: list[Command], end: str
    ) -> str:
        untouched = fault is None or fault.kind != "damaged checkpoint" or end == "finished"
        for path in run.checkpoints if untouched else ():
            if difference := reference.checkpoint(path):
                return difference
        if end != "finished":
            return ""
        try:
            result = json.loads(command.output)
        except ValueError:
            return f"exit status 0 without a result: {command.output[:200]!r}"
        if difference := reference.final(run.out, result):
            return difference
        deadline = time.monotonic() + 15.0  # worker processes look every few seconds whether their trainer is there
        while left := [process for group in groups for process in group.remains()]:
            if time.monotonic() > deadline:
                for group in groups:
                    group.send(signal.SIGKILL, group=True)
                return f"{len(left)} processes are left behind"
            time.sleep(0.1)
        return ""

    # -- around it -----------------------------------------------------------------------------------------------------

    def _argv(self, setting: Setting, data: Path, out: Path, every: int = EVERY, keep: int = 2) -> list[str]:
        settings: dict[str, Any] = {
            "max_steps": self.steps, "batch_size": 8, "checkpoint.every": every, "checkpoint.keep": keep,
            "evaluation.every": 10, "log.every": 1, "device": self.device, "deterministic": self.device != "cpu",
            "ema.decay": 0.9, "optim.lr": 3e-3, "num_workers": setting.workers,
            "data.in_memory": json.dumps(setting.in_memory),
            **{f"model.{name}": value for name, value in _MODEL.items()},
        }  # fmt: skip
        flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return ["train", "cube_unet_nano", "--data", str(data), "--out", str(out), "--json", *flags]

    def _data(self, folder: Path, setting: Setting) -> Path:
        path = folder / ("weather.zarr" if setting.storage.startswith("zarr") else "weather.nc")
        weather.write(weather.fields(), path, setting.storage)
        return path

    def _prepare(self, setting: Setting) -> Run:
        for folder in (out := self.disk.folder / "run", place := self.folder / "data"):
            shutil.rmtree(folder, ignore_errors=True)
        place.mkdir()
        train_steps = int(0.7 * weather.STEPS)
        return Run(setting, out, self._data(place, setting), self.disk, self.steps, train_steps)

    def _reference(self, setting: Setting) -> Reference:
        if setting not in self._references:
            home = self.folder / f"reference-{len(self._references)}"
            home.mkdir()
            data = self._data(home, setting)
            for name, every, keep in (("run", EVERY, 2), ("film", 1, self.steps)):
                argv = self._argv(setting, data, home / name, every, keep)
                command = self.starter.start(argv, fresh=not self._references and name == "run" and bool(self.fresh))
                if command.wait(_PATIENCE) != 0:
                    raise RuntimeError(f"the run without faults ends with status {command.status}: {command.errors}")
                result = json.loads(command.output)
            reference = Reference(home / "run", home / "film", result, exact=self.device == "cpu")
            if difference := reference.final(home / "film", result):
                raise RuntimeError(f"two runs without faults differ ({difference}); nothing can be compared with them.")
            self._references[setting] = reference
        return self._references[setting]

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if self.verbose:
            row = f"{len(self.outcomes):4d}  {outcome.kind}: {outcome.what} ({outcome.setting}): {outcome.end}"
            sys.stderr.write(f"{row}  {outcome.message}\n")

    def _blame_last(self, message: str) -> None:
        if not self.outcomes:
            raise RuntimeError(f"a run without faults went wrong: {message}")
        last = self.outcomes[-1]
        last.end, last.message = "wrong", f"after it: {message}"
        if self.verbose:
            sys.stderr.write(f"      wrong after that: {message}\n")

    def _keep(self, run: Run) -> None:
        """Set the remains of a training that went wrong aside, for whoever wants to look."""
        wrong = sum(outcome.end == "wrong" for outcome in self.outcomes)
        if run.out.is_dir():  # else it went wrong before it had written anything
            shutil.copytree(run.out, self.folder / f"wrong-{wrong:03d}", dirs_exist_ok=True)
