"""What a comparison found: one `Comparison` per field set, tables in Markdown, and a picture."""

from __future__ import annotations

import argparse
import statistics
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
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


def _draw(path: Path, outcomes: list[Row], baselines: list[Row]) -> None:
    """RMSE by lead time for forecasts, in one line where there is none; ours solid, peers dashed, the rest grey."""
    shown = [base for base in baselines if any(row["fields"] == base["fields"] for row in outcomes)]
    figure = new_figure(5.2 * len(shown), 6.5)
    colours: dict[str, Any] = {}
    for index, base in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), index + 1)
        leads = range(len(base["leads"]))
        rows = [row for row in outcomes if row["fields"] == base["fields"]]
        marker = "o" if len(base["leads"]) == 1 else None
        for name, scores in base["scores"].items():
            axes.plot(leads, scores["rmse"], color="0.6", lw=1, marker=marker, zorder=1)
            axes.annotate(name.replace("_", " "), (len(leads) - 1, scores["rmse"][-1]), color="0.4", fontsize=7)
        for name in dict.fromkeys(row["contestant"] for row in rows):
            mine = [row["rmse"] for row in rows if row["contestant"] == name]
            line = [statistics.fmean(column) for column in zip(*mine, strict=True)]
            colour = colours.setdefault(name, f"C{len(colours) % 10}")
            style = "--" if name in PEERS else ("-" if len(colours) <= 10 else "-.")
            axes.plot(leads, line, style, color=colour, lw=1.3, marker=marker, label=name if index == 0 else None)
        axes.set_xticks(list(leads), [lead or "all" for lead in base["leads"]])
        axes.set_title(base["title"], fontsize=9)
        axes.set_ylabel(f"RMSE ({base['unit']})")
        if base["fields"] == "scenario":
            axes.set_ylim(top=1.2)  # climatology knows no warming, and lies far above
    figure.legend(loc="outside lower center", ncols=6, fontsize=7)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
