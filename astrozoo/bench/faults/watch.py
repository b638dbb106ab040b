"""When the moment of a fault has come, seen from outside: in the log of the run and in its folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

from astrozoo.bench.faults.kinds import Moment

__all__ = ["Watch"]


class Watch:
    """Looks for a moment of a run.

    Args:
        out: Folder of the run.
        moment: What to look for; None never comes.
    """

    def __init__(self, out: Path, moment: Moment | None) -> None:
        self.out, self.moment = out, moment
        self._since: float | None = None if moment is None or moment.step else time.monotonic()

    def due(self) -> bool:
        """Whether to strike now."""
        moment = self.moment
        if moment is None:
            return False
        if self._since is None:
            if self._step() < moment.step:
                return False
            self._since = time.monotonic()
        if moment.amid_save:
            folders = (self.out / "checkpoints", self.out, self.out / "best", self.out / "last")
            return any(next(folder.glob(".astrozoo-saving-*"), None) is not None for folder in folders)
        return time.monotonic() - self._since >= moment.seconds

    def _step(self) -> int:
        try:
            with (self.out / "log.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 4096))
                lines = file.read().split(b"\n")
        except OSError:
            return 0
        for line in reversed(lines[:-1]):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["event"] == "train":
                return int(row["step"])
        return 0
