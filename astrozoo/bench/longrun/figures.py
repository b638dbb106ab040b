"""What the log of a run says about its speed and memory, and how far two runs are apart."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrozoo.bench.faults.reference import events

__all__ = ["Figures", "distance", "figures"]

Ended = tuple[Path, dict[str, Any]]
"""The folder of a run, and the result that its command printed."""


@dataclass(frozen=True)
class Figures:
    """Of a run, after its first tenth.

    Attributes:
        samples_per_second: Evaluations and checkpoints included.
        data_wait: Share of the time in which steps waited for data.
        gpu_utilization: Share of the time in which the GPU was busy; None where nobody knows.
        gpu_bytes, gpu_growth: Median peak of the last fifth, and its growth from the second and third tenth.
        host_bytes, host_growth: Least resident memory of the process in the last fifth, and its growth likewise.
    """

    samples_per_second: float
    data_wait: float
    gpu_utilization: float | None
    gpu_bytes: float | None
    gpu_growth: float | None
    host_bytes: float
    host_growth: float


def figures(out: Path, steps: int, batch_size: int) -> Figures:
    """Read `log.jsonl` of a run of `steps` steps, each of `batch_size` samples.

    Raises:
        RuntimeError: The log has too few lines.
    """
    lines = [row for row in events(out, "train") if row["step"] >= steps / 10]
    early = [row for row in lines[1:] if row["step"] <= 0.3 * steps]
    late = [row for row in lines if row["step"] > 0.8 * steps]
    if not early or not late:
        raise RuntimeError(f"the log of {out} has {len(lines)} lines after a tenth of {steps} steps: lower log.every.")
    seconds = [after["time"] - before["time"] for before, after in itertools.pairwise(lines)]

    def mean(key: str) -> float | None:
        """Over time; a line tells of what came before it."""
        pairs = [(row.get(key), spent) for row, spent in zip(lines[1:], seconds, strict=True)]
        known = [(value, spent) for value, spent in pairs if value is not None]
        total = sum(spent for _, spent in known)
        return sum(value * spent for value, spent in known) / total if total else None

    least = [min(row["host_bytes"] for row in rows) for rows in (early, late)]
    on_gpu = "gpu_peak_bytes" in lines[0]
    peaks = [statistics.median(row["gpu_peak_bytes"] for row in rows) for rows in (early, late)] if on_gpu else None
    return Figures(
        samples_per_second=(lines[-1]["step"] - lines[0]["step"]) * batch_size / sum(seconds),
        data_wait=mean("data_wait") or 0.0,
        gpu_utilization=mean("gpu_utilization"),
        gpu_bytes=peaks[1] if peaks else None,
        gpu_growth=peaks[1] / peaks[0] - 1 if peaks else None,
        host_bytes=least[1],
        host_growth=least[1] / least[0] - 1,
    )


def distance(one: Ended, other: Ended) -> float:
    """Root mean square of relative differences of losses and scores; NaN where the runs do not have the same ones."""
    ours, theirs = _curve(*one), _curve(*other)
    if ours.keys() != theirs.keys():
        return math.nan
    differences = [abs(ours[key] - theirs[key]) / max(abs(ours[key]), abs(theirs[key]), 1e-30) for key in ours]
    return math.sqrt(statistics.fmean(difference**2 for difference in differences))


def _curve(out: Path, result: dict[str, Any]) -> dict[tuple[str, str, int], float]:
    names = dict.fromkeys((result["headline"], "loss"))
    lines = events(out, "train")
    curve = {("train", "loss", row["step"]): row["loss"] for row in lines if row["step"] > result["steps"] / 2}
    curve |= {("val", name, row["step"]): row[name] for row in result["history"] for name in names}
    return curve | {("test", name, 0): result["metrics"][name] for name in names}
