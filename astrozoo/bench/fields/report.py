"""What a comparison found: one `Comparison` per field set, tables in Markdown, and a picture."""

from __future__ import annotations

import argparse
import statistics
import textwrap
from pathlib import Path
from typing import Any

from astrozoo.bench.drawing import need_matplotlib, new_figure
from astrozoo.bench.fields.contestants import PEERS, contestants
from astrozoo.bench.harness import Comparison, Samples
from astrozoo.readable import format_bytes
from astrozoo.weights.files import atomic_write

__all__ = ["comparisons"]

Row = dict[str, Any]


def comparisons(outcomes: list[Row], baselines: list[Row], args: argparse.Namespace) -> list[Comparison]:
    """Held to: no family behind persistence, none more than 10 % behind the best peer of its kind."""
    if args.plot is not None:
        need_matplotlib()
    kinds = {contestant.name: contestant.kind for contestant in contestants()}
    found, tables = [], []
    for base in baselines:
        rows = [row for row in outcomes if row["fields"] == base["fields"]]
        names = list(dict.fromkeys(row["contestant"] for row in rows))
        if not names:
            continue
        mine = {name: [row for row in rows if row["contestant"] == name] for name in names}
        comparison = Comparison(
            f"{base['title']}: training of {args.steps} steps",
            {name: Samples(tuple(row["seconds"] for row in mine[name])) for name in names},
        )
        means = {name: statistics.fmean(row["headline"] for row in mine[name]) for name in names}
        floor = "persistence" if "persistence" in base["scores"] else "climatology"
        for name in names:
            if name in PEERS:
                continue
            worst = base["scores"][floor]["headline"]
            comparison.target(f"RMSE, {name} / {floor}", means[name] / worst, at_most=1.0)
            peers = [peer for peer in names if peer in PEERS and kinds[peer] == kinds[name]]
            if peers:
                best = min(peers, key=lambda peer: means[peer])
                comparison.target(f"RMSE, {name} / {best}", means[name] / means[best], at_most=1.1)
        table = _table(base, mine)
        comparison.notes += [f"scores in {base['unit']}, mean and standard deviation over seeds", *table]
        found.append(comparison)
        tables.append(f"**{_capital(base['title'])}**, RMSE in {base['unit']}\n\n" + "\n".join(table) + "\n")
    if args.table is not None:
        with atomic_write(args.table) as temporary:
            Path(temporary).write_text("\n".join(tables), encoding="utf-8")
    if args.plot is not None and found:
        _draw(args.plot, outcomes, baselines)
    return found


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _table(base: Row, mine: dict[str, list[Row]]) -> list[str]:
    """Lines of a Markdown table, best first."""
    leads = [lead for lead in base["leads"] if lead]
    heads = ["", "parameters", "all" if leads else "RMSE", *leads, *(f"ACC {lead}" for lead in leads or [""])]
    heads = [*(head.strip() for head in heads), "training", "peak memory"]
    lines = []
    for name, rows in mine.items():
        overall = [row["headline"] for row in rows]
        cells = [
            f"`{name}`" if name not in PEERS else name,
            f"{rows[0]['parameters'] / 1e6:.2f} M",
            _spread(overall),
            *(_columns(rows, "rmse", leads) if leads else []),
            *_columns(rows, "acc", leads or [""]),
            f"{statistics.fmean(row['seconds'] for row in rows):.0f} s",
            format_bytes(rows[0]["peak_bytes"]) if rows[0].get("peak_bytes") else "",
        ]
        lines.append((statistics.fmean(overall), cells))
    for name, scores in base["scores"].items():
        rmse = [f"{value:.3f}" for value in scores["rmse"]] if leads else []
        acc = [f"{value:.3f}" for value in scores["acc"]] or [""] * max(1, len(leads))
        total = f"{scores['headline']:.3f}"
        lines.append((scores["headline"], [name.replace("_", " "), "", total, *rmse, *acc, "", ""]))
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    body = [cells for _, cells in sorted(lines, key=lambda line: line[0])]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *body)]


def _columns(rows: list[Row], kind: str, leads: list[str]) -> list[str]:
    columns = list(zip(*(row[kind] for row in rows), strict=True))
    return [f"{statistics.fmean(column):.3f}" for column in columns] if columns else [""] * len(leads)


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f} (one seed)"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def _draw(path: Path, outcomes: list[Row], baselines: list[Row]) -> None:
    """Everybody's RMSE over all lead times, best on top: ours, peers, and what needs no network."""
    shown = [base for base in baselines if any(row["fields"] == base["fields"] for row in outcomes)]
    figure = new_figure(4.4 * len(shown), 6.5)
    for index, base in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), index + 1)
        places = {name: [scores["headline"]] for name, scores in base["scores"].items()}
        for row in outcomes:
            if row["fields"] == base["fields"]:
                places.setdefault(row["contestant"], []).append(row["headline"])
        ranked = sorted(places, key=lambda name: -statistics.fmean(places[name]))
        for height, name in enumerate(ranked):
            colour = "0.5" if name in base["scores"] else "C1" if name in PEERS else "C0"
            axes.plot(places[name], [height] * len(places[name]), "o", color=colour, ms=3, alpha=0.5)
            axes.plot(statistics.fmean(places[name]), height, "|", color=colour, ms=12, mew=2)
        axes.set_yticks(
            range(len(ranked)),
            [name.replace("_", " ") if name in base["scores"] else name for name in ranked],
            fontsize=7,
        )
        axes.grid(axis="x", color="0.9")
        axes.set_title(textwrap.fill(base["title"], 34), fontsize=9)
        axes.set_xlabel(f"RMSE ({base['unit']})")
        best = statistics.fmean(places[ranked[-1]])
        last = min(1.04 * statistics.fmean(places[ranked[0]]), 1.6 * best)
        axes.set_xlim(0.96 * best, last)
        for height, name in enumerate(ranked):  # what is far off would press the others together: its number will do
            if (mean := statistics.fmean(places[name])) > last:
                axes.text(last, height, f"{mean:.2f} > ", ha="right", va="center", fontsize=7, color="0.3")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
