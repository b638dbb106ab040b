"""Time and memory against length, as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from astrozoo.bench.drawing import new_figure
from astrozoo.bench.harness import Comparison
from astrozoo.bench.rows import Rows

__all__ = ["plot"]

_WAY = "forward+backward"


def plot(comparisons: Iterable[Comparison], file: str | Path) -> None:
    """Draw time and peak memory of forward+backward against length: a column for each kind of call.

    Args:
        comparisons: Tables of times; others are passed over.
        file: Where the PNG goes.
    """
    panels: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for row in (row for comparison in comparisons if isinstance(comparison, Rows) for row in comparison.rows):
        if _WAY in row and row["table"] != "layers":
            causal = "causal" if row["causal"] else "not causal"
            panel = panels.setdefault(f"{row['dtype']}, heads of {row['head_dim']}, {causal}", {})
            panel.setdefault(row["name"], {})[row["tokens"]] = row  # flash is in two tables
    figure = new_figure(7 * max(len(panels), 1), 11)
    axes = figure.subplots(2, max(len(panels), 1), squeeze=False)
    names = sorted({name for panel in panels.values() for name in panel})
    for column, (title, panel) in enumerate(panels.items()):
        for axis, key, label, scale in zip(
            axes[:, column], ("seconds", "peak_bytes"), ("time / ms", "peak memory / MiB"), (1e3, 2**-20), strict=True
        ):
            for name, rows in panel.items():
                index, lengths = names.index(name), sorted(rows)
                axis.plot(
                    lengths, [rows[tokens][_WAY][key] * scale / rows[tokens]["batch"] for tokens in lengths],
                    color=f"C{index % 10}", marker="osD^v"[index // 10 % 5], label=name,
                )  # fmt: skip
            axis.set(title=title, xlabel="tokens", ylabel=f"{label}, {_WAY}, one row", xscale="log", yscale="log")
            axis.grid(alpha=0.3)
        axes[0, column].legend(fontsize="small", ncols=2)
    figure.savefig(file, dpi=120)
