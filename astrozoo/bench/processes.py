"""Fresh processes, timed from start to exit, with the peak of their resident memory.

On Linux a child inherits the high-water mark of the process that started it, so a parent that holds a gigabyte would
see at least a gigabyte for every child. A bare Python process that holds nothing therefore starts the commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType

__all__ = ["Launcher"]

# Reads one JSON argument vector per line, answers with [seconds, peak bytes, status, ends of its output and errors].
_LAUNCHER = """
import json, os, sys, tempfile, time
scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
quiet = os.open(os.devnull, os.O_RDWR)
for line in sys.stdin:
    argv = json.loads(line)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        actions = [(os.POSIX_SPAWN_DUP2, quiet, 0), (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                   (os.POSIX_SPAWN_DUP2, errors.fileno(), 2)]
        start = time.perf_counter()
        try:
            pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
        except OSError as error:
            answer = [0.0, 0, 127, "", str(error)]
        else:
            _, status, usage = os.wait4(pid, 0)
            seconds = time.perf_counter() - start
            texts = []
            for stream in (output, errors):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace")[-2000:])
            answer = [seconds, usage.ru_maxrss * scale, os.waitstatus_to_exitcode(status), *texts]
    print(json.dumps(answer), flush=True)
"""


class Launcher:
    """A small process that starts commands and measures them; use it as a context manager.

    Args:
        env: Environment of the commands; default: this process's own.
    """

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._env = dict(os.environ if env is None else env)

    def __enter__(self) -> Launcher:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._env,
            text=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Popen.__exit__ closes both pipes and waits; the launcher ends when its input does.
        self._process.__exit__(kind, error, tb)
        self._log.close()

    def run(self, argv: Sequence[str], *, self_timed: bool = False) -> tuple[float, int]:
        """Seconds from start to exit, and peak resident bytes, of one fresh process.

        Args:
            argv: The command.
            self_timed: Take the seconds from the process instead: the number on the last line of its output.

        Raises:
            RuntimeError: It could not start, its exit status is not 0, or it was to print a time and did not.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(list(argv)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the launcher died while it ran {' '.join(argv)!r}.")
        seconds, peak, status, output, errors = json.loads(answer)
        if status != 0:
            raise RuntimeError(f"{' '.join(argv)!r} exited with status {status}: {errors.strip()}")
        if self_timed:
            last = output.strip().rpartition("\n")[2]
            try:
                seconds = float(last)
            except ValueError:
                raise RuntimeError(f"{' '.join(argv)!r} was to print its seconds last, got {last!r}.") from None
        return seconds, peak
