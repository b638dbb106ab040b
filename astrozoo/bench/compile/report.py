"""The table of all families, and the targets they are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from astrozoo.bench.compile.case import COMPILED, EAGER, GRAPHED, Case, Finding
from astrozoo.bench.rows import Rows
from astrozoo.bench.side_by_side import Outcome
from astrozoo.readable import format_bytes, format_seconds

__all__ = ["comparison"]

RECOMPILATIONS = 2  # one for a batch of any size, and one more that PyTorch's choice of a kernel may ask for
HELPS = 1.02


def comparison(cases: Sequence[Case], outcomes: Mapping[str, Outcome]) -> Rows:
    """One row per family; a family that could not be measured misses a target."""
    first = cases[0]
    table = Rows(
        f"torch.compile of a training step in {first.precision}; graphs over batches of "
        f"{', '.join(map(str, first.batches))} ({first.backend}), times of a batch of {first.batch}",
        {},
        cells=_cells,
    )
    rows: list[dict[str, Any]] = []
    unknown = 0
    for case in cases:
        outcome = outcomes[case.name]
        finding = outcome.value if isinstance(outcome.value, Finding) else Finding()
        failures = finding.failures | ({"all": outcome.failure} if outcome.failure else {})
        rows.append(_row(case, finding, failures))
        table.samples |= {f"{case.name}, {way}": samples for way, samples in finding.samples.items()}
        table.notes += [f"{case.name}, {what}: {failure}" for what, failure in failures.items()]
        unknown += bool(failures)
        if finding.graphs is not None:
            table.notes += [
                f"{case.name} breaks the graph {count} times: {reason[:500]}"
                for reason, count in finding.graphs.breaks.items()
            ]
            table.target(f"graph breaks of {case.name}", rows[-1]["graph_breaks"], at_most=0, unit="")
            table.target(
                f"recompilations of {case.name}", finding.graphs.recompilations, at_most=RECOMPILATIONS, unit=""
            )
        if finding.skipped:
            table.notes.append(f"{case.name}: {finding.skipped} graphs ran without a CUDA graph")
        if finding.device_name:
            table.environment["device"] = finding.device_name
    table.target("families with something that could not be measured", unknown, at_most=0, unit="")
    table.rows = rows
    if first.cuda:
        table.notes.append(
            "CUDA graphs: a mark before each step, gradients set to None before it; the graphs keep their memory "
            "between steps (held), so that their peak is not comparable"
        )
    return table


def _row(case: Case, finding: Finding, failures: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"family": case.family, "model": case.name, "device": case.device}
    if (graphs := finding.graphs) is not None:
        row |= {
            "graph_breaks": sum(graphs.breaks.values()),
            "graphs": list(graphs.compiled),
            "recompilations": graphs.recompilations,
        }
    times = {way: samples.median() for way, samples in finding.samples.items()}
    row |= {f"{way}_seconds": seconds for way, seconds in times.items()}
    if COMPILED in times and EAGER in times:
        row["speed_up"] = times[EAGER] / times[COMPILED]
    for way in (EAGER, COMPILED):
        if way in times and finding.samples[way].peak_bytes:
            row[f"{way}_peak_bytes"] = finding.samples[way].median("peak_bytes")
    if GRAPHED in times and COMPILED in times:
        gain = times[COMPILED] / times[GRAPHED]
        row |= {
            "graph_gain": gain,
            "graphs_help": gain > HELPS and not finding.skipped,
            "graph_held_bytes": finding.held_bytes,
            "graphs_skipped": finding.skipped,
        }
    return row | {"failures": dict(failures)}


def _cells(row: Any) -> dict[str, str]:
    """A cell for everything that was measured; headers appear as the first row has them."""
    cells = {
        "": row["family"],
        "graph breaks": str(row.get("graph_breaks", "failed")),
        "recompilations": str(row.get("recompilations", "")),
    }
    for way in (EAGER, COMPILED, GRAPHED):
        if f"{way}_seconds" in row:
            cells[way] = format_seconds(row[f"{way}_seconds"])
    if "speed_up" in row:
        cells["speed-up"] = f"{row['speed_up']:.2f}x"
    if "graph_gain" in row:
        cells["of CUDA graphs"] = f"{row['graph_gain']:.2f}x"
        cells["they help"] = "skipped" if row["graphs_skipped"] else "yes" if row["graphs_help"] else "no"
    for way in (EAGER, COMPILED):
        if f"{way}_peak_bytes" in row:
            cells[f"peak memory, {way}"] = format_bytes(row[f"{way}_peak_bytes"])
    if "graph_held_bytes" in row:
        cells["held by graphs"] = format_bytes(row["graph_held_bytes"])
    return cells
