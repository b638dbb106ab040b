"""What was measured, as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from astrozoo.bench.accel.case import OURS
from astrozoo.bench.harness import Comparison
from astrozoo.readable import format_seconds
from astrozoo.weights.files import atomic_write

__all__ = ["write_table"]


def write_table(comparisons: Iterable[Comparison], file: str | Path) -> None:
    """A row for each peer of each case: times, ratio with its quartiles, target."""
    lines = [
        "| kernel | work | ours | peer | its time | ratio (quartiles) | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for comparison in comparisons:
        kernel, _, size = comparison.title.partition(": ")
        ours = format_seconds(comparison.samples[OURS].median())
        for peer in list(comparison.samples)[1:]:
            target = comparison.ratio_target(peer, OURS)
            promise = "" if target is None else f"{target.limit:g}x, {'met' if target.met else 'missed'}"
            time = format_seconds(comparison.samples[peer].median())
            lines.append(
                f"| `{kernel}` | {size} | {ours} | {peer} | {time} | {comparison.ratio(peer, OURS)} | {promise} |"
            )
    with atomic_write(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
