"""A disk that can be full: a small tmpfs where one may be mounted, else a limit on the size of the files of a process.

The tmpfs gives the real thing (ENOSPC, for whoever writes next). The limit (RLIMIT_FSIZE, EFBIG) needs no privileges.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Disk", "disk"]

_SIZE = 32 << 20  # of the tmpfs; a training keeps a few MB
_MESSAGE = 4096  # bytes of a file that the process must be able to write, or nobody hears what it says


class Disk:
    """The folder of the runs, and a way to fill it.

    Attributes:
        folder: Where runs write.
        kind: `tmpfs` or `limit`.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self._ballast = folder / "ballast"

    def fill(self, process: int | None, free: int) -> None:
        """Leave `free` bytes; of the limit: let the process write files up to that size."""
        if self.kind == "tmpfs":
            with self._ballast.open("wb") as file:
                for _ in range(100):
                    space = os.statvfs(self.folder)
                    room = space.f_bavail * space.f_frsize - free
                    try:
                        os.posix_fallocate(file.fileno(), 0, max(room, 1))
                    except OSError:  # the run has taken some of it meanwhile
                        continue
                    return
        else:
            assert process is not None
            with contextlib.suppress(ProcessLookupError):
                limit = max(free, _MESSAGE)
                resource.prlimit(process, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def free(self) -> None:
        """Give the space back; a limit ends with its process."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def disk(folder: Path, kind: str) -> Iterator[Disk]:
    """Provide the disk; `auto` takes a tmpfs where this user may mount one."""
    folder.mkdir()
    mounted = False
    if kind in ("auto", "tmpfs"):
        command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(folder)]
        try:
            answer = subprocess.run(command, capture_output=True, text=True)
            mounted, why = answer.returncode == 0, answer.stderr.strip()
        except OSError as error:
            mounted, why = False, str(error)
        if not mounted and kind == "tmpfs":
            raise OSError(f"no tmpfs can be mounted ({why}); --disk limit does without.")
    try:
        yield Disk(folder, "tmpfs" if mounted else "limit")
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
