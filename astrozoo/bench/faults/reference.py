"""What an uninterrupted run leaves behind, and whether another run has left the same."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Reference", "events"]


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of the log of a run, of one kind."""
    log = out / "log.jsonl"
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut short by the fault
        if row["event"] == kind:
            rows.append(row)
    return rows


@dataclass
class Reference:
    """An uninterrupted run, and the same with a checkpoint of every step.

    Attributes:
        out: Its folder.
        film: The folder of the checkpoints of all steps.
        result: What the command printed.
        exact: Whether runs must agree bit for bit; else to 1e-3 of the norm of each tensor (on a GPU).
    """

    out: Path
    film: Path
    result: dict[str, Any]
    exact: bool

    def checkpoint(self, path: Path) -> str:
        """How a checkpoint differs from that of the same step here; empty if it does not."""
        ours, theirs = (
            json.loads((folder / "state.json").read_text()) for folder in (path, self.film / "checkpoints" / path.name)
        )
        if self.exact:
            wrong = [name for name, file in theirs["files"].items() if ours["files"].get(name) != file]
            wrong += [key for key in ("epoch", "epoch_step", "best_score", "best_step", "history", "worse")
                      if ours[key] != theirs[key]]  # fmt: skip
            return f"{path.name}: {', '.join(wrong)} differ" if wrong else ""
        return self._tensors(path / "model.safetensors", self.film / "checkpoints" / path.name / "model.safetensors")

    def final(self, out: Path, result: dict[str, Any]) -> str:
        """How a finished run differs from this one; empty if it does not."""
        for name in ("last", "best"):
            ours, theirs = (folder / name / "model.safetensors" for folder in (out, self.out))
            if difference := self._tensors(ours, theirs):
                return difference
        for key in ("metrics", "history", "steps", "stopped"):
            if not self._same(result[key], self.result[key]):
                return f"{key} {result[key]} instead of {self.result[key]}"
        losses, expected = (events(folder, "train") for folder in (out, self.out))
        if not self._same(*([(row["step"], row["loss"]) for row in rows] for rows in (losses, expected))):
            return "the log holds other steps or losses"
        litter = [path.relative_to(out) for path in out.rglob(".*")]
        return f"{litter[0]} is left behind" if litter else ""

    def _tensors(self, ours: Path, theirs: Path) -> str:
        if self.exact:
            return "" if ours.read_bytes() == theirs.read_bytes() else f"{ours.parent.name}/{ours.name} differs"
        from astrozoo.weights.files import read_tensors

        one, other = read_tensors(ours), read_tensors(theirs)
        far = [name for name in other if (one[name] - other[name]).norm() > 1e-3 * other[name].norm()]
        return f"{ours.parent.name}/{ours.name}: {far[0]} differs" if far else ""

    def _same(self, ours: Any, theirs: Any) -> bool:
        if isinstance(ours, float) and isinstance(theirs, float) and not self.exact:
            return math.isclose(ours, theirs, rel_tol=1e-2, abs_tol=1e-3)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return ours.keys() == theirs.keys() and all(self._same(ours[key], theirs[key]) for key in ours)
        if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
            return len(ours) == len(theirs) and all(map(self._same, ours, theirs))
        return bool(ours == theirs)
