"""How many times as long each peer takes, as bars."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from astrozoo.bench.accel.case import OURS
from astrozoo.bench.drawing import new_figure
from astrozoo.bench.harness import Comparison

__all__ = ["plot"]


def plot(comparisons: Iterable[Comparison], file: str | Path) -> None:
    """Draw a bar for each peer of each case, with the quartiles of its ratio and a mark where its target lies.

    Args:
        comparisons: Tables of times, ours first.
        file: Where the PNG goes.
    """
    bars = [
        (comparison, peer, comparison.ratio(peer, OURS))
        for comparison in comparisons
        for peer in list(comparison.samples)[1:]
    ]
    figure = new_figure(11, 1 + 0.42 * len(bars))
    axis = figure.subplots()
    kernels = list(dict.fromkeys(comparison.title.partition(":")[0] for comparison, _, _ in bars))
    labels = []
    for place, (comparison, peer, ratio) in enumerate(bars):
        kernel, _, size = comparison.title.partition(": ")
        labels.append(f"{kernel} / {peer}\n{size}")
        spread = [[max(ratio.value - ratio.low, 0.0)], [max(ratio.high - ratio.value, 0.0)]]
        axis.barh(place, ratio.value, xerr=spread, color=f"C{kernels.index(kernel) % 10}", ecolor="0.3", height=0.7)
        axis.annotate(f" {ratio.value:.3g}x", (max(ratio.high, ratio.value), place), va="center", fontsize="small")
        if target := comparison.ratio_target(peer, OURS):
            axis.plot([target.limit] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
    axis.set(
        yticks=range(len(bars)), yticklabels=labels, xscale="log", xlabel="time of the peer / ours (black: target)"
    )
    axis.tick_params(axis="y", labelsize="small")
    axis.axvline(1.0, color="0.6", linewidth=1)
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.01)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=120)
