"""Commands under observation: started by fork or in an interpreter of their own, watched and sent signals."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

__all__ = ["Command", "Starter"]


class Command:
    """A running `astrozoo` command, the leader of its own process group.

    Attributes:
        pid: Number of the process, and of its group.
        status: Exit status; negative for the signal that ended it, None while it runs.
    """

    def __init__(self, pid: int, output: Path, errors: Path) -> None:
        self.pid, self._output, self._errors = pid, output, errors
        self.status: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        raise NotImplementedError

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None where it still runs after `seconds`."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        return self.status

    def send(self, number: int, *, group: bool) -> None:
        """A signal to the process, or to its whole group as a terminal or a scheduler does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def workers(self) -> list[int]:
        """Numbers of the processes that it has started."""
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        return []

    def remains(self) -> list[int]:
        """Members of its group that still run."""
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process.pid)
        return members

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace")

    @property
    def errors(self) -> str:
        """What it has printed on the error output, without what a library says of objects that the zygote froze."""
        return self._errors.read_text(errors="replace").partition("nanobind: leaked")[0]


def _environment() -> dict[str, str]:
    """For all starts the same: one thread, since a pool of OpenBLAS would not survive a fork."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class _Fresh(Command):
    def __init__(self, argv: Sequence[str], output: Path, errors: Path) -> None:
        with output.open("w") as out, errors.open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "astrozoo", *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env=_environment(),
            )
        super().__init__(self._process.pid, output, errors)

    def poll(self) -> int | None:
        self.status = self._process.poll()
        return self.status


class _Forked(Command):
    def __init__(self, zygote: subprocess.Popen[str], argv: Sequence[str], output: Path, errors: Path) -> None:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        self._answers = zygote.stdout
        errors.unlink(missing_ok=True)
        zygote.stdin.write(json.dumps({"argv": list(argv), "output": str(output), "errors": str(errors)}) + "\n")
        zygote.stdin.flush()
        super().__init__(int(_answer(zygote.stdout)), output, errors)
        while not errors.exists() and self.poll() is None:  # from there on it leads its group
            time.sleep(0.001)

    def poll(self) -> int | None:
        if self.status is None and select.select([self._answers], [], [], 0)[0]:
            self.status = int(_answer(self._answers))
        return self.status


def _answer(stream: object) -> str:
    line: str = stream.readline()  # type: ignore[attr-defined]
    if not line:
        raise RuntimeError("the process that forks into commands has died; its message is above.")
    return line


class Starter:
    """Starts commands, one at a time; a context manager, which ends what still runs.

    Args:
        folder: Where output is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._zygote: subprocess.Popen[str] | None = None
        self._running: Command | None = None
        self._count = 0
        self._interrupt: Any = None

    def __enter__(self) -> Starter:
        # A job that a shell runs in the background ignores Ctrl-C, and so would everything started from it.
        self._interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._running is not None and self._running.poll() is None:
            self._running.send(signal.SIGKILL, group=True)
        if self._zygote is not None:
            self._zygote.__exit__(kind, error, tb)  # closes its input, at whose end it leaves
        signal.signal(signal.SIGINT, self._interrupt)

    def start(self, argv: Sequence[str], *, fresh: bool) -> Command:
        """Start `astrozoo` with these arguments, in an interpreter of its own or as a fork of the one that is ready."""
        self._count += 1
        output, errors = (self.folder / f"{self._count:04d}.{name}" for name in ("out", "err"))
        if fresh:
            self._running = _Fresh(argv, output, errors)
            return self._running
        if self._zygote is None:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "astrozoo.bench.faults.zygote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                text=True,
                env=_environment(),
            )
            assert self._zygote.stdout is not None
            _answer(self._zygote.stdout)
        self._running = _Forked(self._zygote, argv, output, errors)
        return self._running
