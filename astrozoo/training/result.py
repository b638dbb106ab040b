"""What a run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astrozoo.module import ZooModel

__all__ = ["TrainResult"]


@dataclass(kw_only=True)
class TrainResult:
    """The outcome of `train`.

    Attributes:
        model: The trained model in evaluation mode, with its best weights (the last where nothing was evaluated).
        metrics: Scores of `model` on `split`; empty when a signal ended the run or there is nothing to evaluate on.
        baselines: The same scores of what needs no training, by name.
        split: `test`, or `val` where there is no test split.
        headline: The metric that decides which model is best; lower is better.
        history: One row per evaluation: step, epoch and the scores on the validation split.
        steps: Optimiser steps done since the beginning of the run.
        stopped: Why training ended: `finished`, `early stopping`, `time limit`, a signal's name, a callback's text.
        out: Folder of the run.
        best, last: Folders that `load_model` reads; None where not written.
        checkpoint: The last complete state.
    """

    model: ZooModel
    metrics: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    split: str | None = None
    headline: str = "loss"
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    stopped: str = "finished"
    out: Path
    best: Path | None = None
    last: Path | None = None
    checkpoint: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model as JSON-able values."""
        values = {key: value for key, value in vars(self).items() if key != "model"}
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}

    def summary(self) -> str:
        """Scores against the baselines as a table, and where the files are."""
        lines = [f"{self.steps:,} steps, stopped: {self.stopped}"]
        if self.metrics:
            names = ["model", *self.baselines]
            columns = [self.metrics, *self.baselines.values()]
            keys = sorted(self.metrics, key=lambda key: (key != self.headline, key))
            rows = [[f"{self.split}", *names]]
            for key in keys:
                marked = f"{key} *" if key == self.headline else key
                rows.append([marked, *(f"{column[key]:.4g}" if key in column else "" for column in columns)])
            widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
            lines += [
                "  ".join(
                    [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
                )
                for row in rows
            ]
            better = [
                name
                for name, scores in self.baselines.items()
                if self.headline in scores and not self.headline_score < scores[self.headline]  # NaN beats nothing
            ]
            if self.baselines:
                verdict = f"does not beat {', '.join(better)}" if better else "beats every baseline"
                lines.append(f"* headline, lower is better: the model {verdict}.")
        lines += [f"{label}: {path}" for label, path in (("best model", self.best), ("last model", self.last)) if path]
        lines.append(f"log and checkpoints: {self.out}")
        return "\n".join(lines)

    @property
    def headline_score(self) -> float:
        """The model's headline metric; infinity when nothing was evaluated."""
        return self.metrics.get(self.headline, float("inf"))
